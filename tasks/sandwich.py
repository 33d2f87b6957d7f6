"""Prefect task: train all candidates and the target at once, with shared weights."""

from tasks.stage_task import stage_task

sandwich = stage_task(
    "sandwich", "Train all candidate assistants and the target at once, as prefix slices of shared weights."
)
