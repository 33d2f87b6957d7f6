"""Slices of a language model over heads, neurons and width: how large each is, and which comes nearest to a size.

The scales that are planned are the same for every model, so that its units are scored once, whatever students are
asked for. Depth stays.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from transformers import PreTrainedModel

from capgap_core import axes, lm_model, slimming, stream
from capgap_core.shapes import AXES, Axis, Kept

SLICED: tuple[Axis, ...] = (*AXES, "hidden")
"""What goes."""
SCALES = tuple(round(2.0 ** (-i / 24), 6) for i in range(1, 193))
"""Shares of the prunable parameters, from 0.97 to 1/256, each 3% below the one before."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """What a plan leaves of a model."""

    parameters: int
    """Outside the embeddings."""
    hidden: int
    """Its width."""


def slices(adapter: ModuleType, model: PreTrainedModel, plans: Mapping[float, Kept]) -> dict[float, Slice]:
    """Return scale → what its plan leaves of a model, which may have no weights (on ``meta``)."""
    shape = adapter.shape_of(model.config)
    state = {name: tensor.detach().to("meta") for name, tensor in lm_model.inside(model).items()}
    found = {}
    for scale, kept in plans.items():
        cut = stream.cut(adapter, {**state, **slimming.prefix(adapter, state, shape, kept)}, shape, kept)
        left = sum(tensor.numel() for tensor in cut.values())
        found[scale] = Slice(parameters=left, hidden=shape.cut(kept)[0].hidden)
    return found


def foreseen(adapter: ModuleType, model: PreTrainedModel) -> dict[float, Slice]:
    """Return scale → about what is left of a model whose units have not been scored: as if all were worth the same.

    How many units stay does not depend on their scores, but for how the neurons of each layer are rounded.
    """
    shape = adapter.shape_of(model.config)
    scores: dict[Axis, np.ndarray] = {axis: np.ones((shape.sets(axis), shape.units(axis))) for axis in SLICED}
    return slices(adapter, model, {scale: axes.kept_at(scale, scores, shape) for scale in SCALES})


def nearest(sizes: Mapping[float, int], wanted: int, *, whole: int) -> float:
    """Return the scale whose parameters come nearest to a size, in the logarithm; of equal ones the smallest.

    Parameters
    ----------
    whole
        Parameters of the model: at the largest scales a small one loses none, and that is no slice.
    """
    smaller = sorted(scale for scale, size in sizes.items() if size < whole)
    return min(smaller, key=lambda scale: abs(math.log(sizes[scale] / wanted)))
