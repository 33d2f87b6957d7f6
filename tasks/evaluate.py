"""Prefect task: measure one model on one part that nobody tuned on."""

from tasks.stage_task import stage_task

evaluate = stage_task("evaluate", "Measure one model on the evaluation part, in fp32: metrics, predictions and sizes.")
