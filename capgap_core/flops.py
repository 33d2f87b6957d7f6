"""Sizes of a model: parameters, and the FLOPs of a forward pass and of training (one MAC is two FLOPs)."""

from types import ModuleType

from torch import nn

from capgap_core.shapes import Kept, Shape

BACKWARD = 2.0
"""A backward pass costs twice a forward pass: gradients of activations and of weights."""


def forward_flops(family: ModuleType, shape: Shape, kept: Kept, length: float) -> float:
    """Return the FLOPs of one example of ``length`` tokens: projections, attention and the head on top.

    Counted are matrix products only (2 · rows · columns each); look-ups, normalisation and activations are not. The
    products of queries and keys are counted whole, though a decoder has no use for half of them.
    """
    total, (shape, kept) = 0.0, shape.cut(kept)
    for layer in range(shape.layers):
        for p in family.PROJECTIONS:
            total += 2.0 * length * shape.hidden * kept[p.axis][layer] * shape.width(p)
        total += 2 * 2.0 * length**2 * kept["heads"][layer] * shape.group * shape.head_size
    return total + family.head_flops(shape, length)


def parameters(family: ModuleType, model: nn.Module) -> tuple[int, int]:
    """Return all parameters of a model, and those outside its embeddings."""
    named = list(model.named_parameters())
    every = sum(p.numel() for _, p in named)
    embedded = sum(p.numel() for name, p in named if name.startswith(family.EMBEDDINGS))
    return every, every - embedded


def megabytes(model: nn.Module) -> float:
    """Return the size of the weights as they are stored, in fp32, in 10^6 bytes."""
    return sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6


def step_flops(student: float, teacher: float) -> float:
    """Return the FLOPs of distilling on one example: the student forward and backward, the teacher forward.

    The teacher is charged for every example of every epoch, whether or not its outputs are kept.
    """
    return (1.0 + BACKWARD) * student + teacher
