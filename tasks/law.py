"""Prefect task: fit every law to the losses of the grid, and say which teacher a student wants."""

from tasks.stage_task import stage_task

law = stage_task("law", "Fit every law to the losses of the grid, and say which teacher a student wants.")
