"""Prefect task: look at a language model that is given, and measure it on held-out text."""

from tasks.stage_task import stage_task

given_lm = stage_task("given_lm", "Look at a language model that is given, and measure it on held-out text.")
