"""What a student, or all sub-networks of a sandwich at once, learn from a teacher and from labels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from capgap_core import losses
from capgap_core.batches import Batch
from capgap_core.machine import KINDS, Precision
from capgap_core.outputs import Computed, Output
from capgap_core.slimming import Prefixes
from capgap_core.steps import labels_term
from capgap_core.targets import Ask, Target
from capgap_core.training import LossOf, Term


class Objective(BaseModel):
    """What a student learns from: the weight of each term of its loss, none of it for 0.

    MiniDisc's is the default: L = (MSE(H_s, H_t) + T² KL(z_t/T || z_s/T)) / 2, without a hard-label term
    (``models/sparsebert.py`` of the released code). For regression predictions are compared by their squared error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    labels: float = 0.0
    """Of the cross-entropy with the labels, or the squared error for regression."""
    hidden: float = 0.5
    """Of the MSE of hidden states."""
    prediction: float = 0.5
    """Of the distance of predictions."""
    distance: Literal["kl", "mse"] = "kl"
    temperature: float = 1.0
    """Divides both logits where the distance is KL."""


class Distillation:
    """The loss of a student, or of all sub-networks of a sandwich at once.

    Parameters
    ----------
    ask
        The teacher; null where nothing is learned from it.
    layers
        Of the student, which has as many as the teacher where hidden states are compared.
    """

    def __init__(self, ask: Ask | None, *, layers: int, regression: bool, objective: Objective) -> None:
        self._ask = ask
        self._layers = losses.matched_layers(layers) if objective.hidden else ()
        self._regression = regression
        self._objective = objective

    def terms(self, output: Output, target: Target | None, batch: Batch, scale: float | None) -> list[Term]:
        """Return the terms between a student's output, its teacher's and the labels."""
        asked, found = self._objective, []
        if asked.labels:
            found.append(labels_term(output.logits, batch.labels, regression=self._regression, weight=asked.labels))
        if asked.hidden and target is not None:
            hidden = losses.hidden_error(tuple(output.hidden[i] for i in self._layers), target.hidden, batch.keep)
            found.append(Term(name="hidden", total=hidden, per="tokens", weight=asked.hidden))
        if asked.prediction and target is not None:
            found.append(self.between(output.logits, target.logits, "prediction", asked.prediction))
        return [replace(term, scale=scale) for term in found]

    def between(self, logits: Tensor, theirs: Tensor, name: str, weight: float) -> Term:
        """Return the term that compares predictions ``(n, c)``."""
        asked = self._objective
        if self._regression:
            total = losses.squared_error(logits, theirs)
        elif asked.distance == "mse":
            total = losses.logits_error(logits, theirs)
        else:
            total = losses.divergence(logits, theirs, temperature=asked.temperature)
        return Term(name=name, total=total, per="examples", weight=weight)

    def loss_of(self, student: Computed) -> LossOf:
        """Return the loss of one student."""

        def loss_of(batch: Batch, _step: int) -> Iterator[list[Term]]:
            target = self._ask(batch) if self._ask else None
            yield self.terms(student(batch), target, batch, None)

        return loss_of

    def sandwich_of(
        self, model: Computed, prefixes: Prefixes, scales: Callable[[int], Sequence[float]], *, dtype: Precision
    ) -> LossOf:
        """Return the mean loss of the sub-networks of ``scales(step)``, all on the same batch with shared weights.

        Each sub-network is differentiated before the next is computed, so that memory does not grow with them. The
        word embeddings, the largest of all and the same for all, are looked up and differentiated once.
        """

        def loss_of(batch: Batch, step: int) -> Iterator[list[Term]]:
            target = self._ask(batch) if self._ask else None
            chosen = scales(step)
            words = model.look_up(batch)
            shared = words.detach().requires_grad_()
            prefixes.begin(KINDS[dtype])
            for scale in chosen:
                leaves = prefixes.of(scale)
                output = model(batch, weights=leaves, words=shared)
                terms = self.terms(output, target, batch, scale)
                yield [replace(term, weight=term.weight / len(chosen)) for term in terms]
                prefixes.settle(scale, leaves)  # resumed after the group was differentiated
            words.backward(shared.grad)

        return loss_of
