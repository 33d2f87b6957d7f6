"""Make a model smaller: reorder its units, take prefixes of them, and gate them to see what they do."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from capgap_core import stream
from capgap_core.shapes import AXES, Axis, Kept, Projection, Shape


def reorder(family: ModuleType, model: nn.Module, shape: Shape, order: Mapping[tuple[int, Axis], np.ndarray]) -> None:
    """Permute the units of each layer in place, so that what matters most comes first; the function stays.

    Parameters
    ----------
    order
        (layer, axis) → the old number of each unit, ``(units,)``, in the new order; of hidden, where it is there, at
        layer 0.
    """
    state = model.state_dict()
    with torch.no_grad():
        for layer in range(shape.layers):
            for p in family.PROJECTIONS:
                units = torch.as_tensor(order[layer, p.axis], dtype=torch.long)
                for _, tensor, dim in _tensors(p, state, layer):
                    whole = _by_unit(p, tensor, shape, dim)
                    whole.copy_(whole.index_select(dim + 1, units.to(whole.device)))
        if (0, "hidden") in order:
            stream.check(family, {"hidden": ()})
            stream.reorder(family, state, shape, torch.as_tensor(order[0, "hidden"], dtype=torch.long))


def prefix(family: ModuleType, state: Mapping[str, Tensor], shape: Shape, kept: Kept) -> dict[str, Tensor]:
    """Return the tensors of the projections, cut to the prefix that is kept: views of those in ``state``, if possible.

    Where the parts of a fused projection lie apart (``Projection.apart``), what is kept of them is joined in a copy.
    """
    return {name: part.flatten(dim, dim + 2) for name, part, dim in _prefixes(family, state, shape, kept)}


def _prefixes(
    family: ModuleType, state: Mapping[str, Tensor], shape: Shape, kept: Kept
) -> Iterator[tuple[str, Tensor, int]]:
    """Yield name, view and dimension of what is kept of each tensor of the projections, split as ``_by_unit`` does."""
    for layer in range(shape.layers):
        for p in family.PROJECTIONS:
            for name, tensor, dim in _tensors(p, state, layer):
                yield name, _by_unit(p, tensor, shape, dim).narrow(dim + 1, 0, kept[p.axis][layer]), dim


def _tensors(p: Projection, state: Mapping[str, Tensor], layer: int) -> Iterator[tuple[str, Tensor, int]]:
    """Yield name and tensor of a projection's weight, and of its bias where it belongs to units, and their dimension.

    The dimension is that along which units lie.
    """
    name = p.name.format(layer=layer)
    yield f"{name}.weight", state[f"{name}.weight"], p.dim
    if p.side == "out" and f"{name}.bias" in state:
        yield f"{name}.bias", state[f"{name}.bias"], 0


def _by_unit(p: Projection, tensor: Tensor, shape: Shape, dim: int) -> Tensor:
    """Return a view of a tensor in which the dimension of units is three: blocks, units, and what one takes in each."""
    width, blocks = shape.width(p), p.parts if p.apart else 1
    return tensor.unflatten(dim, (blocks, tensor.shape[dim] // width, width // blocks))


class Prefixes:
    """The sub-networks of one model, which share its weights as prefixes, for one optimizer step after another.

    A sub-network gets its prefixes as leaves of their own, whose gradients ``settle`` adds to those of the shared
    weights: through a slice, autograd would fill a gradient of the full size for every sub-network and weight.
    """

    def __init__(self, family: ModuleType, model: nn.Module, shape: Shape, plans: Mapping[float, Kept]) -> None:
        if any(not set(kept) <= set(AXES) for kept in plans.values()):
            raise ValueError(
                f"Sub-networks share the width and the layers of their model; pruned are {', '.join(AXES)}."
            )
        self._family, self._shape, self._plans = family, shape, plans
        parameters = dict(model.named_parameters())
        names = prefix(family, parameters, shape, shape.full())
        self._shared = {name: parameters[name] for name in names}
        self._now: dict[str, Tensor] = {}

    def begin(self, dtype: torch.dtype) -> None:
        """Take the weights as they are now, cast once for all sub-networks, and give each a gradient to add to."""
        self._now = {name: p.detach().to(dtype) for name, p in self._shared.items()}
        for p in self._shared.values():
            if p.grad is None:
                p.grad = torch.zeros_like(p)

    def of(self, scale: float) -> dict[str, Tensor]:
        """Return the leaves of one sub-network, by the names of the weights that they stand for."""
        cut = prefix(self._family, self._now, self._shape, self._plans[scale])
        return {name: tensor.detach().requires_grad_() for name, tensor in cut.items()}

    def settle(self, scale: float, leaves: Mapping[str, Tensor]) -> None:
        """Add the gradients of a sub-network's leaves to those of the shared weights."""
        gradients = {name: p.grad for name, p in self._shared.items() if p.grad is not None}
        for name, whole, _ in _prefixes(self._family, gradients, self._shape, self._plans[scale]):
            part = leaves[name].grad
            if part is not None:
                whole.add_(part.reshape(whole.shape))


def slim(family: ModuleType, model: PreTrainedModel, shape: Shape, kept: Kept) -> PreTrainedModel:
    """Return a model that is really smaller: the prefix of each layer's units, and all of the rest.

    Of the width the prefix that ``kept`` says, and of the layers those it says (``capgap_core/axes.py``).
    """
    stream.check(family, kept)
    small = family.slimmed(model, kept)
    state = model.state_dict()
    cut = stream.cut(family, {**state, **prefix(family, state, shape, kept)}, shape, kept)
    small.load_state_dict({name: tensor.clone() for name, tensor in cut.items()})
    if model.can_generate():
        small.generation_config = copy.deepcopy(model.generation_config)
    return small


@contextmanager
def gated(
    family: ModuleType, model: nn.Module, shape: Shape, gates: Mapping[tuple[int, Axis], Tensor]
) -> Iterator[None]:
    """Multiply each unit's output by its gate while the context lasts.

    Parameters
    ----------
    gates
        (layer, axis) → ``(batch, units)`` or ``(units,)``: a gate for each example and unit, or one for all
        examples. Heads are gated before the output projection, neurons after the activation (MiniDisc), or after the
        product with the other half where the activation is a gate (MiniMA); hidden, at layer 0, wherever something is
        added to the residual stream (``stream.gate_width``), layers where they add to it.
    """
    stream.check(family, {axis: () for _, axis in gates})
    modules = dict(model.named_modules())
    handles: list[RemovableHandle] = []
    for (layer, axis), gate in gates.items():
        if axis == "hidden":
            handles += stream.gate_width(family, modules, shape, gate)
            continue
        if axis == "layers":
            handles += stream.gate_layer(family, modules, layer, gate)
            continue
        (projection,) = [p for p in family.PROJECTIONS if p.axis == axis and p.side == "in"]
        width = shape.width(projection)
        module = modules[projection.name.format(layer=layer)]
        handles.append(module.register_forward_pre_hook(_hook(gate, width)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(gate: Tensor, width: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def multiply(_module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        wide = gate.repeat_interleave(width, dim=-1)
        return (arguments[0] * (wide[:, None, :] if wide.dim() == 2 else wide), *arguments[1:])

    return multiply
