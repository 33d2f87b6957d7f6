"""All candidates and the target trained at once, as prefixes of shared weights (MiniDisc, Optimization)."""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from capgap_core import checkpoints, models, scoring, slimming, steps, tables, teaching
from capgap_core.distillation import Distillation, Objective
from capgap_core.kept_outputs import Kind
from capgap_core.machine import ready
from capgap_core.outputs import computed
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Made, Reference
from capgap_core.training import Training, train


class Recipe(BaseModel):
    """What moves the shared weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    scales: tuple[float, ...]
    """The candidates and the target, from large to small."""
    mode: Literal["all", "sampled"]
    random: int
    objective: Objective
    keep: Kind | None
    """The type in which the teacher's hidden states are kept, to be asked for once; null: at every step."""
    training: Training


def run(
    recipe: Recipe, inputs: Mapping[str, Input], out_dir: Path, *, execution: Execution, progress: Progress
) -> Made:
    """Write ``model/`` (the shared weights), ``plan`` and ``steps``."""
    data, start = inputs["data"], inputs["importance"]
    assert isinstance(data, Reference)
    assert isinstance(start, Reference)
    adapter, training = models.family(recipe.family), recipe.training
    with ready(execution, seed=training.seed) as device:
        model = models.moved(models.load(adapter, start), device)
        shape = adapter.shape_of(model.config)
        prefixes = slimming.Prefixes(adapter, model, shape, models.plans_of(start))
        examples = scoring.examples(data, "train")
        ask = teaching.asked(
            recipe.family, inputs["teacher"], examples, training, keep=recipe.keep, execution=execution,
            progress=progress,
        )  # fmt: skip
        regression = data.summary["task"] == "regression"
        loss = Distillation(ask, layers=shape.layers, regression=regression, objective=recipe.objective)
        way = computed(adapter, model, training.dtype, device)
        loss_of = loss.sandwich_of(way, prefixes, _drawn(recipe), dtype=training.dtype)
        keeper = checkpoints.beside(out_dir, execution, progress)
        log = steps.Log(out_dir / "steps.parquet", training.steps, progress)
        model.train()
        taken = train(model, examples, training, loss_of, device=device, stage="sandwich", keeper=keeper)
        done, tokens = log.follow(taken)
        models.save(models.moved(model.eval(), "cpu"), models.model_folder(start), out_dir / "model")
    kept = [row for row in tables.read(start.table("plan")) if row["scale"] in recipe.scales]
    tables.write(out_dir / "plan.parquet", "plan", kept)
    summary = {"scales": list(recipe.scales), **steps.padded(training, done, tokens)}
    return Made(summary=summary, steps_trained=done, tokens=tokens, resumed=keeper.resumed)


def _drawn(recipe: Recipe) -> Callable[[int], Sequence[float]]:
    """Return step → its scales: all, or the largest, the smallest and some drawn between them.

    A function of the step alone, so that its micro-batches train the same sub-networks.
    """
    between = recipe.scales[1:-1]
    if recipe.mode == "all" or len(between) <= recipe.random:
        return lambda _step: recipe.scales

    def of(step: int) -> Sequence[float]:
        draw = random.Random(f"{recipe.training.seed} {step}")
        return (recipe.scales[0], *sorted(draw.sample(between, recipe.random), reverse=True), recipe.scales[-1])

    return of
