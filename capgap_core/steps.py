"""The losses that stages train with, and the table of the steps they take."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel

from capgap_core import losses, machine, tables
from capgap_core.batches import Batch
from capgap_core.progress import Progress
from capgap_core.records import Reference
from capgap_core.slimming import Prefixes
from capgap_core.training import LossOf, Step, Term

Context = Callable[[], AbstractContextManager[Any]]


def task_loss(model: nn.Module, data: Reference, context: Context) -> LossOf:
    """Return the loss of fine-tuning: cross-entropy, or squared error for regression."""
    regression = data.summary["task"] == "regression"

    def loss_of(batch: Batch) -> Iterator[list[Term]]:
        with context():
            logits = model(**batch.inputs).logits
        if regression:
            total, name = losses.squared_error(logits, batch.labels[:, None]), "squared_error"
        else:
            total, name = losses.cross_entropy(logits, batch.labels), "cross_entropy"
        yield [Term(name=name, total=total, per="examples")]

    return loss_of


class Distillation:
    """The loss of MiniDisc: half the MSE of hidden states and half the divergence of predictions.

    L = (MSE(H_s, H_t) + T² KL(z_t/T || z_s/T)) / 2, without a hard-label term; for regression the second
    is the squared error of the scalar predictions (``models/sparsebert.py`` of the released code).
    """

    def __init__(
        self, teacher: nn.Module, *, layers: int, regression: bool, temperature: float, context: Context
    ) -> None:
        self._teacher = teacher.eval().requires_grad_(False)
        self._layers = losses.matched_layers(layers)
        self._regression = regression
        self._temperature = temperature
        self._context = context

    def target(self, batch: Batch) -> Any:
        """Return the teacher's output on a batch."""
        with torch.no_grad(), self._context():
            return self._teacher(**batch.inputs, output_hidden_states=True)

    def terms(self, output: Any, target: Any, batch: Batch, scale: float | None) -> list[Term]:
        """Return the terms between a student's output and its teacher's."""
        keep = batch.attention_mask.bool()
        ours = tuple(output.hidden_states[i] for i in self._layers)
        theirs = tuple(target.hidden_states[i] for i in self._layers)
        hidden = losses.hidden_error(ours, theirs, keep)
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

        def loss_of(batch: Batch) -> Iterator[list[Term]]:
            target = self.target(batch)
            with self._context():
                output = student(**batch.inputs, output_hidden_states=True)
            yield self.terms(output, target, batch, None)

        return loss_of

    def sandwich_of(self, model: PreTrainedModel, prefixes: Prefixes, scales: Callable[[], Sequence[float]]) -> LossOf:
        """Return the mean loss of the sub-networks of ``scales()``, all on the same batch with shared weights.

        Each sub-network is differentiated before the next is computed, so that memory does not grow with them. The
        word embeddings, the largest of all and the same for all, are looked up and differentiated once.
        """

        def loss_of(batch: Batch) -> Iterator[list[Term]]:
            target = self.target(batch)
            chosen = scales()
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


class Log:
    """Collects the steps of a stage, tells its watcher, and writes the table ``steps`` at the end."""

    def __init__(self, path: Path, total: int, progress: Progress) -> None:
        self._path, self._total, self._progress = path, total, progress
        self._rows: list[dict[str, Any]] = []
        self._last: Step | None = None

    def add(self, step: Step) -> None:
        """Take a step."""
        self._last = step
        for (scale, term), value in sorted(step.terms.items(), key=lambda item: (item[0][0] or 0.0, item[0][1])):
            row = {"step": step.step, "tokens": step.tokens, "scale": scale, "term": term, "value": value}
            self._rows.append({**row, "lr": step.lr, "grad_norm": step.grad_norm})
        mean = sum(step.terms.values()) / len(step.terms)
        note = f"loss {mean:.4f}, {step.tokens_per_second:,.0f} tokens/s"
        self._progress.update(step.step, self._total, note)

    def close(self) -> tuple[int, int]:
        """Write the table; return the steps taken and the tokens seen."""
        tables.write(self._path, "steps", self._rows)
        return (self._last.step, self._last.tokens) if self._last else (0, 0)
