"""Batches that have room for so many tokens: what is in them, in which order, and what each example weighs."""

import copy
from itertools import islice, pairwise
from pathlib import Path

import builders
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel

from capgap_core import batches, tables, targets
from capgap_core.batches import Batch, Examples
from capgap_core.distillation import Distillation, Objective
from capgap_core.training import LossOf, Step, Term, Training, train

CPU = torch.device("cpu")


def drawn(rows: int, longest: int, seed: int) -> np.ndarray:
    """Return lengths, most of them short."""
    draw = np.random.default_rng([rows, seed])
    return np.minimum(2 + draw.geometric(3 / (longest + 2), size=rows), longest).astype(np.int64)


def sentences(rows: int) -> np.ndarray:
    """Return lengths as those of SST-2: 3 to 60 tokens, 13 on average."""
    draw = np.random.default_rng(1)
    return np.minimum(2 + draw.geometric(0.09, size=rows), 60).astype(np.int64)


def order(lengths: np.ndarray, room: int, *, seed: int = 3, epoch: int = 0) -> list[list[int]]:
    found = batches.epoch_order(lengths, batch_size=8, room=room, seed=seed, epoch=epoch)
    return [index.tolist() for index in found]


def padded(lengths: np.ndarray, index: list[int]) -> int:
    return len(index) * int(lengths[index].max())


ASKED = {
    "rows": st.integers(1, 600), "longest": st.integers(3, 200), "room": st.integers(1, 3000),
    "seed": st.integers(0, 10**6), "epoch": st.integers(0, 3),
}  # fmt: skip


@settings(deadline=None, max_examples=80)
@given(**ASKED)
def test_an_epoch_sees_every_example_once_in_batches_that_have_room(
    rows: int, longest: int, room: int, seed: int, epoch: int
) -> None:
    """One that is longer than the room stands alone; the order is a function of the arguments."""
    lengths = drawn(rows, longest, seed)
    found = order(lengths, room, seed=seed, epoch=epoch)
    assert sorted(place for index in found for place in index) == list(range(rows))
    assert all(len(index) == 1 or padded(lengths, index) <= room for index in found)
    assert order(lengths.copy(), room, seed=seed, epoch=epoch) == found


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 600), st.integers(3, 200), st.integers(1, 40), st.integers(0, 10**6))
def test_the_room_is_such_that_batches_hold_what_was_asked_for_on_average(
    rows: int, longest: int, size: int, seed: int
) -> None:
    lengths = drawn(rows, longest, seed)
    room, per_epoch = batches.room_for(lengths, size)
    assert room % batches.GRAIN == 0
    assert room >= lengths.max(), "no example is longer"
    assert per_epoch <= -(-rows // size)
    if room - batches.GRAIN >= max(lengths.max(), lengths.sum() / -(-rows // size)):
        more = batches._by_tokens(lengths, room - batches.GRAIN, np.random.default_rng(0))
        assert len(more) > -(-rows // size), "less room would have taken more batches"


@pytest.mark.parametrize("size", [8, 32, 64])
def test_of_sentences_little_is_padded_and_epochs_are_as_long_as_was_told(size: int) -> None:
    lengths = sentences(10_000)
    assert 12 < lengths.mean() < 14
    room, per_epoch = batches.room_for(lengths, size)
    counts = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (7, 5)):
        found = order(lengths, room, seed=seed, epoch=epoch)
        counts.append(len(found))
        assert 1 - lengths.sum() / (len(found) * room) < (0.05 if size > 8 else 0.1)
        assert 10_000 / len(found) == pytest.approx(size, rel=0.06 if size > 8 else 0.12)
    assert counts == pytest.approx([per_epoch] * 4, rel=0.02)
    assert max(len(index) for index in found) > 2 * size, "many short examples"
    assert min(len(index) for index in found[:-1]) < size, "or few long ones"


def test_the_room_of_a_large_part_is_told_from_some_of_it() -> None:
    lengths = sentences(3 * batches.SEEN)
    room, per_epoch = batches.room_for(lengths, 32)
    assert (room, per_epoch) == batches.room_for(lengths.copy(), 32)
    assert len(order(lengths, room)) == pytest.approx(per_epoch, rel=0.01)
    assert len(lengths) / per_epoch == pytest.approx(32, rel=0.06)


def test_epochs_and_seeds_differ_and_short_batches_do_not_come_first() -> None:
    lengths = sentences(2000)
    orders = [order(lengths, 416, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    assert len({frozenset(map(frozenset, found)) for found in orders}) == 4, "other batches, not the same in turn"
    for found in orders:
        means = [lengths[index].mean() for index in found]
        assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(10, 400), st.integers(0, 80), st.integers(0, 10**6), st.booleans())
def test_the_stream_goes_on_anywhere(rows: int, room: int, skip: int, seed: int, by_tokens: bool) -> None:
    """Epochs have different numbers of batches; each batch comes with that of its own."""
    lengths = drawn(rows, 60, seed)

    def stream(skip: int, count: int) -> list[tuple[list[int], int]]:
        found = batches.endless(lengths, batch_size=8, room=room if by_tokens else None, seed=seed, skip=skip)
        return [(index.tolist(), told) for index, told in islice(found, count)]

    whole = stream(0, skip + 20)
    assert stream(skip, 20) == whole[skip:]
    expected, epoch = [], 0
    while len(expected) < len(whole):
        here = batches.epoch_order(lengths, batch_size=8, room=room if by_tokens else None, seed=seed, epoch=epoch)
        expected += [(index.tolist(), len(here)) for index in here]
        epoch += 1
    assert whole == expected[: len(whole)]


@pytest.mark.parametrize("pad", [0, 5])
def test_words_are_all_that_a_batch_looks_up_each_once(tmp_path: Path, pad: int) -> None:
    """Its padding and the rows at its end among them, whatever the padding's id."""
    builders.examples(tmp_path)
    part = Examples(next(tmp_path.glob("*.parquet")), pad=pad, regression=False)
    for index in (*pairwise(range(24)), [4], range(24)):
        chosen = np.array(index)
        batch = part.batch(chosen, room=400)
        words = part.words(chosen).tolist()
        assert len(set(words)) == len(words)
        assert set(words) == {*batch.rows(batch.input_ids).tolist(), 0, pad}
        assert part.words(chosen).dtype == torch.int64


def test_rows_are_the_tokens_one_after_the_other_and_then_nothing(tmp_path: Path) -> None:
    part = builders.examples(tmp_path)
    batch, tight = part.batch([7, 2, 5], room=100), part.batch([7, 2, 5], room=3)
    n, t = batch.input_ids.shape
    assert (batch.room, tight.room) == (100, n * t)
    assert torch.equal(batch.input_ids, tight.input_ids)
    held = torch.randn(n, t, 4)
    rows = batch.rows(held)
    assert torch.equal(rows[: n * t].view(n, t, 4), held)
    assert rows.shape == (100, 4)
    assert not rows[n * t :].any()
    assert torch.equal(tight.rows(held), held.view(n * t, 4))
    assert int(batch.keep.sum()) == int(tight.keep.sum()) == int(part.lengths[[7, 2, 5]].sum())
    assert torch.equal(batch.keep[: n * t], batch.attention_mask.bool().flatten())
    moved = batch.to(CPU)
    assert moved.room == 100
    assert torch.equal(moved.labels, part.batch([7, 2, 5]).labels)


def test_examples_are_cut_into_batches_from_the_shortest_on(tmp_path: Path) -> None:
    part = builders.examples(tmp_path, 40)
    piece = np.arange(5, 37)
    found = part.cut(piece, 60)
    assert sorted(np.concatenate(found).tolist()) == piece.tolist()
    assert (np.diff(part.lengths[np.concatenate(found)]) >= 0).all()
    assert all(padded(part.lengths, index.tolist()) <= 60 for index in found)
    assert all((len(a) + 1) * part.lengths[b[0]] > 60 for a, b in pairwise(found)), "the next would not have gone in"


def test_the_digest_tells_token_ids_types_and_where_an_example_begins(tmp_path: Path) -> None:
    """And nothing else: labels move no output of a teacher."""

    def digest(ids: list[list[int]], types: list[list[int]], label: float = 0.0) -> str:
        rows = len(ids)
        columns = {"row": list(range(rows)), "label": [label] * rows, "input_ids": ids, "token_type_ids": types}
        tables.write_columns(tmp_path / "part.parquet", "examples", columns)
        return Examples(tmp_path / "part.parquet", pad=0, regression=False).digest

    ids, types = [[1, 2], [3]], [[0, 0], [0]]
    once = digest(ids, types)
    assert digest(ids, types, label=1.0) == once
    assert digest([[1, 2], [4]], types) != once
    assert digest(ids, [[0, 1], [0]]) != once
    assert digest([[1], [2, 3]], [[0], [0, 0]]) != once


ROOM = 64
"""Three to twenty examples of three to twelve tokens."""


def distilled(model: PreTrainedModel) -> LossOf:
    ask = targets.live(builders.way(builders.bert(seed=9)), layers=(0, 1, 2))
    return Distillation(ask, layers=2, regression=False, objective=Objective()).loss_of(builders.way(model))


def epoch_of(part: Examples, **changes: object) -> Training:
    """Return an epoch in which no weight moves, so that the gradients of its steps can be added."""
    per_epoch = len(batches.epoch_order(part.lengths, batch_size=8, room=ROOM, seed=1, epoch=0))
    base = {"steps": per_epoch, "per_epoch": per_epoch, "room": ROOM, "learning_rate": 0.0, "clip": 1e9}
    return builders.training(**{**base, **changes})


def summed(part: Examples, training: Training) -> tuple[dict[str, Tensor], list[Step]]:
    """Return the sum of all gradients of a training, and its steps."""
    model, total = builders.bert(seed=2), {}

    def note(name: str, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        now = parameter.grad.clone()
        total[name] = total.get(name, 0.0) + now - seen.get(name, 0.0)
        seen[name] = now

    seen: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: note(name, p))
    steps = []
    for step in train(model, part, training, distilled(model), device=CPU, stage="distil"):
        steps.append(step)
        seen.clear()
    return total, steps


@pytest.mark.parametrize("micro", [8, 3, 1])
def test_over_an_epoch_every_example_and_every_token_weighs_the_same(tmp_path: Path, micro: int) -> None:
    """The gradients of its steps add up to those of the formula on the whole part, as often as there are steps."""
    part, twin = builders.examples(tmp_path, 90), builders.bert(seed=2)
    training = epoch_of(part, micro_batch=micro)
    found, steps = summed(part, training)
    sizes = [len(index) for index in order(part.lengths, ROOM, seed=1)]
    assert max(sizes) > 2 * min(sizes)
    (terms,) = distilled(twin)(part.batch(range(90)), 1)
    counts = {"examples": 90, "tokens": int(part.lengths.sum())}
    torch.stack([term.weight * term.total / counts[term.per] for term in terms]).sum().backward()
    for name, parameter in twin.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else training.steps * parameter.grad
        assert torch.allclose(found.get(name, torch.zeros(())), expected, rtol=1e-3, atol=1e-4), name
    assert steps[-1].tokens == counts["tokens"]


def test_micro_batches_change_nothing_but_memory_where_there_is_room(tmp_path: Path) -> None:
    part = builders.examples(tmp_path, 90)
    (whole, at_once), *others = (summed(part, epoch_of(part, micro_batch=micro)) for micro in (8, 3, 1))
    for parts, in_parts in others:
        assert all(torch.allclose(gradient, parts[name], rtol=1e-3, atol=1e-4) for name, gradient in whole.items())
        for a, b in zip(at_once, in_parts, strict=True):
            assert (a.step, a.tokens, a.lr) == (b.step, b.tokens, b.lr)
            assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-4)
            assert a.terms == pytest.approx(b.terms, rel=1e-4)


@pytest.mark.parametrize(("micro", "parts"), [(8, 1), (4, 2), (3, 3), (1, 8)])
def test_every_batch_of_a_training_has_the_same_room(tmp_path: Path, micro: int, parts: int) -> None:
    """But for the parts of one that is cut, where the longest examples are together."""
    part, seen, model = builders.examples(tmp_path, 90), [], builders.bert(seed=2)
    inner = distilled(model)

    def loss_of(batch: Batch, step: int) -> list[list[Term]]:
        seen.append((step, batch))
        return list(inner(batch, step))

    training = epoch_of(part, micro_batch=micro)
    list(train(model, part, training, loss_of, device=CPU, stage="distil"))
    share = -(-ROOM // parts)
    assert all(batch.room == max(share, batch.input_ids.numel()) for _, batch in seen)
    for step, index in enumerate(order(part.lengths, ROOM, seed=1), 1):
        here = [batch for at, batch in seen if at == step]
        assert len(here) == min(parts, len(index))
        assert np.concatenate([batch.index for batch in here]).tolist() == index
        assert max(len(b.index) for b in here) - min(len(b.index) for b in here) <= 1
    assert parts > 1 or {batch.room for _, batch in seen} == {ROOM}


@pytest.mark.parametrize("room", [None, ROOM])
def test_a_step_tells_the_mean_of_its_own_examples(tmp_path: Path, room: int | None) -> None:
    """What is told is a mean over the step, also where the gradient is divided by the epoch's mean step."""
    part, model = builders.examples(tmp_path, 90), builders.bert(seed=2)

    def loss_of(batch: Batch, _step: int) -> list[list[Term]]:
        each = 3.0 * len(batch.index) + 0.0 * model.classifier.bias.sum()
        tokens = 5.0 * batch.attention_mask.sum() + 0.0 * model.classifier.weight.sum()
        return [
            [Term(name="label", total=each, per="examples", weight=0.25)],
            [Term(name="token", total=tokens, per="tokens", scale=0.5)],
        ]

    steps = list(train(model, part, epoch_of(part, room=room, micro_batch=3), loss_of, device=CPU, stage="distil"))
    for step in steps:
        assert step.terms == pytest.approx({(None, "label"): 3.0, (0.5, "token"): 5.0})


def test_without_room_a_step_is_divided_by_its_own_examples(tmp_path: Path) -> None:
    part, model = builders.examples(tmp_path, 11), builders.bert(seed=2)
    twin = copy.deepcopy(model)
    (step,) = train(model, part, builders.training(steps=1, clip=1e9), distilled(model), device=CPU, stage="distil")
    (index,) = islice(batches.endless(part.lengths, batch_size=8, room=None, seed=1), 1)
    (terms,) = distilled(twin)(part.batch(index[0]), 1)
    counts = {"examples": len(index[0]), "tokens": int(part.lengths[index[0]].sum())}
    torch.stack([term.weight * term.total / counts[term.per] for term in terms]).sum().backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in twin.parameters() if p.grad is not None])
    assert step.grad_norm == pytest.approx(float(norm), rel=1e-4)
