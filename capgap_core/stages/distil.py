"""Distil one student from one teacher: the student through its assistant, or a control."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from capgap_core import checkpoints, models, plan, scoring, steps, tables, teaching
from capgap_core.distillation import Distillation, Objective
from capgap_core.kept_outputs import Kind
from capgap_core.machine import ready
from capgap_core.mixup import Mixtures, Mixup, Pupil
from capgap_core.outputs import computed
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Made, ModelInput, Reference
from capgap_core.training import Training, train


class Recipe(BaseModel):
    """What moves a student, beside its teacher and its initial weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    objective: Objective
    keep: Kind | None
    """The type in which the teacher's hidden states are kept, to be asked for once; null: at every step."""
    mixup: Mixup | None = None
    """Mixtures of examples that are learned from, too."""
    training: Training


def run(
    recipe: Recipe, inputs: Mapping[str, Input], out_dir: Path, *, execution: Execution, progress: Progress
) -> Made:
    """Write ``model/`` (the student, which loads without capgap), ``plan`` where it is slimmed, and ``steps``."""
    data, start = inputs["data"], inputs["start"]
    assert isinstance(data, Reference)
    assert isinstance(start, ModelInput)
    adapter, training = models.family(recipe.family), recipe.training
    with ready(execution, seed=training.seed) as device:
        student = models.moved(models.load(adapter, start), device)
        shape = adapter.shape_of(student.config)
        examples = scoring.examples(data, "train")
        asked, regression = recipe.objective, data.summary["task"] == "regression"
        ask = None
        if asked.hidden or asked.prediction:
            ask = teaching.asked(
                recipe.family, inputs["teacher"], examples, training, keep=recipe.keep, execution=execution,
                progress=progress, hidden=asked.hidden > 0.0,
            )  # fmt: skip
        loss = Distillation(ask, layers=shape.layers, regression=regression, objective=asked)
        way = computed(adapter, student, training.dtype, device)
        loss_of = loss.loss_of(way)
        if recipe.mixup is not None:
            held, their_way = teaching.frozen(recipe.family, inputs["teacher"], training, device)
            ours, theirs = Pupil.of(way, student, adapter.TYPES), Pupil.of(their_way, held, adapter.TYPES)
            loss_of = Mixtures(recipe.mixup, ours, theirs, loss, regression=regression).added_to(loss_of)
        keeper = checkpoints.beside(out_dir, execution, progress)
        log = steps.Log(out_dir / "steps.parquet", training.steps, progress)
        student.train()
        taken = train(
            student, examples, training, loss_of, device=device, stage="distil", keeper=keeper,
            fewest=2 if recipe.mixup else 1,
        )  # fmt: skip
        done, tokens = log.follow(taken)
        models.save(models.moved(student.eval(), "cpu"), models.model_folder(start), out_dir / "model")
    if start.scale is not None:
        kept = {start.scale: models.kept_of(start.reference, start.scale)}
        tables.write(out_dir / "plan.parquet", "plan", plan.rows_of(kept, shape))
    summary = {"scale": start.scale, **steps.padded(training, done, tokens)}
    return Made(summary=summary, steps_trained=done, tokens=tokens, resumed=keeper.resumed)
