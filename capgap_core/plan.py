"""Decide how many heads and neurons each layer keeps at a scale (MiniDisc, Specification)."""

from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from capgap_core.shapes import AXES, EVERY, Axis, Kept, Shape

MULTIPLE = 8
"""Kept neurons and hidden dimensions are rounded to multiples of this, as in the released code."""


def normalise(scores: np.ndarray) -> np.ndarray:
    """Return scores ``(layers, units)`` divided by each layer's L2 norm; a layer of zeros stays zero."""
    norms = np.linalg.norm(scores, axis=1, keepdims=True)
    return np.divide(scores, norms, out=np.zeros_like(scores), where=norms > 0)


def ranking(scores: np.ndarray) -> np.ndarray:
    """Return for each layer the units in descending score; equal scores keep their order."""
    return np.argsort(-scores, axis=1, kind="stable")


def kept_at(scale: float, scores: Mapping[Axis, np.ndarray], shape: Shape) -> dict[str, list[int]]:
    """Return how many units each layer keeps at a scale.

    For each axis alone, the ``round((1 - scale) * total)`` units of the lowest normalised score in all layers
    together go; neurons are then rounded to the nearest multiple of 8 in each layer. At least one head and one
    multiple of neurons stay in the model. A layer may lose all of an axis: the residual path remains.
    """
    return {axis: counts(axis, scores[axis], scale) for axis in AXES}


def counts(axis: Axis, scores: np.ndarray, share: float) -> list[int]:
    """Return how many units each set keeps where a share of all of them stays; see ``kept_at``.

    Parameters
    ----------
    scores
        ``(sets, units)``: of hidden one set, of the other axes one for each layer.
    """
    table = normalise(scores)
    sets, units = table.shape
    gone = min(round((1.0 - share) * table.size), table.size - 1)
    lowest = np.argsort(table, axis=None, kind="stable")[:gone]
    left = units - np.bincount(lowest // units, minlength=sets)
    return left.tolist() if axis == "heads" else _to_multiples(left, units)


def _to_multiples(exact: np.ndarray, units: int) -> list[int]:
    step = min(MULTIPLE, units)
    rounded = np.minimum(np.floor(exact / step + 0.5).astype(int) * step, units)
    if not rounded.any():
        rounded[int(np.argmax(exact))] = step
    return rounded.tolist()


def prunable(family: ModuleType, shape: Shape, kept: Kept) -> int:
    """Return the parameters in heads and neurons: projections' weights, and the biases of their units."""
    shape, kept = shape.cut(kept)
    return sum((shape.hidden * shape.width(p) + shape.biases(p)) * sum(kept[p.axis]) for p in family.PROJECTIONS)


def achieved_scale(family: ModuleType, shape: Shape, kept: Kept) -> float:
    """Return the share of the prunable parameters that is really kept."""
    return prunable(family, shape, kept) / prunable(family, shape, shape.full())


def rows_of(plans: Mapping[float, Kept], shape: Shape) -> list[dict[str, Any]]:
    """Return the rows of the table ``plan``, sorted."""
    return [
        {"scale": scale, "layer": layer, "axis": axis, "kept": count, "of": shape.units(axis)}
        for scale, kept in sorted(plans.items())
        for axis in EVERY
        if axis in kept
        for layer, count in enumerate(kept[axis])
    ]


def from_rows(rows: Iterable[Mapping[str, Any]]) -> dict[float, dict[str, list[int]]]:
    """Return scale → axis → kept units of each layer from rows of the table ``plan``."""
    plans: dict[float, dict[str, list[int]]] = {}
    for row in sorted(rows, key=lambda r: (r["scale"], r["axis"], r["layer"])):
        plans.setdefault(row["scale"], {axis: [] for axis in AXES}).setdefault(row["axis"], []).append(row["kept"])
    return plans


def scores_from_rows(rows: Sequence[Mapping[str, Any]], shape: Shape) -> dict[Axis, np.ndarray]:
    """Return axis → ``(layers, units)`` scores from rows of the table ``importance``."""
    axes: dict[Axis, None] = dict.fromkeys((*AXES, *(row["axis"] for row in rows)))
    scores: dict[Axis, np.ndarray] = {axis: np.zeros((shape.sets(axis), shape.units(axis))) for axis in axes}
    for row in rows:
        scores[row["axis"]][row["layer"], row["unit"]] = row["score"]
    return scores
