"""Plans that take width and depth away, too, from a language model that is cut as a whole (MiniMA, sparse MiniLM).

A matrix between the stream and heads or neurons is cut on both sides: where a share s = 1 - p of it is to stay, each
side keeps √s, and so loses p' = 1 - √(1 - p). The released code (``run_sparsification_llama.py``) rounds p' to whole
per cent, and beyond p' = 90% takes neurons in place of heads; here it is neither rounded nor shifted.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from capgap_core import plan
from capgap_core.shapes import AXES, Axis, Kept, Shape

Place = Literal["first", "last", "ends", "spread"]
"""Where layers go, by their place."""


def share(scale: float, *, depth: float = 1.0) -> float:
    """Return what hidden, heads and neurons each keep, so that ``scale`` of the prunable parameters stays in all.

    Parameters
    ----------
    scale
        Of all prunable parameters, in (0, 1].
    depth
        The share of the layers that stay, which need the less of their width to go.

    Raises
    ------
    ValueError
        The layers that stay are too few for that scale.
    """
    if not 0 < scale <= depth:
        raise ValueError(f"{depth:.4g} of the layers hold at most that share of the parameters, not {scale:g}.")
    return math.sqrt(scale / depth)


def kept_at(
    scale: float, scores: Mapping[Axis, np.ndarray], shape: Shape, *, layers: Sequence[int] | None = None
) -> Kept:
    """Return what stays of width, heads, neurons and layers at a scale.

    Heads and neurons go as in ``plan.kept_at``, of all layers that stay together, down to the ``share`` of each;
    the width, of which there is one for all layers, goes down to the same share.

    Parameters
    ----------
    scores
        Axis → scores, ``(layers, units)``; those of hidden ``(1, hidden)``. What stays is a prefix of the units, so
        the model has to be reordered by them (``order``).
    layers
        The numbers of the layers that stay; null: all.

    Raises
    ------
    ValueError
        The layers that stay are too few for that scale.
    """
    stay = sorted(range(shape.layers) if layers is None else set(layers))
    each = share(scale, depth=len(stay) / shape.layers)
    kept = {axis: _spread(plan.counts(axis, scores[axis][stay], each), stay, shape.layers) for axis in AXES}
    kept["hidden"] = plan.counts("hidden", scores["hidden"], each)
    return kept if layers is None else {**kept, "layers": _spread([1] * len(stay), stay, shape.layers)}


def order(scores: Mapping[Axis, np.ndarray]) -> dict[tuple[int, Axis], np.ndarray]:
    """Return (layer, axis) → units by descending score, for ``slimming.reorder``; layers keep their places."""
    found: dict[tuple[int, Axis], np.ndarray] = {}
    for axis, table in scores.items():
        if axis != "layers":
            found |= {(layer, axis): units for layer, units in enumerate(plan.ranking(table))}
    return found


def _spread(counts: Sequence[int], stay: Sequence[int], layers: int) -> list[int]:
    """Return the counts of layers that stay at their places, and 0 at those of the others."""
    found = dict(zip(stay, counts, strict=True))
    return [found.get(layer, 0) for layer in range(layers)]


def layers_by_score(scores: np.ndarray, count: int) -> list[int]:
    """Return the ``count`` layers of the highest scores ``(layers, 1)``, in their order; the earlier of equal ones."""
    return sorted(np.argsort(-scores[:, 0], kind="stable")[:count].tolist())


def layers_by_place(place: Place, count: int, *, of: int) -> list[int]:
    """Return ``count`` layers of ``of``, in their order.

    ``first`` and ``last`` name those that stay. ``ends`` takes as many from the bottom as from the top, or one more
    from the top, as MiniMA did (24 of 32: the fifth to the 28th). ``spread`` keeps the first and the last, and between
    them every so many.
    """
    if place == "spread":
        return sorted({round(i) for i in np.linspace(0, of - 1, count)})
    start = {"first": 0, "last": of - count, "ends": (of - count) // 2}[place]
    return list(range(start, start + count))
