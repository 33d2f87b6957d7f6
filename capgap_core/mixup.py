"""Mixtures of examples in embedding space, and what a student learns from them (MixKD, arXiv 2011.00593).

A mixture of examples i and j has the word embeddings mix·e_i + (1-mix)·e_j, of each model's own table, place for place,
padding among them; the embeddings of token types are mixed in the same way, and positions are the same for both. In a
pair task the second text of a mixture so begins where it begins in each of the two, and by as much.

A place counts with w = mix·m_i + (1-mix)·m_j, m = 1 for a real token: as the key of an attention it gets log w added to
its scores. So a mixture at mix = 1 is example i exactly, at mix = 0 example j, and between them nothing jumps; with the
union of the two masks, as in code for images and for texts of one length, neither is so. A decoder answers where a text
ends: for a mixture with mix times what it says at the end of i and 1-mix times what it says at the end of j.

Partners are drawn within a batch, each example being the partner of one other. Batches hold texts of nearly the same
length, so that little of a mixture is one text beside another's padding, and two texts at least.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from capgap_core.batches import Batch
from capgap_core.distillation import Distillation
from capgap_core.outputs import Computed
from capgap_core.steps import labels_term
from capgap_core.training import LossOf, Term


class Mixup(BaseModel):
    """How examples are mixed, and the weights of what is learned from mixtures."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["mixture", "noise"] = "mixture"
    """noise: the partner moves each embedding as far as in a mixture, in a direction that is drawn."""
    samples: int
    """Mixtures of each example in a step."""
    alpha: float | None
    """The weight of the first example is drawn from Beta(alpha, alpha); null where it is not drawn."""
    mix: float | None
    """The weight of the first example, where it is not drawn."""
    per: Literal["pair", "batch"]
    """Whether each pair has its own weight, or all of a batch the same."""
    mask: Literal["soft", "union"]
    labels: float
    """α_SM: weight of the loss with the mixed labels."""
    teacher: float
    """α_TMKD: weight of the distance between the predictions of teacher and student."""
    seed: int


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Which examples of a batch are mixed, and by how much."""

    partner: Tensor
    """``(n,)``: the place in the batch of each example's partner."""
    mix: Tensor
    """``(n,)``, fp32: the weight of the example itself."""
    seed: int
    """Of the directions of noise."""


def drawn(how: Mixup, batch: Batch, step: int, sample: int) -> Mixture:
    """Return a mixture of a batch: a function of the seed, the step, the sample and the batch alone.

    Partners are the next on a circle through all examples, drawn anew each time: nobody is the own partner where
    there are two or more, and any other is as likely.
    """
    draw = np.random.default_rng([how.seed, step, sample, int(batch.index[0])])
    n, circle = len(batch.index), draw.permutation(len(batch.index))
    partner = np.empty(n, dtype=np.int64)
    partner[circle] = np.roll(circle, -1)
    if how.mix is not None:
        mix = np.full(n, how.mix)
    else:
        assert how.alpha is not None
        mix = draw.beta(how.alpha, how.alpha, n if how.per == "pair" else 1)
    mix = torch.from_numpy(np.broadcast_to(mix, n).astype(np.float32))
    where = batch.input_ids.device
    return Mixture(partner=torch.from_numpy(partner).to(where), mix=mix.to(where), seed=int(draw.integers(2**31)))


def mixed(batch: Batch, mixture: Mixture, mask: Literal["soft", "union"]) -> Batch:
    """Return the batch of the mixtures, of which all but the word embeddings and types are right."""
    own, other = batch.attention_mask, batch.attention_mask[mixture.partner]
    if mask == "union":
        return replace(batch, attention_mask=own | other)
    mix = mixture.mix[:, None]
    return replace(batch, attention_mask=mix * own + (1.0 - mix) * other)


class Embeddings:
    """The embeddings of one model that are mixed: words, and token types.

    A way to compute a model takes word embeddings that were looked up, and adds those of the types of the batch: what
    the partner's types differ by is added to the words before.
    """

    def __init__(self, way: Computed, types: Tensor | None) -> None:
        self._way, self._types = way, types

    def of(self, batch: Batch, mixture: Mixture, kind: Literal["mixture", "noise"]) -> Tensor:
        """Return what stands in for the word embeddings of a batch, in the form in which they are looked up."""
        found = self._way.look_up(batch)
        n, t = batch.input_ids.shape
        own = found[: n * t].view(n, t, -1) if found.dim() == 2 else found
        own = own.to(torch.promote_types(own.dtype, torch.float32))
        whole = own if self._types is None else own + self._types[batch.token_type_ids]
        apart = whole[mixture.partner] - whole
        away = (1.0 - mixture.mix)[:, None, None] * apart
        if kind == "noise":
            draw = torch.Generator(own.device).manual_seed(mixture.seed)
            aside = torch.randn(own.shape, generator=draw, device=own.device)
            away = aside * (away.norm(dim=-1, keepdim=True) / aside.norm(dim=-1, keepdim=True))
        moved = (own + away).to(found.dtype)
        return batch.rows(moved) if found.dim() == 2 else moved


@dataclass(frozen=True, kw_only=True)
class Pupil:
    """A teacher or a student: the way to compute it, and its embeddings."""

    way: Computed
    embeddings: Embeddings

    @classmethod
    def of(cls, way: Computed, model: nn.Module, types: str | None) -> "Pupil":
        """Return a model, of whose weights ``types`` names the embeddings of token types; null: it has none."""
        return cls(way=way, embeddings=Embeddings(way, model.get_parameter(types) if types else None))


class Mixtures:
    """The terms that mixtures add to a student's loss: α_SM · L_SM and α_TMKD · L_TMKD.

    Parameters
    ----------
    teacher
        Is asked about mixtures at every step; null where α_TMKD is 0.
    distance
        Compares predictions as those on the examples themselves.
    """

    def __init__(
        self, how: Mixup, student: Pupil, teacher: Pupil | None, distance: Distillation, *, regression: bool
    ) -> None:
        self._how, self._student, self._teacher = how, student, teacher
        self._distance, self._regression = distance, regression

    def added_to(self, loss_of: LossOf) -> LossOf:
        """Return a loss with these terms after its own; each mixture is differentiated before the next."""

        def both(batch: Batch, step: int) -> Iterator[list[Term]]:
            yield from loss_of(batch, step)
            for sample in range(self._how.samples):
                yield self.terms(batch, drawn(self._how, batch, step, sample))

        return both

    def terms(self, batch: Batch, mixture: Mixture) -> list[Term]:
        """Return the terms of one mixture of a batch, each a mean over as many mixtures as there are."""
        how = self._how
        whole = batch if how.kind == "noise" else mixed(batch, mixture, how.mask)
        ours = self._student.way(whole, words=self._student.embeddings.of(batch, mixture, how.kind)).logits
        found = self._of_labels(ours, batch, mixture) if how.labels else []
        if how.teacher and self._teacher is not None:
            with torch.no_grad():
                words = self._teacher.embeddings.of(batch, mixture, how.kind)
                theirs = self._teacher.way(whole, words=words).logits
            found.append(self._distance.between(ours, theirs, "mixed_prediction", how.teacher))
        return [replace(term, total=term.total / how.samples) for term in found]

    def _of_labels(self, logits: Tensor, batch: Batch, mixture: Mixture) -> list[Term]:
        """Return what mixtures lose to mixed labels: cross-entropy is linear in them, squared error is not."""
        weight, regression, other = self._how.labels, self._regression, batch.labels[mixture.partner]
        mix = torch.ones_like(mixture.mix) if self._how.kind == "noise" else mixture.mix
        if regression:
            term = labels_term(logits, mix * batch.labels + (1.0 - mix) * other, regression=True, weight=weight)
            return [replace(term, name=f"mixed_{term.name}")]
        log_q = torch.log_softmax(logits.float(), dim=-1)
        own, others = (-log_q.gather(1, labels[:, None])[:, 0] for labels in (batch.labels, other))
        total = (mix * own + (1.0 - mix) * others).sum()
        return [Term(name="mixed_cross_entropy", total=total, per="examples", weight=weight)]
