"""The loss of MiniDisc: what a student, or all sub-networks of a sandwich at once, learn from a teacher."""

from collections.abc import Callable, Iterator, Sequence

import torch

from capgap_core import losses
from capgap_core.batches import Batch
from capgap_core.machine import KINDS, Precision
from capgap_core.outputs import Computed, Output
from capgap_core.slimming import Prefixes
from capgap_core.targets import Ask, Target
from capgap_core.training import LossOf, Term


class Distillation:
    """The loss of MiniDisc: half the MSE of hidden states and half the divergence of predictions.

    L = (MSE(H_s, H_t) + T² KL(z_t/T || z_s/T)) / 2, without a hard-label term; for regression the second
    is the squared error of the scalar predictions (``models/sparsebert.py`` of the released code).
    """

    def __init__(self, ask: Ask, *, layers: int, regression: bool, temperature: float) -> None:
        self._ask = ask
        self._layers = losses.matched_layers(layers)
        self._regression = regression
        self._temperature = temperature

    def terms(self, output: Output, target: Target, keep: torch.Tensor, scale: float | None) -> list[Term]:
        """Return the terms between a student's output and its teacher's; ``keep`` tells the rows that are real."""
        hidden = losses.hidden_error(tuple(output.hidden[i] for i in self._layers), target.hidden, keep)
        if self._regression:
            last = losses.squared_error(output.logits, target.logits)
        else:
            last = losses.divergence(output.logits, target.logits, temperature=self._temperature)
        return [
            Term(name="hidden", total=hidden, per="tokens", weight=0.5, scale=scale),
            Term(name="prediction", total=last, per="examples", weight=0.5, scale=scale),
        ]

    def loss_of(self, student: Computed) -> LossOf:
        """Return the loss of one student."""

        def loss_of(batch: Batch, _step: int) -> Iterator[list[Term]]:
            target = self._ask(batch)
            yield self.terms(student(batch), target, batch.keep, None)

        return loss_of

    def sandwich_of(
        self, model: Computed, prefixes: Prefixes, scales: Callable[[int], Sequence[float]], *, dtype: Precision
    ) -> LossOf:
        """Return the mean loss of the sub-networks of ``scales(step)``, all on the same batch with shared weights.

        Each sub-network is differentiated before the next is computed, so that memory does not grow with them. The
        word embeddings, the largest of all and the same for all, are looked up and differentiated once.
        """

        def loss_of(batch: Batch, step: int) -> Iterator[list[Term]]:
            target = self._ask(batch)
            chosen = scales(step)
            words = model.look_up(batch)
            shared = words.detach().requires_grad_()
            prefixes.begin(KINDS[dtype])
            for scale in chosen:
                leaves = prefixes.of(scale)
                output = model(batch, weights=leaves, words=shared)
                terms = self.terms(output, target, batch.keep, scale)
                yield [
                    Term(name=t.name, total=t.total, per=t.per, weight=t.weight / len(chosen), scale=scale)
                    for t in terms
                ]
                prefixes.settle(scale, leaves)  # resumed after the group was differentiated
            words.backward(shared.grad)

        return loss_of
