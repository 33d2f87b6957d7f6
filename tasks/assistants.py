"""Prefect task: fit laws to the students of finished runs, and say which assistant a student wants."""

from tasks.stage_task import stage_task

assistants = stage_task("assistants", "Fit laws to the students of runs, and say which assistant a student wants.")
