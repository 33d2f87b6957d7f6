"""Prefect task: take a share of the training rows."""

from tasks.stage_task import stage_task

part = stage_task("part", "Take a share of the training rows.")
