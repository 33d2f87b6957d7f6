"""What a family adapter says of its models: which projections hold which units, and the sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

Axis = Literal["heads", "neurons", "hidden", "layers"]
AXES: tuple[Axis, ...] = ("heads", "neurons")
"""What MiniDisc prunes."""
EVERY: tuple[Axis, ...] = ("heads", "hidden", "layers", "neurons")
"""Whatever can be pruned; ``capgap_core/axes.py`` plans for width and depth, too."""
Kept = Mapping[str, Sequence[int]]
"""Axis → how many units each layer keeps. Of ``hidden`` there is one number for all layers; of ``layers`` one for
each, 1 or 0, and one that goes keeps nothing else. Where one of these two is missing, all of it stays."""
SLIMMED = "capgap_"
"""What the ``model_type`` of a slimmed model begins with."""


@dataclass(frozen=True)
class Projection:
    """A linear layer one side of which consists of prunable units."""

    name: str
    """Its name in the model, with ``{layer}`` for the layer's number."""
    axis: Axis
    side: Literal["in", "out"]
    """``out``: rows of the weight, and the bias where there is one, are units; ``in``: columns of the weight are."""
    shared: bool = False
    """Whether the query heads of a group have one part of it for all of them, as keys and values are."""
    parts: int = 1
    """Projections that it is fused of: 3 where queries, keys and values are one."""
    apart: bool = False
    """Whether the first parts of all units come before all second ones (GPT-2), or a unit's parts lie together."""
    transposed: bool = False
    """Whether inputs are the rows of its weight, as in the Conv1D of transformers."""

    @property
    def dim(self) -> int:
        """The dimension of the weight along which units lie."""
        return int((self.side == "in") != self.transposed)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a model that pruning and FLOPs need; ``Shape(**shape.stated())`` is the same."""

    layers: int
    heads: int
    """Of keys and values: what goes or stays is one of them with all query heads that it serves."""
    head_size: int
    neurons: int
    hidden: int
    labels: int
    """Numbers that a model answers with: of a language model its vocabulary."""
    group: int = 1
    """Query heads that share a head of keys and values."""
    head_biases: bool = True
    """Whether the projections to heads have biases."""
    neuron_biases: bool = True
    """The same of those to neurons."""

    def units(self, axis: Axis) -> int:
        """Return how many units of an axis a full layer has; all layers together have the hidden ones."""
        return {"heads": self.heads, "neurons": self.neurons, "hidden": self.hidden, "layers": 1}[axis]

    def sets(self, axis: Axis) -> int:
        """Return how many sets of units an axis has: one in each layer, or one for all of them."""
        return 1 if axis == "hidden" else self.layers

    def width(self, projection: Projection) -> int:
        """Return how many rows or columns of a projection one unit takes."""
        if projection.axis == "neurons":
            return 1
        return self.head_size * (1 if projection.shared else self.group) * projection.parts

    def biases(self, projection: Projection) -> int:
        """Return how many numbers of a projection's bias belong to one unit."""
        biased = self.head_biases if projection.axis == "heads" else self.neuron_biases
        return self.width(projection) if biased and projection.side == "out" else 0

    def full(self) -> dict[str, list[int]]:
        """Return what a model keeps that has not been slimmed."""
        return {axis: [self.units(axis)] * self.layers for axis in AXES}

    def cut(self, kept: Kept) -> tuple["Shape", Kept]:
        """Return the sizes that stay of width and depth, and what those layers keep of heads and neurons."""
        here = kept.get("layers", [1] * self.layers)
        left = {axis: [n for n, stays in zip(kept[axis], here, strict=True) if stays] for axis in AXES}
        return replace(self, layers=sum(here), hidden=kept.get("hidden", [self.hidden])[0]), left

    def stated(self) -> dict[str, Any]:
        """Return the sizes for a record, without those at their default: a new one does not move old identities."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
