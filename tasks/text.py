"""Prefect task: read the text, tokenise it once, and keep its documents in three parts."""

from tasks.stage_task import stage_task

text = stage_task("text", "Read the text, tokenise it once, and keep its documents in three parts.")
