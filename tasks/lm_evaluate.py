"""Prefect task: measure one language model on held-out text."""

from tasks.stage_task import stage_task

lm_evaluate = stage_task("lm_evaluate", "Measure one language model on held-out text.")
