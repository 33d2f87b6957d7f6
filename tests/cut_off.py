"""A short training with dropout that can be cut off anywhere, and what it has to end with."""

from collections.abc import Callable
from pathlib import Path

import builders
import torch
from torch import Tensor
from transformers import PreTrainedModel

from capgap_core import slimming, targets
from capgap_core.batches import Examples
from capgap_core.checkpoints import Checkpoints
from capgap_core.distillation import Distillation, Objective
from capgap_core.families import bert
from capgap_core.progress import Silent
from capgap_core.training import LossOf, Step, train

CPU = torch.device("cpu")
PLANS = {0.5: builders.kept([3, 1], [40, 16]), 0.3: builders.kept([0, 2], [8, 32]), 0.1: builders.kept([1, 0], [8, 0])}
STEPS = 9


class Heard(Silent):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


class CutOff(Exception):
    """What ends a training in the middle."""


def checkpoints(folder: Path, *, every: float = 0.0, threads: int = 1) -> tuple[Checkpoints, Heard]:
    heard = Heard()
    return Checkpoints(folder / "checkpoints", every=every, machine={"threads": threads}, progress=heard), heard


def alone(model: PreTrainedModel) -> LossOf:
    return distillation().loss_of(builders.way(model))


def together(model: PreTrainedModel) -> LossOf:
    prefixes = slimming.Prefixes(bert, model, bert.shape_of(model.config), PLANS)
    drawn = lambda step: (0.5, 0.3, 0.1) if step % 2 else (0.5, 0.1)  # noqa: E731
    return distillation().sandwich_of(builders.way(model), prefixes, drawn, dtype="float32")


def distillation() -> Distillation:
    ask = targets.live(builders.way(builders.bert(seed=9)), layers=(0, 1, 2))
    return Distillation(ask, layers=2, regression=False, objective=Objective())


def trained(
    folder: Path, part: Examples, *, ways: Callable[[PreTrainedModel], LossOf] = alone, until: int = STEPS,
    keeper: Checkpoints | None = None,
) -> tuple[dict[str, Tensor], list[Step]]:  # fmt: skip
    """Train with dropout, from the same start and seed, up to a step; return the weights and the steps."""
    keeper = keeper or checkpoints(folder)[0]
    model, taken = builders.bert(seed=2, dropout=0.2).train(), []
    torch.manual_seed(5)
    training = builders.training(steps=STEPS, batch_size=5, micro_batch=3)
    steps = train(model, part, training, ways(model), device=CPU, stage="distil", keeper=keeper)
    for step in steps:
        taken.append(step)
        if step.step == until:
            break
    return model.state_dict(), taken


def same(a: tuple[dict[str, Tensor], list[Step]], b: tuple[dict[str, Tensor], list[Step]]) -> None:
    assert all(torch.equal(value, b[0][name]) for name, value in a[0].items())
    assert [(s.step, s.tokens, s.terms, s.lr, s.grad_norm) for s in a[1]] == [
        (s.step, s.tokens, s.terms, s.lr, s.grad_norm) for s in b[1]
    ]
