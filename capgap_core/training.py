"""One optimizer step and the loop around it: the only training loop of the project."""

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from capgap_core import batches, machine, signals
from capgap_core.errors import NonFinite
from capgap_core.machine import Precision, RandomState
from capgap_core.optimizer import AdamW


class Training(BaseModel):
    """How a stage trains, resolved: no field is left for a machine to decide."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: int
    learning_rate: float
    batch_size: int
    """Examples in a step; where ``room`` is given, on average."""
    room: int | None
    """Most tokens in a step, padding among them; null: each step has ``batch_size`` examples."""
    per_epoch: int
    """Steps of an epoch; where ``room`` is given they differ a little from one to the next."""
    micro_batch: int
    """Examples that are in memory at once, of a step of ``batch_size``."""
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


@runtime_checkable
class Source(Protocol):
    """What is trained on: examples of any kind, as batches that the loss understands."""

    lengths: np.ndarray
    """What each example counts where a mean is over tokens, ``(n,)``."""

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    def words(self, index: np.ndarray) -> Tensor:
        """Return the token ids in these examples, each once, and maybe others."""
        ...

    def batch(self, index: np.ndarray, *, room: int = 0) -> Any:
        """Return the examples at these places."""
        ...


LossOf = Callable[[Any, int], Iterable[list[Term]]]
"""Of a batch and the number of its step, yields the terms in groups; each is differentiated before the next."""


def train(
    model: nn.Module, examples: Source, training: Training, loss_of: LossOf, *, device: torch.device, stage: str,
    keeper: Keeper | None = None, fewest: int = 1,
) -> Generator[Step, None, None]:  # fmt: skip
    """Train ``model`` in place and yield a record of every optimizer step, those before a checkpoint among them.

    Where a signal ends it, the state after the last whole step is kept first. Whoever stops to take steps has to
    close the iterator, which does the same.

    Every term is divided once, by the examples or real tokens of the whole optimizer step, so that micro-batches
    change nothing but memory. Where steps have room for tokens, a few long examples or many short ones, it is divided
    by those of the epoch's mean step, so that each example or token weighs the same. AdamW without decay for biases and
    LayerNorm; the learning rate rises linearly for the ``warmup`` share of the steps and then falls linearly to zero
    (MiniDisc, scripts). Where a loss needs ``fewest`` examples at once, no step and no micro-batch has less.

    Raises
    ------
    NonFinite
        Before the optimizer step, where a loss or the norm of the gradient is NaN or infinite.
    """
    keeper = keeper if keeper is not None else Forgetful()
    rates = [training.learning_rate * _rate(step, training) for step in range(1, training.steps + 1)]
    optimizer = AdamW(model, rates, decay=training.weight_decay)
    steps = keeper.restore(model, optimizer)
    yield from steps
    order = batches.endless(
        examples.lengths, batch_size=training.batch_size, room=training.room, seed=training.seed, skip=len(steps),
        fewest=fewest,
    )  # fmt: skip
    before = seen = steps[-1].tokens if steps else 0
    clock = time.monotonic()
    drawn = machine.random_state(device)
    try:
        for step in range(len(steps) + 1, training.steps + 1):
            index, per_epoch = next(order)
            with signals.deferred():
                optimizer.ready(examples.words(index), step - 1)
            totals = _differentiate(examples, index, per_epoch, training, loss_of, step, device, fewest)
            terms, norm = _looked_at(totals, examples.lengths[index], optimizer, training.clip)
            _refuse_non_finite(stage, step, terms, norm, keeper.last)
            with signals.deferred():  # what is to be kept changes here only, as a whole
                optimizer.step_to(step)
                seen += int(examples.lengths[index].sum())
                rate = (seen - before) / max(time.monotonic() - clock, 1e-9)
                told = {"tokens": seen, "lr": rates[step - 1], "grad_norm": norm, "tokens_per_second": rate}
                steps.append(Step(step=step, terms=terms, **told))
                drawn = machine.random_state(device)
                if keeper.due():
                    keeper.save(steps, model, optimizer, drawn)
            yield steps[-1]
    except BaseException as ended:
        if not isinstance(ended, Exception):  # a signal, or the iterator was closed: it may go on later
            with signals.deferred():
                try:
                    keeper.save(steps, model, optimizer, drawn)
                except Exception as error:  # what ended the training is what counts
                    keeper.tell(f"the state of the training could not be kept: {error}")
        raise


def _differentiate(
    examples: Source, index: np.ndarray, per_epoch: int, training: Training, loss_of: LossOf, step: int,
    device: torch.device, fewest: int,
) -> list[tuple[Term, Tensor]]:  # fmt: skip
    """Add the gradients of one step, micro-batch by micro-batch; return its terms with their sums."""
    mean: dict[str, float] = {"examples": len(index), "tokens": int(examples.lengths[index].sum())}
    if training.room is not None:
        mean = {"examples": len(examples) / per_epoch, "tokens": int(examples.lengths.sum()) / per_epoch}
    parts = -(-training.batch_size // training.micro_batch)
    room = -(-(training.room or 0) // parts)
    totals: list[tuple[Term, Tensor]] = []
    for part in np.array_split(index, min(parts, max(1, len(index) // fewest))):
        for group in loss_of(examples.batch(part, room=room).to(device), step):
            torch.stack([term.total * (term.weight / mean[term.per]) for term in group]).sum().backward()
            totals += [(term, term.total.detach()) for term in group]
    return totals


def _looked_at(
    totals: list[tuple[Term, Tensor]], lengths: np.ndarray, optimizer: AdamW, most: float
) -> tuple[dict[tuple[float | None, str], float], float]:
    """Return (scale, name) → mean of a step's terms, and the norm of the gradient, scaled down where above ``most``.

    All numbers come from the device at once: each look at one would hold a GPU up.
    """
    found = optimizer.gradients()
    held = [total.float() for _, total in totals]
    *values, norm = torch.stack([*held, torch.nn.utils.get_total_norm(found).to(held[0])]).tolist()
    counts = {"examples": len(lengths), "tokens": int(lengths.sum())}
    terms: dict[tuple[float | None, str], float] = {}
    for (term, _), value in zip(totals, values, strict=True):
        key = (term.scale, term.name)
        terms[key] = terms.get(key, 0.0) + value / counts[term.per]
    if norm > most:
        for grad in found:
            grad.mul_(most / (norm + 1e-6))
    return terms, norm


def _rate(step: int, training: Training) -> float:
    """Return the share of the peak learning rate at a step counted from 1."""
    rising = max(1, round(training.warmup * training.steps))
    if step <= rising:
        return step / rising
    return (training.steps - step + 1) / (training.steps - rising + 1)


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
