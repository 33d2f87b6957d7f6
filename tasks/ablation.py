"""Prefect task: hold every arm against MixKD on the evaluation part: metric, gap to what was seen, calibration."""

from tasks.stage_task import stage_task

ablation = stage_task(
    "ablation", "Hold every arm against MixKD on the evaluation part: metric, gap to what was seen, calibration."
)
