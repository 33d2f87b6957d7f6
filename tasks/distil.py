"""Prefect task: distil one student from one teacher."""

from tasks.stage_task import stage_task

distil = stage_task("distil", "Distil one student from its teacher: the assistant's student, or a control.")
