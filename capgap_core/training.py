"""One optimizer step and the loop around it: the only training loop of the project."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from capgap_core import batches, machine, signals
from capgap_core.batches import Batch, Examples
from capgap_core.errors import NonFinite
from capgap_core.machine import Precision, RandomState


class Training(BaseModel):
    """How a stage trains, resolved: no field is left for a machine to decide."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: int
    learning_rate: float
    batch_size: int
    micro_batch: int
    weight_decay: float
    warmup: float
    clip: float
    dtype: Precision
    seed: int


@dataclass(frozen=True, kw_only=True)
class Term:
    """One part of a loss: a sum, and what it is a sum over."""

    name: str
    total: Tensor
    per: Literal["examples", "tokens"]
    weight: float = 1.0
    scale: float | None = None
    """The scale of the sub-network it belongs to, where several train at once."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one optimizer step says of itself."""

    step: int
    tokens: int
    """Real tokens seen so far."""
    terms: dict[tuple[float | None, str], float] = field(default_factory=dict)
    """(scale, name) → mean over the step, before weights."""
    lr: float
    grad_norm: float
    """Norm before clipping."""
    tokens_per_second: float


@runtime_checkable
class Keeper(Protocol):
    """Keeps the state of training, so that it goes on where it was cut off; see ``capgap_core.checkpoints``."""

    last: int
    """The step of the newest kept state; 0 where there is none."""

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Step]:
        """Put the newest kept state in place; return the steps it comes after."""
        ...

    def due(self) -> bool:
        """Return whether the state is to be kept again."""
        ...

    def save(
        self, steps: Sequence[Step], model: nn.Module, optimizer: torch.optim.Optimizer, drawn: RandomState
    ) -> None:
        """Keep the state after the last of the steps, with that of the random generators then."""
        ...

    def tell(self, text: str) -> None:
        """Say one line to whoever watches."""
        ...


class Forgetful:
    """Keeps nothing."""

    last = 0

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Step]:
        """Return no steps."""
        return []

    def due(self) -> bool:
        """Return no."""
        return False

    def save(
        self, steps: Sequence[Step], model: nn.Module, optimizer: torch.optim.Optimizer, drawn: RandomState
    ) -> None:
        """Do nothing."""

    def tell(self, text: str) -> None:
        """Do nothing."""


LossOf = Callable[[Batch, int], Iterable[list[Term]]]
"""Of a batch and the number of its step, yields the terms in groups; each is differentiated before the next."""


def train(
    model: nn.Module, examples: Examples, training: Training, loss_of: LossOf, *, device: torch.device, stage: str,
    keeper: Keeper | None = None,
) -> Generator[Step, None, None]:  # fmt: skip
    """Train ``model`` in place and yield a record of every optimizer step, those before a checkpoint among them.

    Where a signal ends it, the state after the last whole step is kept first. Whoever stops to take steps has to
    close the iterator, which does the same.

    Every term is divided once, by the examples or real tokens of the whole optimizer step, so that micro-batches
    change nothing but memory. AdamW without decay for biases and LayerNorm; the learning rate rises linearly for
    the ``warmup`` share of the steps and then falls linearly to zero (MiniDisc, scripts).

    Raises
    ------
    NonFinite
        Before the optimizer step, where a loss or the norm of the gradient is NaN or infinite.
    """
    keeper = keeper if keeper is not None else Forgetful()
    optimizer = torch.optim.AdamW(_groups(model, training.weight_decay), lr=training.learning_rate, fused=True)
    steps = keeper.restore(model, optimizer)
    yield from steps
    order = batches.endless(examples.lengths, batch_size=training.batch_size, seed=training.seed, skip=len(steps))
    parameters = [p for p in model.parameters() if p.requires_grad]
    lookups = Lookups(model)
    before = seen = steps[-1].tokens if steps else 0
    clock = time.monotonic()
    drawn = machine.random_state(device)
    try:
        for step in range(len(steps) + 1, training.steps + 1):
            index = next(order)
            with lookups.sparse():
                terms = _differentiate(examples, index, training, loss_of, step, device)
            lookups.settle()
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, training.clip))
            _refuse_non_finite(stage, step, terms, norm, keeper.last)
            lr = training.learning_rate * _rate(step, training)
            for options in optimizer.param_groups:
                options["lr"] = lr
            with signals.deferred():  # what is to be kept changes here only, as a whole
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                seen += int(examples.lengths[index].sum())
                rate = (seen - before) / max(time.monotonic() - clock, 1e-9)
                steps.append(Step(step=step, tokens=seen, terms=terms, lr=lr, grad_norm=norm, tokens_per_second=rate))
                drawn = machine.random_state(device)
                if keeper.due():
                    keeper.save(steps, model, optimizer, drawn)
            yield steps[-1]
    except BaseException as ended:
        if not isinstance(
            ended, Exception
        ):  # a signal, or the iterator was closed: whoever did may want to go on later
            with signals.deferred():
                try:
                    keeper.save(steps, model, optimizer, drawn)
                except Exception as error:  # what ended the training is what counts
                    keeper.tell(f"the state of the training could not be kept: {error}")
        raise


class Lookups:
    """The gradients of a model's embedding tables on a CPU, each in one buffer that outlives the step.

    A batch looks up a few hundred rows of a table. For a dense gradient torch would take fresh memory for all its
    rows in every step, which cost half of a small student's step; here only rows that were looked up are cleared and
    added to, and the optimizer is given the same dense gradient.
    """

    def __init__(self, model: nn.Module) -> None:
        self._tables = [
            m for m in model.modules()
            if isinstance(m, nn.Embedding) and m.weight.device.type == "cpu" and m.weight.requires_grad
        ]  # fmt: skip
        self._buffers = [torch.zeros_like(table.weight) for table in self._tables]
        self._rows: list[Tensor | None] = [None] * len(self._tables)

    @contextmanager
    def sparse(self) -> Iterator[None]:
        """Let autograd make sparse gradients of the tables while the context lasts."""
        before = [table.sparse for table in self._tables]
        for table in self._tables:
            table.sparse = True
        try:
            yield
        finally:
            for table, was in zip(self._tables, before, strict=True):
                table.sparse = was

    def settle(self) -> None:
        """Turn the sparse gradients of a step into dense ones."""
        for i, (table, buffer) in enumerate(zip(self._tables, self._buffers, strict=True)):
            found = table.weight.grad
            if found is None or not found.is_sparse:
                continue
            rows = self._rows[i]
            if rows is not None:
                buffer.index_fill_(0, rows, 0.0)
            found = found.coalesce()
            self._rows[i] = found.indices()[0]
            buffer.index_copy_(0, found.indices()[0], found.values())
            table.weight.grad = buffer


def _differentiate(
    examples: Examples, index: np.ndarray, training: Training, loss_of: LossOf, step: int, device: torch.device
) -> dict[tuple[float | None, str], float]:
    """Add the gradients of one step, micro-batch by micro-batch; return (scale, name) → mean of its terms."""
    counts = {"examples": len(index), "tokens": int(examples.lengths[index].sum())}
    terms: dict[tuple[float | None, str], float] = {}
    for start in range(0, len(index), training.micro_batch):
        batch = examples.batch(index[start : start + training.micro_batch]).to(device)
        for group in loss_of(batch, step):
            _backward(group, counts, terms)
    return terms


def _backward(group: list[Term], counts: dict[str, int], terms: dict[tuple[float | None, str], float]) -> None:
    means = [term.total / counts[term.per] for term in group]
    torch.stack([term.weight * mean for term, mean in zip(group, means, strict=True)]).sum().backward()
    for term, mean in zip(group, means, strict=True):
        key = (term.scale, term.name)
        terms[key] = terms.get(key, 0.0) + float(mean.detach())


def _rate(step: int, training: Training) -> float:
    """Return the share of the peak learning rate at a step counted from 1."""
    rising = max(1, round(training.warmup * training.steps))
    if step <= rising:
        return step / rising
    return (training.steps - step + 1) / (training.steps - rising + 1)


def _groups(model: nn.Module, decay: float) -> list[dict[str, object]]:
    """Return parameter groups: no decay for biases and normalisation, which are the one-dimensional ones."""
    held = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in held if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in held if p.dim() <= 1], "weight_decay": 0.0},
    ]


def _refuse_non_finite(
    stage: str, step: int, terms: dict[tuple[float | None, str], float], norm: float, last: int
) -> None:
    bad = [f"{name} (scale {scale})" for (scale, name), value in terms.items() if not _finite(value)]
    if not _finite(norm):
        bad.append("the gradient's norm")
    if bad:
        kept = f"the last checkpoint is of step {last}" if last else "there is no checkpoint yet"
        raise NonFinite(
            stage,
            f"step {step}: {', '.join(bad)} is not finite; the step was not taken, and {kept}",
            "Lower the learning rate, or train with dtype=float32.",
        )


def _finite(value: float) -> bool:
    return value - value == 0.0
