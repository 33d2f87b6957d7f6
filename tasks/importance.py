"""Prefect task: score heads and neurons, and plan what each scale keeps."""

from tasks.stage_task import stage_task

importance = stage_task(
    "importance",
    "Score every head and neuron by mask gradients on the calibration part; reorder them; plan what each scale keeps.",
)
