"""The loss of fine-tuning, and the table of the steps that a stage takes."""

from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from torch import Tensor

from capgap_core import losses, tables
from capgap_core.batches import Batch
from capgap_core.outputs import Computed
from capgap_core.progress import Progress
from capgap_core.records import Reference
from capgap_core.training import LossOf, Step, Term, Training


def task_loss(model: Computed, data: Reference) -> LossOf:
    """Return the loss of fine-tuning: cross-entropy, or squared error for regression."""
    regression = data.summary["task"] == "regression"

    def loss_of(batch: Batch, _step: int) -> Iterator[list[Term]]:
        yield [labels_term(model(batch).logits, batch.labels, regression=regression)]

    return loss_of


def labels_term(logits: Tensor, labels: Tensor, *, regression: bool, weight: float = 1.0) -> Term:
    """Return what logits ``(n, c)`` lose to labels ``(n,)``: cross-entropy, or squared error for regression."""
    if regression:
        total, name = losses.squared_error(logits, labels[:, None]), "squared_error"
    else:
        total, name = losses.cross_entropy(logits, labels), "cross_entropy"
    return Term(name=name, total=total, per="examples", weight=weight)


def padded(training: Training, steps: int, tokens: int) -> dict[str, float]:
    """Return the share of the room in so many steps that no real token took, where steps have room for tokens."""
    if training.room is None or not steps:
        return {}
    return {"padding": round(1.0 - tokens / (steps * training.room), 4)}


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

    def follow(self, steps: Generator[Step, None, None]) -> tuple[int, int]:
        """Take all steps and write the table; return how many they are and the tokens seen.

        Where that is cut short the iterator is closed at once, which keeps the state of the training.
        """
        with closing(steps):
            for step in steps:
                self.add(step)
        tables.write(self._path, "steps", self._rows)
        return (self._last.step, self._last.tokens) if self._last else (0, 0)
