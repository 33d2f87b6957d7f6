"""Prefect task: score the heads and neurons of a language model, and plan what each scale keeps."""

from tasks.stage_task import stage_task

lm_importance = stage_task(
    "lm_importance", "Score the heads and neurons of a language model, and plan what each scale keeps."
)
