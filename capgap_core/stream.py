"""The residual stream of a decoder: its width, which all layers share, and the layers that add to it (MiniMA).

One set of hidden dimensions goes through embeddings, everything that is added to the stream, norms and the head on
top. A norm of the smaller model knows only the dimensions that stay: it is the norm of a masked model that is taken
over these, and not over the masked ones as zeros. So it is in the released code, too (``modeling_sparsellama.py``).
"""

from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from capgap_core.shapes import AXES, Kept, Shape


def check(family: ModuleType, kept: Kept) -> None:
    """Refuse a family whose width and depth stay.

    Raises
    ------
    ValueError
        Such a family is asked for less of them.
    """
    if family.NORMS is None and not set(kept) <= set(AXES):
        raise ValueError(f"{family.__name__} keeps its width and its layers; pruned of it are {', '.join(AXES)}.")


def tensors(family: ModuleType, state: Mapping[str, Tensor], shape: Shape) -> dict[str, int]:
    """Return name → dimension of every tensor that is as wide as the stream; tied ones by both their names."""
    layers = range(shape.layers)
    found = {f"{name}weight": 1 for name in family.EMBEDDINGS} | {f"{name}.weight": 1 for name in family.READERS}
    for name in {name.format(layer=i) for name in family.NORMS for i in layers}:
        found |= {f"{name}.weight": 0, f"{name}.bias": 0}
    for p in family.PROJECTIONS:
        names = [p.name.format(layer=i) for i in layers]
        found |= {f"{name}.weight": 1 - p.dim for name in names}
        found |= {f"{name}.bias": 0 for name in names if p.side == "in"}
    return {name: dim for name, dim in found.items() if name in state}


def reorder(family: ModuleType, state: Mapping[str, Tensor], shape: Shape, units: Tensor) -> None:
    """Permute the dimensions of the stream in place; ``units``, ``(hidden,)``, holds the old ones in the new order."""
    done: set[int] = set()
    for name, dim in tensors(family, state, shape).items():
        tensor = state[name]
        if tensor.data_ptr() not in done:  # embeddings that are the output matrix, too
            tensor.copy_(tensor.index_select(dim, units.to(tensor.device)))
        done.add(tensor.data_ptr())


def cut(family: ModuleType, state: Mapping[str, Tensor], shape: Shape, kept: Kept) -> dict[str, Tensor]:
    """Return the tensors of the width and the layers that stay, under the numbers that these then have."""
    state = dict(state)
    if "hidden" in kept:
        (width,) = kept["hidden"]
        state |= {name: state[name].narrow(dim, 0, width) for name, dim in tensors(family, state, shape).items()}
    if "layers" in kept:
        old = [family.LAYER.format(layer=i) for i in range(shape.layers)]
        stay = [name for name, here in zip(old, kept["layers"], strict=True) if here]
        number = dict(zip(stay, old, strict=False))
        rest = {name: tensor for name, tensor in state.items() if not name.startswith(tuple(old))}
        state = rest | {
            new + name.removeprefix(was): tensor
            for was, new in number.items()
            for name, tensor in state.items()
            if name.startswith(was)
        }
    return state


def gate_width(
    family: ModuleType, modules: Mapping[str, nn.Module], shape: Shape, gate: Tensor
) -> Iterator[RemovableHandle]:
    """Gate embeddings and all that is added to the stream; norms are taken over what has a gate other than 0.

    Parameters
    ----------
    gate
        ``(batch, hidden)`` or ``(hidden,)``.
    """
    for name in family.EMBEDDINGS:
        yield modules[name.removesuffix(".")].register_forward_hook(_times(gate))
    for layer in range(shape.layers):
        yield from gate_layer(family, modules, layer, gate)
    here = _beside(gate.detach() != 0)
    if not here.all():
        for name in {name.format(layer=i) for name in family.NORMS for i in range(shape.layers)}:
            yield modules[name].register_forward_hook(_over(here))


def gate_layer(
    family: ModuleType, modules: Mapping[str, nn.Module], layer: int, gate: Tensor
) -> Iterator[RemovableHandle]:
    """Gate what a layer adds to the stream; ``gate`` is ``(batch, 1)`` or ``(1,)`` for all dimensions alike."""
    for p in family.PROJECTIONS:
        if p.side == "in":
            yield modules[p.name.format(layer=layer)].register_forward_hook(_times(gate))


def _beside(gate: Tensor) -> Tensor:
    """Return a gate in the form that goes with states ``(batch, tokens, hidden)``."""
    return gate[:, None, :] if gate.dim() == 2 else gate


def _times(gate: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    return lambda _module, _inputs, output: output * _beside(gate)


def _over(here: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """Return a hook that takes a LayerNorm or an RMSNorm over some dimensions and leaves the others at 0."""

    def normed(module: Any, inputs: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        centred = isinstance(module, nn.LayerNorm)
        x, count = inputs[0] * here, here.sum(-1, keepdim=True)
        if centred:
            x = (x - x.sum(-1, keepdim=True) / count) * here
        eps = module.eps if centred else module.variance_epsilon
        x = x * torch.rsqrt(x.square().sum(-1, keepdim=True) / count + eps) * module.weight
        return (x + module.bias) * here if centred else x

    return normed
