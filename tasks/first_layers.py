"""Prefect task: start a student as the first layers of the teacher."""

from tasks.stage_task import stage_task

first_layers = stage_task("first_layers", "Start a student as the first layers of the teacher.")
