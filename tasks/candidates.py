"""Prefect task: measure every candidate on the selection part."""

from tasks.stage_task import stage_task

candidates = stage_task("candidates", "Measure the teacher and every candidate on the selection part.")
