"""Prefect task: write the report and its figures."""

from tasks.stage_task import stage_task

report = stage_task("report", "Write the report: verdict, tables and figures.")
