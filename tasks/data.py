"""Prefect task: read the data set and cut it into its parts."""

from tasks.stage_task import stage_task

data = stage_task(
    "data", "Read the data set, cut it into train, calibration, selection and evaluation by group, and tokenise it."
)
