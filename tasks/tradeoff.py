"""Prefect task: choose the assistant."""

from tasks.stage_task import stage_task

tradeoff = stage_task(
    "tradeoff", "Choose the assistant: the largest t = m + λ(1 - scale) among the candidates above the target."
)
