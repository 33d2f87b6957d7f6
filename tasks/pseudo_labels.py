"""Prefect task: have the teacher label texts that have no labels."""

from tasks.stage_task import stage_task

pseudo_labels = stage_task("pseudo_labels", "Have the teacher label texts that have no labels.")
