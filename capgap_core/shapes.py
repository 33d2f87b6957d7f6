"""What a family adapter says of its models: which projections hold which units, and the sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Axis = Literal["heads", "neurons"]
AXES: tuple[Axis, ...] = ("heads", "neurons")
Kept = Mapping[str, Sequence[int]]
"""Axis → how many units each layer keeps."""


@dataclass(frozen=True)
class Projection:
    """A linear layer one side of which consists of prunable units."""

    name: str
    """Its name in the model, with ``{layer}`` for the layer's number."""
    axis: Axis
    side: Literal["in", "out"]
    """``out``: rows of the weight, and the bias, are units; ``in``: columns of the weight are."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of an encoder that pruning and FLOPs need."""

    layers: int
    heads: int
    head_size: int
    neurons: int
    hidden: int
    labels: int

    def units(self, axis: Axis) -> int:
        """Return how many units of an axis a full layer has."""
        return self.heads if axis == "heads" else self.neurons

    def width(self, axis: Axis) -> int:
        """Return how many rows or columns of a projection one unit takes."""
        return self.head_size if axis == "heads" else 1

    def full(self) -> dict[str, list[int]]:
        """Return what a model keeps that has not been slimmed."""
        return {axis: [self.units(axis)] * self.layers for axis in AXES}
