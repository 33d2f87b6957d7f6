"""How long and how fast each stage trains, where the user leaves it open: by model and data size."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from capgap_core.batches import room_for
from capgap_core.machine import Precision
from capgap_core.recipes import Protocol, TrainRecipe
from capgap_core.training import Training

Arm = Literal["teacher", "sandwich", "student"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A starting point for a model of hidden size 384; the learning rate goes with 1 / hidden."""

    epochs: float
    learning_rate: float
    floor: int
    """Fewest optimizer steps: small data sets are seen more often."""
    cap: int
    """Most optimizer steps: large data sets are not seen as often."""


WIDTH = 384
BATCH = 32
BUDGETS: dict[Arm, Budget] = {
    "teacher": Budget(epochs=3, learning_rate=8e-5, floor=250, cap=6500),
    "sandwich": Budget(epochs=2, learning_rate=1e-4, floor=200, cap=800),
    "student": Budget(epochs=5, learning_rate=2e-4, floor=400, cap=3500),
}
"""For a pretrained teacher. capgap's own: the released code trains everything for ten epochs."""
SCRATCH: dict[Arm, Budget] = {
    "teacher": Budget(epochs=12, learning_rate=5e-4, floor=200, cap=4000),
    "sandwich": Budget(epochs=1, learning_rate=1e-4, floor=50, cap=1000),
    "student": Budget(epochs=2.5, learning_rate=2e-4, floor=200, cap=3000),
}
"""For a teacher trained from scratch, which needs more itself and has less to pass on."""

PAPER_EPOCHS = 10
PAPER = ((5000, 16, 3e-5), (10**12, 32, 2e-5))
"""(training rows up to, batch size, learning rate): the scripts' values for MRPC, and for QQP and CoNLL."""


def resolve(
    asked: TrainRecipe, arm: Arm, *, lengths: np.ndarray, hidden: int, scratch: bool, protocol: Protocol,
    dtype: Precision, seed: int,
) -> Training:  # fmt: skip
    """Return a training recipe without open fields.

    Parameters
    ----------
    asked
        What the user gave; a null field is filled here.
    lengths
        Tokens of each training example.
    hidden
        Width of the model.
    scratch
        Whether the teacher is trained from scratch.
    """
    rows = len(lengths)
    budget = (SCRATCH if scratch else BUDGETS)[arm]
    if protocol == "paper" and not scratch:
        batch, rate = next((b, lr) for limit, b, lr in PAPER if rows <= limit)
        budget = Budget(epochs=PAPER_EPOCHS, learning_rate=rate, floor=1, cap=10**9)
    else:
        batch, rate = BATCH, budget.learning_rate * WIDTH / hidden
    size = min(asked.batch_size or batch, rows)
    room, per_epoch = None, -(-rows // size)
    if asked.batches == "tokens" and protocol != "paper":
        room, per_epoch = room_for(lengths, size)
    if asked.epochs is not None:
        steps = max(1, round(asked.epochs * per_epoch))
    else:
        steps = min(max(round(budget.epochs * per_epoch), budget.floor), budget.cap)
    return Training(
        steps=steps,
        learning_rate=asked.learning_rate or rate,
        batch_size=size,
        room=room,
        per_epoch=per_epoch,
        micro_batch=min(asked.micro_batch or size, size),
        weight_decay=asked.weight_decay,
        warmup=asked.warmup,
        clip=asked.clip,
        dtype=dtype,
        seed=seed,
    )
