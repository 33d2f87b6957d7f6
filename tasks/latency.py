"""Prefect task: measure milliseconds for one batch."""

from tasks.stage_task import stage_task

latency = stage_task("latency", "Measure the milliseconds of a forward pass at each batch size.")
