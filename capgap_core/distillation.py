"""The loss of MiniDisc: what a student, or all sub-networks of a sandwich at once, learn from a teacher."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel

from capgap_core import losses, machine, targets
from capgap_core.batches import Batch, Examples
from capgap_core.machine import Context
from capgap_core.progress import Progress
from capgap_core.slimming import Prefixes
from capgap_core.targets import Ask
from capgap_core.training import LossOf, Term, Training


def distillation(
    teacher: PreTrainedModel, examples: Examples, training: Training, *, layers: int, regression: bool,
    temperature: float, device: torch.device, progress: Progress,
) -> "Distillation":  # fmt: skip
    """Return the loss between a teacher on a device and what is trained from it on these examples.

    Where training sees the examples often enough, this is where the teacher is asked for all of them.
    """
    machine.keep_in(teacher, training.dtype)

    def context() -> AbstractContextManager[Any]:
        return machine.autocast(device, training.dtype)

    matched = losses.matched_layers(layers)
    ask = targets.live(teacher, layers=matched, context=context)
    if targets.pays(examples, training, numbers=len(matched) * teacher.config.hidden_size, device=device):
        ask = targets.remembered(ask, examples, training, progress=progress)
    return Distillation(ask, layers=layers, regression=regression, temperature=temperature, context=context)


class Distillation:
    """The loss of MiniDisc: half the MSE of hidden states and half the divergence of predictions.

    L = (MSE(H_s, H_t) + T² KL(z_t/T || z_s/T)) / 2, without a hard-label term; for regression the second
    is the squared error of the scalar predictions (``models/sparsebert.py`` of the released code).
    """

    def __init__(self, ask: Ask, *, layers: int, regression: bool, temperature: float, context: Context) -> None:
        self._ask = ask
        self._layers = losses.matched_layers(layers)
        self._regression = regression
        self._temperature = temperature
        self._context = context

    def terms(self, output: Any, target: targets.Target, batch: Batch, scale: float | None) -> list[Term]:
        """Return the terms between a student's output and its teacher's."""
        keep = batch.attention_mask.bool()
        ours = tuple(output.hidden_states[i] for i in self._layers)
        hidden = losses.hidden_error(ours, target.hidden, keep)
        if self._regression:
            last = losses.squared_error(output.logits, target.logits)
        else:
            last = losses.divergence(output.logits, target.logits, temperature=self._temperature)
        return [
            Term(name="hidden", total=hidden, per="tokens", weight=0.5, scale=scale),
            Term(name="prediction", total=last, per="examples", weight=0.5, scale=scale),
        ]

    def loss_of(self, student: nn.Module) -> LossOf:
        """Return the loss of one student."""

        def loss_of(batch: Batch, _step: int) -> Iterator[list[Term]]:
            target = self._ask(batch)
            with self._context():
                output = student(**batch.inputs, output_hidden_states=True)
            yield self.terms(output, target, batch, None)

        return loss_of

    def sandwich_of(
        self, model: PreTrainedModel, prefixes: Prefixes, scales: Callable[[int], Sequence[float]]
    ) -> LossOf:
        """Return the mean loss of the sub-networks of ``scales(step)``, all on the same batch with shared weights.

        Each sub-network is differentiated before the next is computed, so that memory does not grow with them. The
        word embeddings, the largest of all and the same for all, are looked up and differentiated once.
        """

        def loss_of(batch: Batch, step: int) -> Iterator[list[Term]]:
            target = self._ask(batch)
            chosen = scales(step)
            words = model.get_input_embeddings()(batch.input_ids)
            shared = words.detach().requires_grad_()
            inputs = {name: value for name, value in batch.inputs.items() if name != "input_ids"}
            inputs |= {"inputs_embeds": shared, "output_hidden_states": True}
            with self._context():
                prefixes.begin(machine.computes_in(words))
            for scale in chosen:
                leaves = prefixes.of(scale)
                with self._context():
                    output = functional_call(model, leaves, args=(), kwargs=inputs)
                terms = self.terms(output, target, batch, scale)
                yield [
                    Term(name=t.name, total=t.total, per=t.per, weight=t.weight / len(chosen), scale=scale)
                    for t in terms
                ]
                prefixes.settle(scale, leaves)  # resumed after the group was differentiated
            words.backward(shared.grad)

        return loss_of
