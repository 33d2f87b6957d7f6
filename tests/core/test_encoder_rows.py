"""A BERT that is computed row by row, against transformers' own: values, gradients, dropout, and what it leaves out."""

import dataclasses
from collections.abc import Callable
from typing import Any

import builders
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from capgap_core import machine, slimming
from capgap_core.batches import Batch
from capgap_core.encoder_layer import Attention, Dropout, FeedForward, How, noise
from capgap_core.families import bert, bert_rows
from capgap_core.outputs import ByRows, Computed, Output, Stock, computed

CPU = torch.device("cpu")
PLANS = {
    "whole": None,
    "narrow": builders.kept([3, 1], [40, 16]),
    "a layer without heads": builders.kept([0, 2], [8, 32]),
    "a layer without neurons": builders.kept([1, 3], [8, 0]),
    "nothing left": builders.kept([0, 0], [0, 0]),
}
WHERE = [("whole", 0), ("whole", 96), *((name, 64) for name in list(PLANS)[1:])]
"""(plan, room); the batch itself takes 45 rows."""


def model_of(plan: str, *, training: bool = False, dropout: float = 0.0) -> PreTrainedModel:
    model: PreTrainedModel = builders.bert(seed=4, dropout=dropout)
    kept = PLANS[plan]
    if kept is not None:
        model = slimming.slim(bert, model, bert.shape_of(model.config), kept)
    return model.train(training)


def batch_of(*, room: int = 0, lengths: tuple[int, ...] = (9, 4, 1, 7, 9)) -> Batch:
    """Return examples of two segments; places behind the end of one hold the padding's id, 0."""
    draw = np.random.default_rng(8)
    n, t = len(lengths), max(lengths)
    real = np.arange(t) < np.array(lengths)[:, None]
    ids = draw.integers(1, builders.VOCABULARY, size=(n, t)) * real
    types = (np.arange(t) >= np.array(lengths)[:, None] // 2) & real
    return Batch(
        index=np.arange(n), input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(real.astype(np.int64)),
        token_type_ids=torch.from_numpy(types.astype(np.int64)), labels=torch.zeros(n, dtype=torch.int64),
        room=max(room, n * t),
    )  # fmt: skip


def transformers_own(model: PreTrainedModel, batch: Batch, words: Tensor | None = None) -> Output:
    inputs: dict[str, Tensor] = dict(batch.named(bert.INPUTS))
    if words is not None:
        inputs["inputs_embeds"] = words
        del inputs["input_ids"]
    said = model(**inputs, output_hidden_states=True)
    return Output(hidden=tuple(batch.rows(state) for state in said.hidden_states), logits=said.logits)


def values(output: Output, batch: Batch) -> list[Tensor]:
    """Return what a model says of the real tokens and of the examples."""
    return [*(state[batch.keep] for state in output.hidden), output.logits]


def pulled(output: Output, batch: Batch) -> Tensor:
    """Return a loss that pulls at every value with a weight of its own."""
    draw = torch.Generator().manual_seed(3)
    weighed = ((v * torch.randn(v.shape, generator=draw).to(v.dtype)).sum() for v in values(output, batch))
    return torch.stack([w.double() for w in weighed]).sum()


def gradients(model: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    return {
        name: torch.zeros_like(p) if (g := found[name]) is None else g.to_dense()
        for name, p in model.named_parameters()
    }


def near(a: Tensor, b: Tensor, most: float) -> bool:
    """Return whether no value is further off than that share of the largest, or than that share of 1."""
    assert a.shape == b.shape
    a, b = a.detach(), b.detach()
    return a.numel() == 0 or bool((a - b).abs().max() <= most * max(1.0, float(b.abs().max())))


def rows_of(held: Tensor, batch: Batch) -> Tensor:
    """Return rows of what is held by rows or by example and place."""
    return held if held.dim() == 2 else batch.rows(held)


def agree(
    model: PreTrainedModel, way: Computed, batch: Batch, most: float, *, own: Callable[..., Output] = transformers_own
) -> None:
    """Compare values, the gradients of all parameters, and the same with words from outside and their gradient."""
    ours, theirs = way(batch), own(model, batch)
    assert len(ours.hidden) == len(theirs.hidden) == 3
    assert all(len(state) == batch.room for state in ours.hidden)
    assert all(near(a, b, most) for a, b in zip(values(ours, batch), values(theirs, batch), strict=True))
    expected, found = gradients(model, pulled(theirs, batch)), gradients(model, pulled(ours, batch))
    assert max(float(g.abs().max()) for name, g in expected.items() if g.numel()) > 1.0
    for name, gradient in expected.items():
        assert near(found[name], gradient, most), name

    looked_up = way.look_up(batch).detach().requires_grad_()
    words = model.get_input_embeddings()(batch.input_ids).detach().requires_grad_()
    assert torch.equal(rows_of(looked_up, batch)[batch.keep], batch.rows(words)[batch.keep])
    scaled, whole = way(batch, words=looked_up * 1.5), own(model, batch, words * 1.5)
    assert all(near(a, b, most) for a, b in zip(values(scaled, batch), values(whole, batch), strict=True))
    expected, found = gradients(model, pulled(whole, batch)), gradients(model, pulled(scaled, batch))
    assert all(near(found[name], gradient, most) for name, gradient in expected.items())
    assert not found[bert_rows.WORDS].any(), "words from outside are not looked up"
    assert looked_up.grad is not None
    assert words.grad is not None
    ours, theirs = rows_of(looked_up.grad, batch), batch.rows(words.grad)
    assert near(ours[batch.keep], theirs[batch.keep], most)
    assert not ours[~batch.keep].any(), "padding and spare rows pull nowhere"


@pytest.mark.parametrize(("plan", "room"), WHERE)
@pytest.mark.parametrize("training", [False, True])
def test_in_double_precision_it_is_transformers_own(plan: str, room: int, training: bool) -> None:
    model = model_of(plan, training=training).double()
    agree(model, ByRows(bert_rows, model, torch.float64), batch_of(room=room), 1e-10)


@pytest.mark.parametrize(("plan", "room"), WHERE)
def test_in_single_precision_it_is_transformers_own_but_for_rounding(plan: str, room: int) -> None:
    model = model_of(plan, training=True)
    way = computed(bert, model, "float32", CPU)
    assert isinstance(way, ByRows)
    agree(model, way, batch_of(room=room), 1e-5)


@pytest.mark.parametrize("lengths", [(1,), (1, 1, 1), (6, 6, 6), (2, 30)])
def test_batches_of_any_form(lengths: tuple[int, ...]) -> None:
    model = model_of("narrow").double()
    agree(model, ByRows(bert_rows, model, torch.float64), batch_of(lengths=lengths, room=64), 1e-10)


@pytest.mark.parametrize("plan", list(PLANS))
def test_in_bfloat16_it_is_near_autocast(plan: str) -> None:
    """No further from it than the two are from fp32, and rounded as bfloat16 is."""
    model, batch = model_of(plan), batch_of(room=64)
    ways = [computed(bert, model, "bfloat16", CPU), Stock(bert, model, "bfloat16", CPU), builders.way(model)]
    said = [torch.cat([v.detach().float().flatten() for v in values(way(batch), batch)]) for way in ways]
    pulls = [gradients(model, pulled(way(batch), batch)) for way in ways]
    for ours, theirs, exact in (said, [torch.cat([g.flatten() for g in held.values()]) for held in pulls]):
        off, rounding = float((ours - theirs).norm() / exact.norm()), float((theirs - exact).norm() / exact.norm())
        assert off < 0.02
        assert off < 1.5 * rounding
        assert float((ours - exact).norm() / exact.norm()) > 0.2 * rounding
    for name, gradient in pulls[1].items():
        if "key.bias" not in name:  # attention does not see it: its gradient is rounding
            assert float((pulls[0][name] - gradient).norm()) <= 0.05 * float(gradient.norm()), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_states_of_a_training_are_in_the_type_of_its_weights(dtype: machine.Precision) -> None:
    output = builders.way(builders.bert(), dtype)(batch_of(room=64))
    assert {state.dtype for state in output.hidden} == {torch.float32}
    assert output.logits.dtype == machine.KINDS[dtype]


def test_weights_kept_in_bfloat16_say_the_same_as_those_that_are_cast() -> None:
    model, batch = builders.bert(seed=4), batch_of(room=64)
    before = builders.way(model, "bfloat16")(batch)
    machine.keep_in(model, "bfloat16")
    after = builders.way(model, "bfloat16")(batch)
    assert all(torch.equal(a, b) for a, b in zip(values(after, batch), values(before, batch), strict=True))


def test_a_sub_network_is_the_model_that_is_really_small() -> None:
    model, batch = builders.bert(seed=4).double(), batch_of(room=64)
    shape, kept = bert.shape_of(model.config), PLANS["a layer without heads"]
    assert kept is not None
    small = slimming.slim(bert, model, shape, kept).double().eval()
    small.load_state_dict({**small.state_dict(), **slimming.prefix(bert, model.state_dict(), shape, kept)})
    cut = slimming.prefix(bert, dict(model.named_parameters()), shape, kept)
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in cut.items()}
    ours = ByRows(bert_rows, model, torch.float64)(batch, weights=leaves)
    theirs = transformers_own(small, batch)
    assert all(near(a, b, 1e-10) for a, b in zip(values(ours, batch), values(theirs, batch), strict=True))
    expected = gradients(small, pulled(theirs, batch))
    shared = gradients(model, pulled(ours, batch))
    for name, gradient in expected.items():
        found = leaves[name].grad if name in leaves else shared[name]
        assert found is not None
        assert near(found, gradient, 1e-10), name


def test_leaves_in_bfloat16_have_gradients_in_bfloat16() -> None:
    """Weights that were cast before say what those that are cast here do, and so do their gradients."""
    model, batch = builders.bert(seed=4), batch_of(room=64)
    way, kept = builders.way(model, "bfloat16"), PLANS["narrow"]
    assert kept is not None
    cut = slimming.prefix(bert, dict(model.named_parameters()), bert.shape_of(model.config), kept)
    ways = [{name: p.detach().to(kind).requires_grad_() for name, p in cut.items()} for kind in machine.KINDS.values()]
    said = [way(batch, weights=leaves) for leaves in ways]
    assert all(torch.equal(a, b) for a, b in zip(*(values(output, batch) for output in said), strict=True))
    for output in said:
        pulled(output, batch).backward()
    for name, whole in ways[0].items():
        grad, other = whole.grad, ways[1][name].grad
        assert grad is not None
        assert other is not None
        assert grad.dtype == torch.float32
        assert other.dtype == torch.bfloat16
        assert torch.equal(other, grad.to(torch.bfloat16)), name


def half(width: int, *, rows: int = 7, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """Return the input and weights of an attention of hidden size 6 and head size 3, and its mask."""
    draw = torch.Generator().manual_seed(seed)
    sizes = [(rows, 6), (width, 6), (width,), (width, 6), (width,), (width, 6), (width,), (6, width), (6,), (6,), (6,)]
    held = [torch.randn(size, dtype=torch.float64, generator=draw).requires_grad_() for size in sizes]
    return held, torch.tensor([[1.0, 1.0, 0.3], [1.0, 0.0, 0.0]]).log()


def whole(width: int, *, rows: int = 7, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    sizes = [(rows, 6), (width, 6), (width,), (6, width), (6,), (6,), (6,)]
    return [torch.randn(size, dtype=torch.float64, generator=draw).requires_grad_() for size in sizes]


def seeded(function: Callable[..., Tensor], *first: Any) -> Callable[..., Tensor]:
    """Return the function with the same random numbers at every call."""

    def call(*tensors: Tensor) -> Tensor:
        torch.manual_seed(11)
        return function(*first, *tensors)

    return call


DROPPED = [(0.0, 0.0), (0.3, 0.0), (0.0, 0.3), (0.4, 0.2)]


@pytest.mark.parametrize(("dropped", "inner"), DROPPED)
@pytest.mark.parametrize("width", [6, 3])
def test_the_gradient_of_attention_is_its_slope(width: int, dropped: float, inner: float) -> None:
    """With one row more than the two examples of three take, and dropout that takes the same places each time."""
    held, keep = half(width)
    how = How(dtype=torch.float64, eps=1e-12, dropped=dropped, inner=inner, head_size=3)
    assert torch.autograd.gradcheck(seeded(Attention.apply, how, keep), held)


@pytest.mark.parametrize("dropped", [0.0, 0.3])
@pytest.mark.parametrize("width", [5, 1])
def test_the_gradient_of_the_feed_forward_half_is_its_slope(width: int, dropped: float) -> None:
    how = How(dtype=torch.float64, eps=1e-12, dropped=dropped)
    assert torch.autograd.gradcheck(seeded(FeedForward.apply, how), whole(width))


@pytest.mark.parametrize("dropped", [0.0, 0.3])
def test_halves_that_have_lost_everything_have_the_slope_of_what_is_left(dropped: float) -> None:
    """What is empty cannot be moved, so that the rest is checked alone, and the empty has empty gradients."""
    how = How(dtype=torch.float64, eps=1e-12, dropped=dropped, head_size=3)
    attention, keep = half(0)
    for function, held in ((seeded(Attention.apply, how, keep), attention), (seeded(FeedForward.apply, how), whole(0))):
        there = [i for i, tensor in enumerate(held) if tensor.numel()]

        def of_the_rest(
            *tensors: Tensor,
            function: Callable[..., Tensor] = function,
            held: list[Tensor] = held,
            there: list[int] = there,
        ) -> Tensor:
            given = {**dict(enumerate(held)), **dict(zip(there, tensors, strict=True))}
            return function(*(given[i] for i in range(len(held))))

        assert torch.autograd.gradcheck(of_the_rest, [held[i] for i in there])
        function(*held).sum().backward()
        assert all(tensor.grad is not None and tensor.grad.shape == tensor.shape for tensor in held)


def test_dropout_has_the_slope_of_its_noise() -> None:
    x = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(seeded(lambda x: Dropout.apply(x, 0.4)), [x])


def test_what_stands_at_padding_and_in_spare_rows_changes_no_real_row() -> None:
    model = model_of("narrow").double()
    way, small, large = ByRows(bert_rows, model, torch.float64), batch_of(), batch_of(room=80)
    said, words = way(small), way.look_up(large).detach()
    garbage = 1e3 * torch.randn(words.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    full = torch.where(large.keep[:, None], words, garbage)
    other = way(large, words=full)
    assert not torch.allclose(other.hidden[-1][~large.keep][:5], way(large).hidden[-1][~large.keep][:5])
    for a, b in zip(values(other, large), values(said, small), strict=True):
        assert near(a, b, 1e-12)
    ids = torch.where(small.attention_mask.bool(), small.input_ids, 17)
    padded = dataclasses.replace(small, input_ids=ids)
    for a, b in zip(values(way(padded), padded), values(said, small), strict=True):
        assert near(a, b, 1e-12)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
def test_noise_takes_its_share_and_keeps_the_mean(share: float) -> None:
    torch.manual_seed(3)
    drawn = noise((250, 401), share)
    count, zeros = drawn.numel(), float((drawn == 0).double().mean())
    spread = (share * (1 - share) / count) ** 0.5
    assert zeros == pytest.approx(share, abs=5 * spread)
    assert float(drawn.double().mean()) == pytest.approx(1.0, abs=5 * spread / (1 - share))
    (kept,) = drawn[drawn > 0].unique().tolist()
    assert kept == pytest.approx(1 / (1 - share), rel=1e-3)
    assert drawn.dtype == torch.float32


def test_the_places_that_noise_takes_know_nothing_of_one_another() -> None:
    """Four come from one draw of the generator: also these are independent."""
    torch.manual_seed(4)
    taken = (noise((40_000, 8), 0.3) == 0).double()
    together = taken.T @ taken / len(taken)
    expected = torch.full((8, 8), 0.09, dtype=torch.float64).fill_diagonal_(0.3)
    assert torch.allclose(together, expected, atol=0.011)
    assert not torch.equal(taken[0::2], taken[1::2])


def test_the_seed_decides_the_noise_and_draws_differ() -> None:
    def draws(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        return [noise((9, 5, 7), 0.5) for _ in range(3)]

    once, again, other = draws(1), draws(1), draws(2)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(once, other, strict=True))
    assert not torch.equal(once[0], once[1])
    assert noise((3, 0, 5), 0.5).shape == (3, 0, 5)


SHARES = ["hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"]


@pytest.mark.parametrize("share", SHARES)
def test_each_dropout_acts_where_it_should_and_in_training_only(share: str) -> None:
    model, batch = builders.bert(seed=4), batch_of(room=64)
    for name in SHARES:
        setattr(model.config, name, 0.4 if name == share else 0.0)
    way, exact = builders.way(model), builders.way(builders.bert(seed=4))(batch)
    torch.manual_seed(2)
    same = [torch.equal(a, b) for a, b in zip(values(way(batch), batch), values(exact, batch), strict=True)]
    assert all(same), "no dropout in evaluation"
    model.train()
    same = [torch.equal(a, b) for a, b in zip(values(way(batch), batch), values(exact, batch), strict=True)]
    first = SHARES.index(share)  # dropout of attention is behind the embeddings, the classifier's behind all layers
    assert same == [True] * (0, 1, 3)[first] + [False] * (4, 3, 1)[first]
    zeros = float((way(batch).hidden[0][batch.keep] == 0).double().mean())
    assert zeros == pytest.approx(0.4 if share == "hidden_dropout_prob" else 0.0, abs=0.06)


def distribution(way: Computed, batch: Batch, draws: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance of each value of the last states and logits over the noise."""
    total = square = torch.zeros(())
    with torch.no_grad():
        for _ in range(draws):
            seen = torch.cat([v.double().flatten() for v in values(way(batch), batch)])
            total, square = total + seen, square + seen.square()
    mean = total / draws
    return mean, square / draws - mean.square()


def test_what_dropout_does_to_a_model_is_distributed_as_in_transformers_own() -> None:
    """For each value: its mean over many draws, and how much it varies. Logits are few, and told apart."""
    model, batch, draws = model_of("narrow", training=True, dropout=0.25), batch_of(lengths=(5, 3), room=32), 500
    torch.manual_seed(6)
    (mean, variance), (their_mean, their_variance) = (
        distribution(way, batch, draws) for way in (builders.way(model), Stock(bert, model, "float32", CPU))
    )
    apart = (mean - their_mean).square() / ((variance + their_variance) / draws)
    assert float(apart.mean()) == pytest.approx(1.0, abs=0.25)
    assert float((variance / their_variance).mean()) == pytest.approx(1.0, abs=0.04)
    logits = 2 * 3
    assert float((variance / their_variance)[-logits:].mean()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(("rows", "sparse"), [(builders.VOCABULARY, True), (builders.VOCABULARY + 1, False)])
@pytest.mark.parametrize("plan", ["whole", "narrow"])
def test_the_gradient_of_a_large_table_is_sparse(monkeypatch, plan: str, rows: int, sparse: bool) -> None:
    model, batch = model_of(plan).double(), batch_of(room=64)
    monkeypatch.setattr(bert_rows, "LARGE", rows)
    way = ByRows(bert_rows, model, torch.float64)
    pulled(way(batch), batch).backward()
    sparsely = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.is_sparse}
    assert sparsely == ({bert_rows.WORDS} if sparse else set())
    agree(model, way, batch, 1e-10)


def of_config(**changes: Any) -> PreTrainedModel:
    config = BertConfig(
        vocab_size=builders.VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, initializer_range=0.2, **changes,
    )  # fmt: skip
    config.num_labels = 3
    return BertForSequenceClassification(config).eval()


@pytest.mark.parametrize("act", ["gelu_new", "relu", "gelu_fast", "silu"])
def test_a_model_of_another_form_is_left_to_transformers(act: str) -> None:
    torch.manual_seed(0)
    model, batch = of_config(hidden_act=act), batch_of(room=64)
    assert not bert_rows.fits(model)
    way = computed(bert, model, "float32", CPU)
    assert isinstance(way, Stock)
    agree(model, way, batch_of(), 1e-6)
    rows = ByRows(bert_rows, model, torch.float32)(batch)
    assert not near(rows.hidden[-1][batch.keep], way(batch).hidden[-1][batch.keep], 1e-5), "rows would have been wrong"


def test_what_fits_is_computed_by_rows_on_a_cpu_only() -> None:
    model = builders.bert()
    assert bert_rows.fits(model)
    assert isinstance(computed(bert, model, "float32", CPU), ByRows)
    assert isinstance(computed(bert, model, "float32", torch.device("cuda")), Stock)
    assert not bert_rows.fits(of_config(is_decoder=True))
    assert not bert_rows.fits(of_config(problem_type="multi_label_classification"))


def test_transformers_way_gives_rows_too() -> None:
    model, batch = model_of("narrow"), batch_of(room=64)
    agree(model, builders.way(model), batch, 1e-5, own=stock)


def stock(model: PreTrainedModel, batch: Batch, words: Tensor | None = None) -> Output:
    way = Stock(bert, model, "float32", CPU)
    said = way(batch, words=words)
    assert all(len(state) == batch.room for state in said.hidden)
    return said
