"""Training that was cut off goes on where it was, and ends with the same bits as training that was not."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import builders
import pytest
import torch
from cut_off import STEPS, CutOff, alone, checkpoints, same, together, trained
from torch import nn

from capgap_core import signals
from capgap_core.batches import Batch
from capgap_core.checkpoints import Checkpoints
from capgap_core.errors import NonFinite
from capgap_core.training import LossOf, Term


@pytest.mark.parametrize(("ways", "cut"), [(alone, 1), (alone, 5), (alone, STEPS), (together, 4)])
def test_the_bits_are_those_of_a_training_that_was_not_cut_off(tmp_path, ways, cut: int) -> None:
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


@pytest.mark.parametrize(
    ("file", "harm"),
    [
        ("model.safetensors", "flip"), ("optimizer.safetensors", "cut"), ("rng.safetensors", "delete"),
        ("steps.safetensors", "flip"), ("state.json", "flip"), ("state.json", "delete"),
    ],
)  # fmt: skip
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
def test_a_signal_in_the_middle_of_a_step_leaves_the_state_before_it(tmp_path, number: signal.Signals) -> None:
    part = builders.examples(tmp_path)
    whole = trained(tmp_path / "whole", part)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def signalled(model: nn.Module) -> LossOf:
        inner = alone(model)

        def loss_of(batch: Batch, step: int) -> Iterator[list[Term]]:
            yield from inner(batch, step)
            if step == 4:
                os.kill(os.getpid(), number)

        return loss_of

    before = signal.signal(number, interrupt)
    try:
        keeper, _ = checkpoints(tmp_path, every=1000)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path, part, ways=signalled, keeper=keeper)
        assert signal.getsignal(number) is interrupt
    finally:
        signal.signal(number, before)
    assert keeper.last == 3
    keeper, _ = checkpoints(tmp_path)
    same(whole, trained(tmp_path, part, keeper=keeper))
    assert keeper.resumed == (3,)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_what_must_not_be_cut_in_two(number: signal.Signals) -> None:
    done: list[str] = []
    before = signal.signal(number, lambda *_: done.append("handled"))
    try:
        with signals.deferred():
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            done.append("whole")
        assert done == ["whole", "handled"]
    finally:
        signal.signal(number, before)


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


def test_what_ends_a_training_is_what_is_told_where_its_state_cannot_be_kept(tmp_path, monkeypatch) -> None:
    """A full disk does not make a failure of Ctrl-C, which auto_batch might even answer with another try."""
    keeper, heard = checkpoints(tmp_path, every=1000)

    def interrupted(model: nn.Module) -> LossOf:
        inner = alone(model)

        def loss_of(batch: Batch, step: int) -> Iterator[list[Term]]:
            if step == 3:
                raise KeyboardInterrupt
            yield from inner(batch, step)

        return loss_of

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoints, "_write", full)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, builders.examples(tmp_path), ways=interrupted, keeper=keeper)
    assert "could not be kept" in heard.lines[-1]


@pytest.mark.parametrize("odd", ["file", "link"])
def test_what_else_has_the_name_of_a_checkpoint_is_passed_over(tmp_path, odd: str) -> None:
    part = builders.examples(tmp_path)
    whole = trained(tmp_path / "whole", part)
    trained(tmp_path, part, until=3)
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("step-000000009", ".unfinished"):
        place = tmp_path / "checkpoints" / name
        place.symlink_to(outside) if odd == "link" else place.write_text("")
    keeper, _ = checkpoints(tmp_path)
    same(whole, trained(tmp_path, part, keeper=keeper))
    assert keeper.resumed == (3,)
    assert outside.is_dir()


def test_handlers_are_put_back_also_where_one_of_them_raises_meanwhile(monkeypatch) -> None:
    """Two signals come while it ends: the handler of the first raises as soon as it is back."""

    def raises(*_: object) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, raises) for number in numbers}
    real = signal.signal

    def put_back(number: int, handler: object) -> object:
        made = real(number, handler)
        if handler is raises and number == signal.SIGINT and len(fired) < 1:
            fired.append(number)
            signal.raise_signal(number)
        return made

    fired: list[int] = []
    try:
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt), signals.deferred():
            patched.setattr(signal, "signal", put_back)
        assert [signal.getsignal(number) for number in numbers] == [raises] * 3
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
