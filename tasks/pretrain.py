"""Prefect task: train one language model: alone, or as the student of a teacher."""

from tasks.stage_task import stage_task

pretrain = stage_task("pretrain", "Train one language model: alone, or as the student of a teacher.")
