"""Prefect task: fine-tune the teacher, train it from scratch, or accept it as it is."""

from tasks.stage_task import stage_task

teacher = stage_task(
    "teacher",
    "Fine-tune what is given, train the small default from scratch, or accept a teacher that is fine-tuned already.",
)
