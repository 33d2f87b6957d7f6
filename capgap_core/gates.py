"""How much each unit of a model matters: slopes of the loss at gates, and what an importance stage makes of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from capgap_core import models, plan, slimming, tables
from capgap_core.axes import kept_at as kept_with_width, order as units_by_score
from capgap_core.shapes import AXES, Axis, Shape

Slopes = dict[tuple[int, Axis], Tensor]
"""(layer, axis) → ``(n, units)``."""
Scores = dict[Axis, np.ndarray]
"""Axis → ``(layers, units)``; of hidden ``(1, hidden)``, of layers ``(layers, 1)``."""


def slopes(
    adapter: ModuleType, model: torch.nn.Module, shape: Shape, n: int, total: Callable[[], Tensor], *,
    device: torch.device, axes: Sequence[Axis] = AXES,
) -> Slopes:  # fmt: skip
    """Return the gradient of each example's loss for gates of its own, all one: one backward pass gives all of them.

    Parameters
    ----------
    n
        Examples of the batch.
    total
        Computes the sum of their losses with the model.
    """
    gates: Slopes = {
        (i, axis): torch.ones(n, shape.units(axis), device=device, requires_grad=True)
        for axis in axes
        for i in range(shape.sets(axis))
    }
    with slimming.gated(adapter, model, shape, gates):
        lost = total()
    return dict(zip(gates, torch.autograd.grad(lost, list(gates.values())), strict=True))


def mean_size(shape: Shape, found: Iterable[tuple[Slopes, int]], *, axes: Sequence[Axis] = AXES) -> Scores:
    """Return the sum of absolute slopes over all that was found, divided by the sum of the counts beside them."""
    totals = {
        (i, axis): torch.zeros(shape.units(axis), dtype=torch.float64) for axis in axes for i in range(shape.sets(axis))
    }
    count = 0
    for held, more in found:
        for key, gradient in held.items():
            totals[key] += gradient.abs().sum(dim=0).double().cpu()
        count += more
    return {axis: np.stack([(totals[i, axis] / count).numpy() for i in range(shape.sets(axis))]) for axis in axes}


def write(
    adapter: ModuleType, model: PreTrainedModel, scores: Scores, scales: Sequence[float], *, words: Path, out_dir: Path
) -> dict[str, object]:
    """Write ``importance``, ``plan`` and ``model/``, the model with its units in descending importance.

    Parameters
    ----------
    scores
        Of heads and neurons, and of hidden, too, where the plans are to take width away (``capgap_core/axes.py``).
    words
        The folder with the tokenizer of the model.

    Returns
    -------
        For the summary: the scale that each plan achieves, and the sizes of the model.
    """
    shape = adapter.shape_of(model.config)
    order: dict[Axis, np.ndarray] = {axis: plan.ranking(scores[axis]) for axis in scores}
    model = models.moved(model, "cpu")
    slimming.reorder(adapter, model, shape, units_by_score(scores))
    models.save(model, words, out_dir / "model")
    kept_at = kept_with_width if "hidden" in scores else plan.kept_at
    plans = {scale: kept_at(scale, scores, shape) for scale in scales}
    tables.write(out_dir / "plan.parquet", "plan", plan.rows_of(plans, shape))
    tables.write(out_dir / "importance.parquet", "importance", rows(scores, order))
    achieved = {str(scale): plan.achieved_scale(adapter, shape, kept) for scale, kept in plans.items()}
    return {"achieved": achieved, "shape": shape.stated()}


def rows(scores: Mapping[Axis, np.ndarray], order: Mapping[Axis, np.ndarray]) -> list[dict[str, object]]:
    """Return the rows of the table ``importance``, sorted.

    Parameters
    ----------
    order
        Axis → ``(layers, units)``: the units of each layer, in descending score.
    """
    found: list[dict[str, object]] = []
    for axis in order:
        for layer in range(len(order[axis])):
            for rank, unit in enumerate(order[axis][layer]):
                value = float(scores[axis][layer, unit])
                found.append({"layer": layer, "axis": axis, "unit": int(unit), "score": value, "rank": rank})
    return sorted(found, key=lambda r: (r["layer"], r["axis"], r["unit"]))
