"""Distil one student from one teacher: the student through its assistant, or a control."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from capgap_core import checkpoints, models, plan, scoring, steps, tables
from capgap_core.distillation import distillation
from capgap_core.machine import ready
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Made, ModelInput, Reference
from capgap_core.training import Training, train


class Recipe(BaseModel):
    """What moves a student, beside its teacher and its initial weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    temperature: float
    training: Training


def run(
    recipe: Recipe, inputs: Mapping[str, Input], out_dir: Path, *, execution: Execution, progress: Progress
) -> Made:
    """Write ``model/`` (the student, which loads without capgap), ``plan`` and ``steps``."""
    data, start = inputs["data"], inputs["start"]
    assert isinstance(data, Reference)
    assert isinstance(start, ModelInput)
    assert start.scale is not None
    adapter, training = models.family(recipe.family), recipe.training
    with ready(execution, seed=training.seed) as device:
        teacher = models.moved(models.load(adapter, inputs["teacher"]), device)
        student = models.moved(models.load(adapter, start), device)
        shape = adapter.shape_of(student.config)
        examples = scoring.examples(data, "train")
        loss = distillation(
            teacher, examples, training, layers=shape.layers, regression=data.summary["task"] == "regression",
            temperature=recipe.temperature, device=device, progress=progress,
        )  # fmt: skip
        loss_of = loss.loss_of(student)
        keeper = checkpoints.beside(out_dir, execution, progress)
        log = steps.Log(out_dir / "steps.parquet", training.steps, progress)
        student.train()
        taken = train(student, examples, training, loss_of, device=device, stage="distil", keeper=keeper)
        done, tokens = log.follow(taken)
        models.save(models.moved(student.eval(), "cpu"), models.model_folder(start), out_dir / "model")
    kept = {start.scale: models.kept_of(start.reference, start.scale)}
    tables.write(out_dir / "plan.parquet", "plan", plan.rows_of(kept, shape))
    return Made(summary={"scale": start.scale}, steps_trained=done, tokens=tokens, resumed=keeper.resumed)
