"""What a model says of a batch: computed row by row where its family can on this device, else as transformers does."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from capgap_core import machine
from capgap_core.batches import Batch
from capgap_core.machine import Precision


@dataclass(frozen=True, kw_only=True)
class Output:
    """Hidden states and logits of a batch."""

    hidden: tuple[Tensor, ...]
    """The embeddings' and each layer's, as rows ``(r, h)``; what stands at padding is arbitrary."""
    logits: Tensor
    """``(n, c)``."""


@runtime_checkable
class Computed(Protocol):
    """A way to compute one model."""

    def look_up(self, batch: Batch) -> Tensor:
        """Return the word embeddings of a batch, for ``words``."""
        ...

    def __call__(
        self, batch: Batch, *, weights: Mapping[str, Tensor] | None = None, words: Tensor | None = None
    ) -> Output:
        """Return what the model says, with other weights in place of some of its own, or words that are looked up."""
        ...


def computed(adapter: ModuleType, model: PreTrainedModel, dtype: Precision, device: torch.device) -> Computed:
    """Return the fastest way to compute a model that lies on a device."""
    if device.type == "cpu" and adapter.rows is not None and adapter.rows.fits(model):
        return ByRows(adapter.rows, model, machine.KINDS[dtype])
    return Stock(adapter, model, dtype, device)


class ByRows:
    """As the family's module ``rows`` does: tokens one after the other, with room for the same number in each batch."""

    def __init__(self, family: ModuleType, model: PreTrainedModel, dtype: torch.dtype) -> None:
        self._family, self._model, self._dtype = family, model, dtype
        self._own = dict(model.named_parameters())

    def look_up(self, batch: Batch) -> Tensor:
        """Return the word embeddings of the rows, ``(r, h)``."""
        return self._family.look_up(self._model, self._own, batch)

    def __call__(
        self, batch: Batch, *, weights: Mapping[str, Tensor] | None = None, words: Tensor | None = None
    ) -> Output:
        """Return what the model says."""
        held = {**self._own, **weights} if weights else self._own
        return self._family.forward(self._model, held, batch, dtype=self._dtype, words=words)


class Stock:
    """As transformers does, under autocast."""

    def __init__(self, family: ModuleType, model: PreTrainedModel, dtype: Precision, device: torch.device) -> None:
        self._family, self._model, self._device = family, model, device
        self._dtype: Precision = dtype

    def look_up(self, batch: Batch) -> Tensor:
        """Return the word embeddings, ``(n, t, h)``."""
        return self._model.get_input_embeddings()(batch.input_ids)

    def __call__(
        self, batch: Batch, *, weights: Mapping[str, Tensor] | None = None, words: Tensor | None = None
    ) -> Output:
        """Return what the model says."""
        inputs = {**batch.named(self._family.INPUTS), "output_hidden_states": True}
        reading = nullcontext()
        if words is not None:
            inputs = {**inputs, "inputs_embeds": words}
            del inputs["input_ids"]
            if self._family.CAUSAL:
                reading = _read_at(self._model.get_submodule(self._family.HEAD.removesuffix(".weight")), batch.ends)
        if batch.attention_mask.is_floating_point():  # transformers takes 1 and 0, or what is to be added to scores
            inputs["attention_mask"] = self._added_to_scores(batch.attention_mask)
        with machine.autocast(self._device, self._dtype), reading:
            said = functional_call(self._model, dict(weights or {}), args=(), kwargs=inputs)
        return Output(hidden=tuple(batch.rows(state) for state in said.hidden_states), logits=said.logits)

    def _added_to_scores(self, mask: Tensor) -> Tensor:
        """Return what is added to the scores of an attention ``(n, 1, t, t)``, of how much each token counts."""
        n, t = mask.shape
        bias = mask.log().to(machine.KINDS[self._dtype])[:, None, None, :].expand(n, 1, t, t)
        return bias + torch.full((t, t), -torch.inf).triu(1).to(bias) if self._family.CAUSAL else bias


@contextmanager
def _read_at(head: nn.Module, ends: Tensor) -> Iterator[None]:
    """Have the head of a decoder see, at every token, what stands where the texts end.

    transformers looks for the end of a text in its token ids, and takes the end of the padding where words are given.
    """

    def read(_module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = arguments[0]
        return ((ends[:, :, None].to(states.dtype) * states).sum(dim=1, keepdim=True).expand_as(states),)

    handle = head.register_forward_pre_hook(read)
    try:
        yield
    finally:
        handle.remove()
