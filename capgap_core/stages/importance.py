"""How much each head and neuron matters, the teacher reordered by it, and the plan at each scale."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from capgap_core import losses, models, plan, scoring, slimming, tables
from capgap_core.batches import Batch, Examples
from capgap_core.machine import ready
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Made, Reference
from capgap_core.shapes import AXES, Axis, Shape

EXAMPLES_AT_ONCE = 32


class Recipe(BaseModel):
    """What moves the importance and the plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    scales: tuple[float, ...]
    """The scales of the plan: the grid and the target."""
    batch_means: bool
    """The paper's way: absolute gradients of batch means, which depend on the batch size."""
    batch_size: int | None
    """Examples in a batch; null where it moves nothing but memory."""


def run(
    recipe: Recipe, inputs: Mapping[str, Input], out_dir: Path, *, execution: Execution, progress: Progress
) -> Made:
    """Write ``importance``, ``plan`` and ``model/``: the teacher with its units in descending importance."""
    data, teacher = inputs["data"], inputs["teacher"]
    assert isinstance(data, Reference)
    adapter = models.family(recipe.family)
    with ready(execution) as device:
        model = models.load(adapter, teacher)
        shape = adapter.shape_of(model.config)
        part = scoring.examples(data, "calibration")
        size = recipe.batch_size or EXAMPLES_AT_ONCE
        scores = importance(
            adapter,
            models.moved(model, device),
            part,
            shape,
            batch_size=size,
            batch_means=recipe.batch_means,
            progress=progress,
        )
        order: dict[Axis, np.ndarray] = {axis: plan.ranking(scores[axis]) for axis in AXES}
        model = models.moved(model, "cpu")
        slimming.reorder(
            adapter, model, shape, {(i, axis): order[axis][i] for axis in AXES for i in range(shape.layers)}
        )
    models.save(model, models.model_folder(teacher), out_dir / "model")
    plans = {scale: plan.kept_at(scale, scores, shape) for scale in recipe.scales}
    tables.write(out_dir / "plan.parquet", "plan", plan.rows_of(plans, shape))
    tables.write(out_dir / "importance.parquet", "importance", _rows(scores, order))
    achieved = {str(scale): plan.achieved_scale(adapter, shape, kept) for scale, kept in plans.items()}
    return Made(summary={"achieved": achieved, "examples": len(part), "shape": shape.stated()})


def importance(
    adapter: ModuleType, model: nn.Module, part: Examples, shape: Shape, *, batch_size: int, batch_means: bool,
    progress: Progress, axes: Sequence[Axis] = AXES,
) -> dict[Axis, np.ndarray]:  # fmt: skip
    """Return axis → ``(layers, units)``: the mean over examples of |dL/dgate|, fp32, in evaluation mode.

    Those of hidden are ``(1, hidden)``, those of layers ``(layers, 1)``.

    Each example has gates of its own, all one, so that one backward pass gives every example's gradient and the
    result does not depend on the batch size. ``batch_means`` takes the mean over batches of |dL_batch/dgate|
    instead, which is what the released code does. L is the task loss (MiniDisc, Specification).
    """
    model.eval().requires_grad_(False)
    device = next(model.parameters()).device
    totals = {
        (i, axis): torch.zeros(shape.units(axis), dtype=torch.float64) for axis in axes for i in range(shape.sets(axis))
    }
    done, count = 0, 0
    for batch in part.in_order(batch_size):
        for key, gradient in _gradients(adapter, model, batch.to(device), shape, axes, batch_means).items():
            totals[key] += gradient.abs().sum(dim=0).double().cpu()
        count += 1 if batch_means else len(batch.index)
        done += len(batch.index)
        progress.update(done, len(part), "examples scored")
    return {axis: np.stack([(totals[i, axis] / count).numpy() for i in range(shape.sets(axis))]) for axis in axes}


def _gradients(
    adapter: ModuleType, model: nn.Module, batch: Batch, shape: Shape, axes: Sequence[Axis], batch_means: bool
) -> dict[tuple[int, Axis], torch.Tensor]:
    """Return (layer, axis) → ``(n, units)`` gradients of each example's loss, or ``(1, units)`` of their mean."""
    n = len(batch.index)
    gates: dict[tuple[int, Axis], torch.Tensor] = {
        (i, axis): torch.ones(n, shape.units(axis), device=batch.labels.device, requires_grad=True)
        for axis in axes
        for i in range(shape.sets(axis))
    }
    with slimming.gated(adapter, model, shape, gates):
        logits = model(**batch.named(adapter.INPUTS)).logits
    if batch.labels.is_floating_point():
        total = losses.squared_error(logits, batch.labels[:, None])
    else:
        total = losses.cross_entropy(logits, batch.labels)
    found = torch.autograd.grad(total, list(gates.values()))
    by_key = dict(zip(gates, found, strict=True))
    return {key: g.mean(dim=0, keepdim=True) for key, g in by_key.items()} if batch_means else by_key


def _rows(scores: Mapping[Axis, np.ndarray], order: Mapping[Axis, np.ndarray]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for axis in AXES:
        for layer in range(len(order[axis])):
            for rank, unit in enumerate(order[axis][layer]):
                value = float(scores[axis][layer, unit])
                rows.append({"layer": layer, "axis": axis, "unit": int(unit), "score": value, "rank": rank})
    return sorted(rows, key=lambda r: (r["layer"], r["axis"], r["unit"]))
