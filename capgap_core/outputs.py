"""What a model says of a batch: computed row by row where its family can on this device, else as transformers does."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
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
    if device.type == "cpu" and adapter.rows.fits(model):
        return ByRows(adapter.rows, model, machine.KINDS[dtype])
    return Stock(model, dtype, device)


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

    def __init__(self, model: PreTrainedModel, dtype: Precision, device: torch.device) -> None:
        self._model, self._device = model, device
        self._dtype: Precision = dtype

    def look_up(self, batch: Batch) -> Tensor:
        """Return the word embeddings, ``(n, t, h)``."""
        return self._model.get_input_embeddings()(batch.input_ids)

    def __call__(
        self, batch: Batch, *, weights: Mapping[str, Tensor] | None = None, words: Tensor | None = None
    ) -> Output:
        """Return what the model says."""
        inputs = {**batch.inputs, "output_hidden_states": True}
        if words is not None:
            inputs = {**inputs, "inputs_embeds": words}
            del inputs["input_ids"]
        if batch.attention_mask.is_floating_point():  # transformers takes 1 and 0, or what is to be added to scores
            n, t = batch.attention_mask.shape
            bias = batch.attention_mask.log().to(machine.KINDS[self._dtype])
            inputs["attention_mask"] = bias[:, None, None, :].expand(n, 1, t, t)
        with machine.autocast(self._device, self._dtype):
            said = functional_call(self._model, dict(weights or {}), args=(), kwargs=inputs)
        return Output(hidden=tuple(batch.rows(state) for state in said.hidden_states), logits=said.logits)
