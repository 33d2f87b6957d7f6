"""What a language model learns from: the text, a teacher's predictions, or both; and what it loses on held-out text."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from capgap_core.lm_batches import LmBatch, LmRows
from capgap_core.lm_model import said
from capgap_core.lm_recipes import LmObjective
from capgap_core.machine import KINDS, Precision
from capgap_core.training import LossOf, Term
from capgap_core.vocabulary_losses import linear_cross_entropy, linear_divergence, linear_reverse_divergence
from capgap_core.vocabulary_sums import LOGITS, Head
from capgap_core.vocabulary_targets import Known

BATCH = 16
"""Rows that are measured at once."""
ALL = -1
"""Stands for all sources."""

AskLm = Callable[[LmBatch], Head | Tensor | Known]
"""What a teacher says of a batch: its last hidden states with its output matrix, its logits, or some of them."""


def loss_of(model: PreTrainedModel, ask: AskLm | None, objective: LmObjective, *, dtype: Precision) -> LossOf:
    """Return the loss of a model; each term is a sum over the targets that count.

    Parameters
    ----------
    ask
        The teacher, which gets no gradient; null where nothing is learned from it.
    dtype
        Of all products, those with the output matrices among them.
    """
    products = KINDS[dtype] if dtype == "bfloat16" else None

    def terms(batch: LmBatch, _step: int) -> Iterator[list[Term]]:
        own = said(model, batch, dtype=dtype)
        found: list[Term] = []
        if objective.labels:
            total = linear_cross_entropy(
                own.hidden, own.weight, batch.targets, keep=batch.keep, bias=own.bias, products=products
            )
            found.append(Term(name="cross_entropy", total=total, per="tokens", weight=objective.labels))
        if objective.prediction and ask is not None:
            with torch.no_grad():
                theirs = ask(batch)
            total = _between(own, theirs, batch.keep, objective, products)
            found.append(Term(name="prediction", total=total, per="tokens", weight=objective.prediction))
        yield found

    return terms


def _between(
    own: Head, theirs: Head | Tensor | Known, keep: Tensor, objective: LmObjective, products: torch.dtype | None
) -> Tensor:
    how = {"keep": keep, "bias": own.bias, "temperature": objective.temperature, "products": products}
    if objective.divergence == "forward":
        return linear_divergence(own.hidden, own.weight, theirs, **how)
    if isinstance(theirs, Known):
        raise ValueError("the reverse divergence takes all of a teacher's prediction")
    return linear_reverse_divergence(own.hidden, own.weight, theirs, **how)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What a model loses on a part that it did not learn from."""

    nats: float
    """For a token."""
    stderr: float
    """Of ``nats``, from the means of rows: tokens of a row are no independent draws."""
    bits_per_byte: float | None
    """Null where the bytes of tokens are not known."""
    tokens: int


def held_out(
    model: PreTrainedModel, rows: LmRows, sources: np.ndarray, byte_lengths: np.ndarray | None, *,
    device: torch.device, most: int | None = None,
) -> dict[int, HeldOut]:  # fmt: skip
    """Return the loss of a model on the documents of each source, in fp32 and evaluation mode, and ``ALL`` of them.

    Parameters
    ----------
    sources
        The source of each document, ``(documents,)``, numbers from 0.
    byte_lengths
        Bytes that each token stands for, ``(vocabulary,)``; null where they are not known.
    most
        Only so many rows are measured on, evenly spread; null: all.
    """
    model, kinds = model.eval(), int(sources.max()) + 1
    found: list[np.ndarray] = []
    with torch.inference_mode():
        for batch in rows.spread(BATCH, most=most):
            held = batch.to(device)
            lost = _losses(said(model, held, dtype="float32"), held).double().cpu().numpy()
            keep, targets = batch.keep.numpy(), batch.targets.numpy()
            size = np.zeros(len(targets)) if byte_lengths is None else byte_lengths[targets]
            row = np.repeat(np.arange(len(batch.index)), len(targets) // len(batch.index))
            place = (row * kinds + sources[np.maximum(batch.document, 0)])[keep]
            columns = (lost[keep], np.ones(int(keep.sum())), size[keep])
            sums = [np.bincount(place, column, len(batch.index) * kinds) for column in columns]
            found.append(np.stack(sums).reshape(3, len(batch.index), kinds))
    table = np.concatenate(found, axis=1)
    whole = {ALL: _of(table.sum(axis=2), byte_lengths is not None)}
    return whole | {
        kind: _of(table[:, :, kind], byte_lengths is not None) for kind in range(kinds) if table[1, :, kind].any()
    }


def _of(table: np.ndarray, bytes_known: bool) -> HeldOut:
    """Return what sums of losses, targets and bytes for each row, ``(3, rows)``, say."""
    lost, counts, size = table
    mean = float(lost.sum() / counts.sum())
    seen = counts > 0
    apart = (lost - mean * counts)[seen]
    error = math.sqrt(len(apart) / max(1, len(apart) - 1) * float((apart**2).sum())) / float(counts.sum())
    bits = float(lost.sum()) / (math.log(2) * max(1.0, float(size.sum()))) if bytes_known else None
    return HeldOut(nats=mean, stderr=error, bits_per_byte=bits, tokens=int(counts.sum()))


def _losses(head: Head, batch: LmBatch) -> Tensor:
    """Return the cross-entropy at each place, ``(n * t,)``, 0 where no target counts."""
    found = torch.zeros(len(batch.targets), device=batch.targets.device)
    for places in batch.keep.nonzero()[:, 0].split(max(1, LOGITS // len(head.weight))):
        logits = head.hidden[places].float() @ head.weight.float().T
        logits = logits if head.bias is None else logits + head.bias
        found[places] = torch.nn.functional.cross_entropy(logits, batch.targets[places], reduction="none")
    return found
