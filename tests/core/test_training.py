"""The one training loop: what a step is, whatever the micro-batches, and what it refuses."""

import copy
import random
from collections.abc import Iterator

import builders
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from capgap_core import batches, slimming, targets
from capgap_core.batches import Batch, Examples
from capgap_core.distillation import Distillation, Objective
from capgap_core.errors import NonFinite
from capgap_core.families import bert
from capgap_core.machine import ready
from capgap_core.recipes import Execution
from capgap_core.stages import sandwich
from capgap_core.training import LossOf, Step, Term, Training, train

CPU = torch.device("cpu")
PLANS = {
    0.8: builders.kept([4, 3], [48, 56]),
    0.5: builders.kept([3, 1], [40, 16]),
    0.3: builders.kept([0, 2], [8, 32]),
    0.1: builders.kept([1, 0], [8, 0]),
}


def distillation(labels: int = 3) -> Distillation:
    teacher = builders.bert(seed=9, labels=labels)
    ask = targets.live(builders.way(teacher), layers=(0, 1, 2))
    return Distillation(ask, layers=2, regression=False, objective=Objective())


def run(model: nn.Module, part: Examples, training: Training, loss_of: LossOf) -> list[Step]:
    return list(train(model, part, training, loss_of, device=CPU, stage="distil"))


def watched(model: nn.Module) -> dict[str, Tensor]:
    """Return a dictionary that always holds the gradients of the last backward pass, before they are clipped."""
    seen: dict[str, Tensor] = {}

    def note(name: str, parameter: Tensor) -> None:
        assert parameter.grad is not None
        seen[name] = parameter.grad.to_dense().clone()

    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: note(name, p))
    return seen


@pytest.mark.parametrize("micro", [1, 3])
def test_micro_batches_change_nothing_but_memory(tmp_path, micro: int) -> None:
    part, outcomes = builders.examples(tmp_path), []
    for size in (8, micro):
        student = builders.bert(seed=2)
        gradients = watched(student)
        steps = run(
            student, part, builders.training(micro_batch=size, clip=0.5), distillation().loss_of(builders.way(student))
        )
        outcomes.append((gradients, steps, student.state_dict()))
    (whole, at_once, first), (parts, in_parts, second) = outcomes
    for name, gradient in whole.items():
        assert torch.allclose(gradient, parts[name], rtol=1e-3, atol=1e-5), name
        # Attention does not see a key's bias: its gradient is rounding, which Adam blows up.
        assert "key.bias" in name or torch.allclose(first[name], second[name], atol=1e-4), name
    for a, b in zip(at_once, in_parts, strict=True):
        assert (a.step, a.tokens, a.lr) == (b.step, b.tokens, b.lr)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-4)
        assert a.terms == pytest.approx(b.terms, rel=1e-4)
    assert at_once[-1].tokens == int(part.lengths.sum())
    assert at_once[0].grad_norm > 0.5


def test_every_example_and_every_token_of_a_step_counts_the_same(tmp_path) -> None:
    """The gradient of a step is that of the formula on the whole batch, however long its examples are."""
    part, student = builders.examples(tmp_path, 8), builders.bert(seed=2)
    twin, gradients = copy.deepcopy(student), watched(student)
    run(
        student,
        part,
        builders.training(steps=1, micro_batch=1, clip=1e9),
        distillation().loss_of(builders.way(student)),
    )
    (terms,) = distillation().loss_of(builders.way(twin))(part.batch(range(8)), 1)
    by_name = {term.name: term.total for term in terms}
    loss = 0.5 * by_name["hidden"] / int(part.lengths.sum()) + 0.5 * by_name["prediction"] / 8
    loss.backward()
    for name, parameter in twin.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.allclose(gradients.get(name, torch.zeros_like(parameter)), expected, atol=1e-5), name


class Still(nn.Module):
    """A model whose loss pulls nowhere, so that only the optimizer itself moves its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.held = builders.bert(seed=3)

    def loss_of(self, batch: Batch, _step: int) -> Iterator[list[Term]]:
        total = torch.stack([(0.0 * p).sum() for p in self.parameters()]).sum()
        yield [Term(name="nothing", total=total, per="examples")]


def test_the_learning_rate_rises_and_falls(tmp_path) -> None:
    model = Still()
    steps = run(
        model, builders.examples(tmp_path), builders.training(steps=10, warmup=0.3, learning_rate=1.0), model.loss_of
    )
    by_hand = [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert [step.lr for step in steps] == pytest.approx(by_hand)
    # transformers' schedule starts at 0 and ends at 0; without these two steps of no use it is the same.
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = get_linear_schedule_with_warmup(optimizer, 3, 11)
    theirs = []
    for _ in range(10):
        optimizer.step()
        scheduler.step()
        theirs.append(scheduler.get_last_lr()[0])
    assert theirs == pytest.approx(by_hand)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 0.1), (2, 0.9), (7, 0.0)])
def test_short_schedules_stay_between_nothing_and_the_peak(tmp_path, steps: int, warmup: float) -> None:
    model = Still()
    taken = run(model, builders.examples(tmp_path), builders.training(steps=steps, warmup=warmup), model.loss_of)
    rates = [step.lr for step in taken]
    assert len(rates) == steps
    assert max(rates) == pytest.approx(1e-3)
    assert min(rates) > 0


def test_biases_and_layer_norms_do_not_decay(tmp_path) -> None:
    model = Still()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    (step,) = run(
        model,
        builders.examples(tmp_path),
        builders.training(steps=1, weight_decay=0.5, learning_rate=0.1),
        model.loss_of,
    )
    for name, parameter in model.named_parameters():
        if name.endswith(".bias") or "LayerNorm" in name:
            assert torch.equal(parameter, before[name]), name
        else:
            assert torch.allclose(parameter, before[name] * (1 - step.lr * 0.5), atol=1e-6), name
            assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_what_is_not_finite_is_refused_before_the_step(tmp_path, broken: str) -> None:
    part, student = builders.examples(tmp_path), builders.bert(seed=2)
    inner, calls, before = distillation().loss_of(builders.way(student)), [0], {}

    def loss_of(batch: Batch, step: int) -> Iterator[list[Term]]:
        calls[0] += 1
        for group in inner(batch, step):
            if calls[0] == 2:
                before.update(copy.deepcopy(student.state_dict()))
                wrong = {
                    "loss": student.classifier.bias.sum() * float("nan"),
                    # A root at zero: the value is 0, its slope is infinite.
                    "gradient": (student.classifier.bias - student.classifier.bias.detach()).sqrt().sum(),
                }
                group[1] = Term(name="wrong", total=wrong[broken], per="examples")
            yield group

    with pytest.raises(NonFinite, match=r"step 2: .*not finite") as caught:
        run(student, part, builders.training(learning_rate=0.1), loss_of)
    assert calls == [2]
    assert caught.value.stage == "distil"
    assert ("wrong" in caught.value.why) == (broken == "loss")
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def trained(part: Examples, seed: int, *, torch_seed: int | None = None) -> dict[str, Tensor]:
    student = builders.bert(seed=2, dropout=0.1)
    loss_of = distillation().loss_of(builders.way(student))
    with ready(Execution(threads=1), seed=seed if torch_seed is None else torch_seed):
        student.train()
        run(student, part, builders.training(seed=seed), loss_of)
    return student.state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


def test_the_seed_decides_every_byte(tmp_path) -> None:
    part = builders.examples(tmp_path)
    once = trained(part, 1)
    torch.rand(7)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002 - the global state on purpose: nothing may depend on it
    assert same(once, trained(part, 1))
    assert not same(once, trained(part, 2))
    assert not same(once, trained(part, 2, torch_seed=1))
    assert not same(once, trained(part, 1, torch_seed=2))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 700), st.integers(1, 9), st.integers(0, 10**6), st.integers(0, 3))
def test_an_epoch_sees_every_example_once(rows: int, size: int, seed: int, epoch: int) -> None:
    lengths = np.random.default_rng(rows).integers(3, 100, size=rows)
    order = batches.epoch_order(lengths, batch_size=size, room=None, seed=seed, epoch=epoch)
    assert sorted(np.concatenate(order).tolist()) == list(range(rows))
    assert len(order) == -(-rows // size)
    again = batches.epoch_order(lengths.copy(), batch_size=size, room=None, seed=seed, epoch=epoch)
    assert [b.tolist() for b in again] == [b.tolist() for b in order]


def test_epochs_and_seeds_differ_and_little_is_padded() -> None:
    lengths = np.random.default_rng(0).integers(3, 100, size=640)

    def order(seed: int, epoch: int) -> list[list[int]]:
        return [b.tolist() for b in batches.epoch_order(lengths, batch_size=8, room=None, seed=seed, epoch=epoch)]

    orders = [order(0, 0), order(0, 1), order(1, 0), order(1, 1)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    padded = sum(8 * int(lengths[b].max()) for b in orders[0])
    assert padded < 1.15 * lengths.sum()
    lasts = [int(lengths[b].mean()) for b in orders[0]]
    assert sorted(lasts) != lasts, "short batches come first"


def test_endless_goes_through_the_epochs() -> None:
    lengths = np.full(20, 5)
    stream = batches.endless(lengths, batch_size=8, room=None, seed=3)
    seen = [next(stream)[0].tolist() for _ in range(6)]
    expected = [
        b.tolist() for e in (0, 1) for b in batches.epoch_order(lengths, batch_size=8, room=None, seed=3, epoch=e)
    ]
    assert seen == expected


def test_a_batch_is_its_examples_padded(tmp_path) -> None:
    part = builders.examples(tmp_path, 12, seed=4)
    batch = part.batch([7, 2, 5])
    assert batch.input_ids.shape == batch.attention_mask.shape == (3, int(part.lengths[[7, 2, 5]].max()))
    for row, place in enumerate((7, 2, 5)):
        alone = part.batch([place])
        n = int(part.lengths[place])
        assert batch.input_ids[row, :n].tolist() == alone.input_ids[0].tolist()
        assert batch.attention_mask[row].sum() == n
        assert not batch.input_ids[row, n:].any()
        assert batch.labels[row] == alone.labels[0]
    whole = np.concatenate([b.index for b in part.in_order(5)])
    assert sorted(whole.tolist()) == list(range(12))
    assert (np.diff(part.lengths[whole]) >= 0).all()


def test_the_sandwich_is_the_mean_of_its_sub_networks(tmp_path) -> None:
    """Against models that are really slim, each trained on its own: their gradients laid over one another."""
    model, part = builders.bert(seed=2), builders.examples(tmp_path, 8)
    shape, state = bert.shape_of(model.config), dict(model.named_parameters())
    batch, counts = part.batch(range(8)), {"examples": 8, "tokens": int(part.lengths.sum())}

    def total(group: list[Term]) -> Tensor:
        return torch.stack([t.weight * t.total / counts[t.per] for t in group]).sum()

    losses, scales = {}, tuple(PLANS)
    prefixes = slimming.Prefixes(bert, model, shape, PLANS)
    shared = distillation().sandwich_of(builders.way(model), prefixes, lambda _step: scales, dtype="float32")
    for group in shared(batch, 1):
        (scale,) = {term.scale for term in group}
        loss = total(group)
        losses[scale] = loss.item()
        loss.backward()
    assert tuple(losses) == scales

    expected, separate = {name: torch.zeros_like(p) for name, p in state.items()}, []
    for plan in PLANS.values():
        small = slimming.slim(bert, model, shape, plan).eval()
        (group,) = distillation().loss_of(builders.way(small))(batch, 1)
        loss = total(group)
        separate.append(loss.item())
        loss.backward()
        for name, parameter in small.named_parameters():
            if parameter.grad is not None:
                expected[name][tuple(slice(0, n) for n in parameter.shape)] += parameter.grad / len(PLANS)
    assert sum(losses.values()) == pytest.approx(sum(separate) / len(separate), rel=1e-5)
    for name, parameter in state.items():
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.allclose(found, expected[name], rtol=1e-3, atol=1e-5), name


def sandwich_recipe(mode: str, count: int, seed: int = 1) -> sandwich.Recipe:
    return sandwich.Recipe(
        family="bert", scales=(0.9, 0.7, 0.5, 0.3, 0.2, 0.1), mode=mode, random=count, objective=Objective(), keep=None,
        training=builders.training(seed=seed),
    )  # fmt: skip


def test_sampled_steps_hold_the_largest_and_the_smallest() -> None:
    asked = sandwich_recipe("sampled", 2)
    draw = sandwich._drawn(asked)
    steps = [tuple(draw(step)) for step in range(60)]
    assert {step[0] for step in steps} == {0.9}
    assert {step[-1] for step in steps} == {0.1}
    assert all(len(set(step)) == 4 and list(step) == sorted(step, reverse=True) for step in steps)
    assert {scale for step in steps for scale in step} == set(asked.scales)
    again, other = sandwich._drawn(asked), sandwich._drawn(sandwich_recipe("sampled", 2, seed=2))
    assert [tuple(again(step)) for step in reversed(range(60))] == steps[::-1], "a function of the step alone"
    assert [tuple(other(step)) for step in range(60)] != steps


@pytest.mark.parametrize(("mode", "count"), [("all", 0), ("sampled", 4), ("sampled", 32)])
def test_all_scales_train_in_each_step_otherwise(mode: str, count: int) -> None:
    asked = sandwich_recipe(mode, count)
    assert tuple(sandwich._drawn(asked)(1)) == asked.scales


def test_none_between_the_largest_and_the_smallest() -> None:
    assert tuple(sandwich._drawn(sandwich_recipe("sampled", 0))(1)) == (0.9, 0.1)
