"""Mixtures of examples: exact where one of the two is all, linear in the embeddings, and what is learned from them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.nn.functional import pad

from capgap_core import batches
from capgap_core.batches import Batch
from capgap_core.distillation import Distillation, Objective
from capgap_core.families import bert
from capgap_core.mixup import Mixture, Mixtures, Mixup, Pupil, drawn, mixed
from capgap_core.outputs import Computed, Stock
from capgap_core.records import Reference
from capgap_core.steps import task_loss
from capgap_core.targets import live
from capgap_core.training import Term, train

CPU = torch.device("cpu")
LENGTHS = (9, 4, 1, 7, 9)
WAYS: dict[str, Callable[[Any], Computed]] = {
    "rows": builders.way,
    "transformers": lambda m: Stock(bert, m, "float32", CPU),
}


def batch_of(*, labels: int = 3, more: int = 0, regression: bool = False) -> Batch:
    """Return five examples of pairs of texts, and so many places of padding more."""
    draw, n, t = torch.Generator().manual_seed(4), len(LENGTHS), max(LENGTHS)
    real = torch.arange(t)[None] < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(1, builders.VOCABULARY, (n, t), generator=draw)
    types = (torch.arange(t)[None] > torch.tensor(LENGTHS)[:, None] // 2) & real
    answers = torch.randn(n, generator=draw) if regression else torch.randint(labels, (n,), generator=draw)
    wider = (pad(x, (0, more)) for x in (ids * real, real.long(), types.long()))
    names = ("input_ids", "attention_mask", "token_type_ids")
    return Batch(index=np.arange(n), labels=answers, room=n * (t + more), **dict(zip(names, wider, strict=True)))


def how(**changes: Any) -> Mixup:
    base = {"samples": 1, "alpha": 0.4, "mix": None, "per": "pair", "mask": "soft", "labels": 1.0, "teacher": 1.0}
    return Mixup(**{**base, "seed": 3, **changes})


def mixture(mix: float | Tensor, *, n: int = len(LENGTHS)) -> Mixture:
    return Mixture(partner=torch.roll(torch.arange(n), 2), mix=torch.as_tensor(mix).float().expand(n), seed=0)


def pupil(model: Any, way: str = "rows") -> Pupil:
    return Pupil.of(WAYS[way](model), model, bert.TYPES)


def said(model: Any, batch: Batch, chosen: Mixture, way: str, mask: Any = "soft") -> Tensor:
    one = pupil(model, way)
    return one.way(mixed(batch, chosen, mask), words=one.embeddings.of(batch, chosen, "mixture")).logits


@pytest.mark.parametrize("way", WAYS)
def test_at_the_ends_a_mixture_is_one_of_the_two_examples(way: str) -> None:
    model, batch = builders.bert(), batch_of()
    plain = WAYS[way](model)(batch).logits
    assert torch.allclose(said(model, batch, mixture(1.0), way), plain, atol=1e-5)
    assert torch.allclose(said(model, batch, mixture(0.0), way), plain[mixture(0.0).partner], atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_near_the_ends_nothing_jumps_but_with_the_union_of_the_masks(way: str) -> None:
    model, batch = builders.bert(), batch_of()
    for end in (1.0, 0.0):
        there, near = (said(model, batch, mixture(mix), way) for mix in (end, abs(end - 1e-6)))
        assert torch.allclose(there, near, atol=1e-3)
    plain = WAYS[way](model)(batch).logits
    assert not torch.allclose(said(model, batch, mixture(1.0), way, "union"), plain, atol=1e-2)


def test_both_ways_to_compute_a_mixture_agree() -> None:
    model, batch, chosen = builders.bert(), batch_of(), mixture(torch.tensor([0.1, 0.5, 0.9, 0.3, 1.0]))
    for mask in ("soft", "union"):
        assert torch.allclose(*(said(model, batch, chosen, way, mask) for way in WAYS), atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.floats(-3, 3), st.floats(-3, 3), st.lists(st.floats(0, 1), min_size=5, max_size=5))
def test_mixing_is_linear_in_the_embeddings(a: float, b: float, mix: list[float]) -> None:
    batch, chosen, found = batch_of(), mixture(torch.tensor(mix)), []
    models = [builders.bert(seed=seed) for seed in (0, 1, 2)]
    with torch.no_grad():
        for name in ("word_embeddings", "token_type_embeddings"):
            one, two, both = (getattr(m.bert.embeddings, name).weight for m in models)
            both.copy_(a * one + b * two)
        for model in models:
            words = pupil(model).embeddings.of(batch, chosen, "mixture")
            types = model.bert.embeddings.token_type_embeddings.weight[batch.token_type_ids]
            found.append(words.view(5, -1, 32) + types)  # as the model goes on with them
            own = model.bert.embeddings.word_embeddings.weight[batch.input_ids] + types
            share = chosen.mix[:, None, None]
            assert torch.allclose(found[-1], share * own + (1 - share) * own[chosen.partner], atol=1e-5)
    assert torch.allclose(a * found[0] + b * found[1], found[2], atol=1e-4)


def terms_of(
    asked: Mixup, batch: Batch, chosen: Mixture, *, regression: bool = False, objective: Any = None, **student: Any
):
    labels = 1 if regression else 3
    ours, theirs = (builders.bert(seed=seed, labels=labels, **student) for seed in (0, 1))
    ours.train()
    distance = Distillation(None, layers=2, regression=regression, objective=objective or Objective(distance="mse"))
    return (
        ours,
        theirs,
        Mixtures(asked, pupil(ours), pupil(theirs.requires_grad_(False)), distance, regression=regression),
    )


@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("distance", ["mse", "kl"])
@pytest.mark.parametrize("whole", [1.0, 0.0])
def test_at_the_ends_the_losses_are_those_of_the_examples(regression: bool, distance: str, whole: float) -> None:
    """With dropout of the same seed: the sums over the batch are the same whoever is whose partner."""
    batch = batch_of(regression=regression)
    asked = Objective(labels=1.0, hidden=0.0, prediction=1.0, distance=distance, temperature=2.0)  # pyright: ignore
    dropout = 0.2 if whole == 1.0 else 0.0
    ours, theirs, mixtures = terms_of(
        how(labels=0.7, teacher=0.4), batch, mixture(1.0), regression=regression, objective=asked, dropout=dropout
    )
    theirs.eval()
    torch.manual_seed(0)
    found = mixtures.terms(batch, mixture(whole))
    plain = Distillation(live(builders.way(theirs), layers=()), layers=2, regression=regression, objective=asked)
    torch.manual_seed(0)
    (expected,) = plain.loss_of(builders.way(ours))(batch, 1)
    assert [t.weight for t in found] == [0.7, 0.4]
    for one, other in zip(found, expected, strict=True):
        assert one.total.item() == pytest.approx(other.total.item(), rel=1e-5, abs=1e-5)
    if whole == 1.0:
        value = sum(t.weight * t.total for t in [*found, *expected[:1]])
        assert value.item() == pytest.approx(1.7 * expected[0].total.item() + 0.4 * expected[1].total.item(), rel=1e-5)


def test_labels_are_mixed_as_the_examples_are() -> None:
    batch, chosen = batch_of(), mixture(torch.tensor([0.1, 0.5, 0.9, 0.3, 1.0]))
    ours, _, mixtures = terms_of(how(teacher=0.0), batch, chosen)
    (term,) = mixtures.terms(batch, chosen)
    log_q = said(ours, batch, chosen, "rows").log_softmax(-1)
    one_hot = torch.nn.functional.one_hot(batch.labels, 3)
    share = chosen.mix[:, None]
    soft = share * one_hot + (1 - share) * one_hot[chosen.partner]
    assert term.total.item() == pytest.approx(-(soft * log_q).sum().item(), rel=1e-5)


def test_padding_changes_nothing_and_the_teacher_gets_no_gradient() -> None:
    chosen, values = mixture(torch.tensor([0.1, 0.5, 0.9, 0.3, 0.7])), []
    for more in (0, 6):
        batch = batch_of(more=more)
        ours, theirs, mixtures = terms_of(how(), batch, chosen)
        theirs.requires_grad_(True)
        terms = mixtures.terms(batch, chosen)
        torch.stack([t.total for t in terms]).sum().backward()
        assert all(p.grad is None for p in theirs.parameters())
        assert ours.get_parameter(bert.TYPES).grad.abs().sum() > 0
        values.append(torch.cat([p.grad.flatten() for p in ours.parameters() if p.grad is not None]))
    assert torch.allclose(*values, atol=1e-4)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 40), st.integers(0, 1000), st.integers(1, 10**6), st.sampled_from(["pair", "batch"]))
def test_partners_are_others_and_draws_are_functions_of_the_step(n: int, seed: int, step: int, per: Any) -> None:
    ids = torch.zeros(n, 1, dtype=torch.int64)
    batch = Batch(index=np.arange(n), input_ids=ids, attention_mask=ids, token_type_ids=ids, labels=ids[:, 0], room=n)
    found, again, other = (drawn(how(seed=seed, per=per), batch, s, 0) for s in (step, step, step + 1))
    assert sorted(found.partner.tolist()) == list(range(n))
    assert not (found.partner == torch.arange(n)).any()
    assert torch.equal(found.partner, again.partner)
    assert torch.equal(found.mix, again.mix)
    assert not torch.equal(found.mix, other.mix)
    assert bool(((found.mix >= 0) & (found.mix <= 1)).all())
    assert len(set(found.mix.tolist())) == 1 or per == "pair"
    assert bool((drawn(how(mix=0.3), batch, step, 0).mix == 0.3).all())


def test_shares_are_of_the_distribution_that_is_asked_for() -> None:
    n = 20_000
    ids = torch.zeros(n, 1, dtype=torch.int64)
    batch = Batch(index=np.arange(n), input_ids=ids, attention_mask=ids, token_type_ids=ids, labels=ids[:, 0], room=n)
    for alpha in (0.4, 2.0):
        mix = drawn(how(alpha=alpha), batch, 1, 0).mix.double()
        assert float(mix.mean()) == pytest.approx(0.5, abs=0.02)
        assert float(mix.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_more_mixtures_weigh_as_much_as_one_together() -> None:
    batch = batch_of()
    _, _, mixtures = terms_of(how(samples=3, labels=0.6, teacher=0.3), batch, mixture(0.5))
    first = [Term(name="own", total=torch.tensor(1.0), per="examples")]
    own, *groups = mixtures.added_to(lambda _batch, _step: iter([first]))(batch, 5)
    assert own == first
    assert len(groups) == 3
    _, _, one = terms_of(how(labels=0.6, teacher=0.3), batch, mixture(0.5))
    for sample, group in enumerate(groups):
        alone = one.terms(batch, drawn(how(samples=3, labels=0.6, teacher=0.3), batch, 5, sample))
        for ours, theirs, weight in zip(group, alone, (0.6, 0.3), strict=True):
            assert ours.weight == theirs.weight == weight
            assert 3 * ours.total.item() == pytest.approx(theirs.total.item(), rel=1e-5)
    assert len({group[0].total.item() for group in groups}) == 3


def test_noise_moves_each_embedding_as_far_as_its_partner_would() -> None:
    batch, chosen = batch_of(), mixture(torch.tensor([0.1, 0.5, 0.9, 0.3, 1.0]))
    own = pupil(builders.bert())
    plain = own.way.look_up(batch)
    norms = [(own.embeddings.of(batch, chosen, kind) - plain).norm(dim=-1) for kind in ("mixture", "noise")]
    assert torch.allclose(*norms, atol=1e-5)
    assert norms[0].max() > 0.1
    model = builders.bert()
    _, _, mixtures = terms_of(how(kind="noise", teacher=0.0), batch, chosen)
    (term,) = mixtures.terms(batch, replace(chosen, mix=torch.ones(5)))
    expected = torch.nn.functional.cross_entropy(
        builders.way(model.train())(batch).logits, batch.labels, reduction="sum"
    )
    assert term.total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_labels_alone_are_fine_tuning(tmp_path: Path) -> None:
    model, batch = builders.bert(), builders.examples(tmp_path).batch([0, 1, 2])
    own = Distillation(None, layers=2, regression=False, objective=Objective(labels=1.0, hidden=0.0, prediction=0.0))
    (found,) = own.loss_of(builders.way(model))(batch, 1)
    data = Reference(
        stage="data", identity="a", code="b", digest="c", path=str(tmp_path), summary={"task": "classification"}
    )
    (expected,) = task_loss(builders.way(model), data)(batch, 1)
    assert [(t.name, t.weight, t.total.item()) for t in found] == [(t.name, t.weight, t.total.item()) for t in expected]


@pytest.mark.parametrize(("size", "micro"), [(2, 2), (3, 2), (8, 2), (8, 3), (22, 22), (23, 5)])
@pytest.mark.parametrize("by_tokens", [False, True])
def test_no_example_is_mixed_with_itself(tmp_path: Path, size: int, micro: int, by_tokens: bool) -> None:
    """Neither a last step nor a micro-batch is of one example; without ``fewest`` some are."""
    part = builders.examples(tmp_path, rows=23)
    room, per_epoch = batches.room_for(part.lengths, size) if by_tokens else (None, -(-23 // size))
    made = builders.training(steps=2 * per_epoch, batch_size=size, room=room, per_epoch=per_epoch, micro_batch=micro)
    model = builders.bert()
    seen: list[int] = []

    def loss_of(batch: Batch, _step: int) -> Iterator[list[Term]]:
        seen.append(len(batch.index))
        yield [Term(name="any", total=model.classifier.weight.sum(), per="examples")]

    list(train(model, part, made, loss_of, device=CPU, stage="distil", fewest=2))
    assert min(seen) >= 2
    assert sum(seen) >= 23
