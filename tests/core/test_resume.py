"""Training that was cut off goes on where it was, and ends with the same bits as training that was not."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import builders
import pytest
import torch
from torch import Tensor, nn

from capgap_core import slimming, targets
from capgap_core.batches import Batch, Examples
from capgap_core.checkpoints import Checkpoints
from capgap_core.distillation import Distillation
from capgap_core.errors import NonFinite
from capgap_core.families import bert
from capgap_core.progress import Silent
from capgap_core.training import LossOf, Step, Term, train

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


def alone(model: nn.Module) -> LossOf:
    return distillation().loss_of(model)


def together(model: nn.Module) -> LossOf:
    prefixes = slimming.Prefixes(bert, model, bert.shape_of(model.config), PLANS)
    return distillation().sandwich_of(model, prefixes, lambda step: (0.5, 0.3, 0.1) if step % 2 else (0.5, 0.1))


def distillation() -> Distillation:
    ask = targets.live(builders.bert(seed=9), layers=(0, 1, 2), context=nullcontext)
    return Distillation(ask, layers=2, regression=False, temperature=1.0, context=nullcontext)


def trained(
    folder: Path, part: Examples, *, ways: Callable[[nn.Module], LossOf] = alone, until: int = STEPS,
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


@pytest.mark.parametrize("ways", [alone, together])
@pytest.mark.parametrize("cut", [1, 4, 5, STEPS])
def test_the_bits_are_those_of_a_training_that_was_not_cut_off(tmp_path, cut: int, ways) -> None:
    """Five steps are an epoch here: cut before, at and after its end."""
    part = builders.examples(tmp_path)
    whole = trained(tmp_path / "whole", part, ways=ways)
    trained(tmp_path / "cut", part, ways=ways, until=cut)
    torch.manual_seed(99)  # what a new process would draw is something else
    keeper, heard = checkpoints(tmp_path / "cut")
    same(whole, trained(tmp_path / "cut", part, ways=ways, keeper=keeper))
    assert keeper.resumed == (cut,)
    assert heard.lines == [f"goes on after step {cut}"]


def test_two_checkpoints_stay(tmp_path) -> None:
    trained(tmp_path, builders.examples(tmp_path), until=6)
    found = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert found == ["step-000000005", "step-000000006"]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "delete"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, file: str, harm: str) -> None:
    part = builders.examples(tmp_path)
    whole = trained(tmp_path / "whole", part)
    trained(tmp_path, part, until=6)
    damage(tmp_path / "checkpoints" / "step-000000006" / file, harm)
    keeper, heard = checkpoints(tmp_path)
    same(whole, trained(tmp_path, part, keeper=keeper))
    assert keeper.resumed == (5,)
    assert "damaged" in heard.lines[0]


def test_where_none_is_whole_training_begins_again(tmp_path) -> None:
    part = builders.examples(tmp_path)
    whole = trained(tmp_path / "whole", part)
    trained(tmp_path, part, until=6)
    for folder in (tmp_path / "checkpoints").iterdir():
        damage(folder / "model.safetensors", "flip")
    keeper, _ = checkpoints(tmp_path)
    same(whole, trained(tmp_path, part, keeper=keeper))
    assert keeper.resumed == ()


def damage(path: Path, harm: str) -> None:
    held = path.read_bytes()
    if harm == "delete":
        path.unlink()
    else:
        path.write_bytes(held[:-3] if harm == "cut" else held[:100] + bytes([held[100] ^ 1]) + held[101:])


def test_half_a_checkpoint_is_never_found(tmp_path, monkeypatch) -> None:
    """Cut off in the middle of writing one: the one before counts, and the rest is swept away by the next."""
    part = builders.examples(tmp_path)
    whole = trained(tmp_path / "whole", part)
    trained(tmp_path, part, until=4)

    def fail(*_: object) -> None:
        raise CutOff

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", fail)
        with pytest.raises(CutOff):
            trained(tmp_path, part, until=6)
    keeper, _ = checkpoints(tmp_path)
    same(whole, trained(tmp_path, part, keeper=keeper))
    assert keeper.resumed == (4,)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-000000008", "step-000000009"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_step_and_a_checkpoint(tmp_path, number: signal.Signals) -> None:
    part = builders.examples(tmp_path)
    whole, sent = trained(tmp_path / "whole", part), list[int]()

    def interrupt(*_: object) -> None:
        raise CutOff

    def signalled(model: nn.Module) -> LossOf:
        inner = alone(model)

        def loss_of(batch: Batch, step: int) -> Iterator[list[Term]]:
            if step == 4 and not sent:
                sent.append(step)  # a second one would not wait
                os.kill(os.getpid(), number)
            yield from inner(batch, step)

        return loss_of

    before = signal.signal(number, interrupt)
    try:
        keeper, _ = checkpoints(tmp_path, every=1000)
        with pytest.raises(CutOff):
            trained(tmp_path, part, ways=signalled, keeper=keeper)
        assert signal.getsignal(number) is interrupt
    finally:
        signal.signal(number, before)
    assert keeper.last == 4
    keeper, _ = checkpoints(tmp_path)
    same(whole, trained(tmp_path, part, keeper=keeper))
    assert keeper.resumed == (4,)


def test_whoever_stops_to_take_steps_keeps_the_state(tmp_path) -> None:
    part = builders.examples(tmp_path)
    keeper, _ = checkpoints(tmp_path, every=1000)
    trained(tmp_path, part, until=3, keeper=keeper)  # the iterator ends with the function that holds it
    assert keeper.last == 3


def test_nothing_is_kept_before_its_time(tmp_path) -> None:
    keeper, _ = checkpoints(tmp_path, every=1000)
    trained(tmp_path, builders.examples(tmp_path), keeper=keeper, until=-1)
    assert keeper.last == 0
    assert not (tmp_path / "checkpoints").exists()


def test_other_threads_are_told(tmp_path) -> None:
    part = builders.examples(tmp_path)
    trained(tmp_path, part, until=3)
    keeper, heard = checkpoints(tmp_path, threads=2)
    trained(tmp_path, part, keeper=keeper)
    assert "made with threads 1" in heard.lines[0]


def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint(tmp_path) -> None:
    def bad(model: nn.Module) -> LossOf:
        inner = alone(model)

        def loss_of(batch: Batch, step: int) -> Iterator[list[Term]]:
            for terms in inner(batch, step):
                yield [
                    Term(name=t.name, total=t.total * (float("nan") if step == 5 else 1.0), per=t.per) for t in terms
                ]

        return loss_of

    keeper, _ = checkpoints(tmp_path)
    with pytest.raises(NonFinite, match="step 4"):
        trained(tmp_path, builders.examples(tmp_path), ways=bad, keeper=keeper)
    assert keeper.last == 4
