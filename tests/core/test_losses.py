"""The distances that students are trained by, each against torch's own or a sum by hand."""

import builders
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from capgap_core import losses, targets
from capgap_core.distillation import Distillation, Objective
from capgap_core.families import bert

DRAW = torch.Generator().manual_seed(0)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=DRAW)


def test_a_prediction_has_no_divergence_from_itself_and_no_gradient() -> None:
    logits = drawn(5, 3).requires_grad_()
    loss = losses.divergence(logits, logits.detach(), temperature=2.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert logits.grad is not None
    assert torch.allclose(logits.grad, torch.zeros_like(logits), atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_is_the_sum_by_hand_and_pulls_as_the_soft_cross_entropy(temperature: float) -> None:
    student, teacher = drawn(5, 3).requires_grad_(), drawn(5, 3)
    loss = losses.divergence(student, teacher, temperature=temperature)
    p, q = (torch.softmax(x / temperature, -1) for x in (teacher, student))
    assert loss.item() == pytest.approx((temperature**2 * (p * (p / q).log()).sum()).item(), rel=1e-5)
    (ours,) = torch.autograd.grad(loss, student)
    soft = temperature**2 * F.cross_entropy(student / temperature, p, reduction="sum")
    (theirs,) = torch.autograd.grad(soft, student)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert theirs.abs().max() > 0.01


def test_divergence_is_taken_from_the_teacher_and_not_from_the_student() -> None:
    a, b = drawn(5, 3), drawn(5, 3)
    assert float(losses.divergence(a, b, temperature=1.0)) != pytest.approx(
        float(losses.divergence(b, a, temperature=1.0)), rel=1e-3
    )


def test_sums_over_examples_are_torchs_own() -> None:
    logits, labels = drawn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    assert float(losses.cross_entropy(logits, labels)) == pytest.approx(6 * float(F.cross_entropy(logits, labels)))
    ours, theirs = drawn(6, 1), drawn(6, 1)
    assert float(losses.squared_error(ours, theirs)) == pytest.approx(6 * float(F.mse_loss(ours, theirs)), rel=1e-5)


def states(rows: int) -> tuple[Tensor, ...]:
    return tuple(drawn(rows, 8) for _ in range(3))


def test_hidden_error_is_the_mean_squared_error_of_the_real_tokens() -> None:
    ours, theirs = states(28), states(28)
    keep = drawn(28) > 0
    found = losses.hidden_error(ours, torch.stack(theirs, dim=1), keep) / keep.sum()
    expected = sum(F.mse_loss(a[keep], b[keep]) for a, b in zip(ours, theirs, strict=True)) / 3
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_the_gradient_of_hidden_error_is_that_of_its_formula() -> None:
    ours = tuple(drawn(6, 8).double().requires_grad_() for _ in range(3))
    theirs, keep = torch.stack(states(6), dim=1).double(), torch.tensor([True, True, False, True, False, True])
    found = torch.autograd.grad(3.0 * losses.hidden_error(ours, theirs, keep), ours)
    by_hand = [6.0 * (state - theirs[:, i]) * keep[:, None] / 24 for i, state in enumerate(ours)]
    assert all(torch.allclose(a, b.float().double(), rtol=1e-5) for a, b in zip(found, by_hand, strict=True))


@pytest.mark.parametrize("garbage", [1e6, float("nan"), float("inf")])
def test_padding_changes_nothing_and_is_not_pulled_anywhere(garbage: float) -> None:
    ours, theirs = states(7), states(7)
    keep = torch.ones(7, dtype=torch.bool)
    long = tuple(F.pad(x, (0, 0, 0, 3), value=garbage).requires_grad_() for x in ours)
    wide = torch.stack([F.pad(x, (0, 0, 0, 3), value=garbage) for x in theirs], dim=1)
    real = F.pad(keep, (0, 3), value=False)
    found = losses.hidden_error(long, wide, real)
    assert torch.allclose(found, losses.hidden_error(ours, torch.stack(theirs, dim=1), keep), rtol=1e-6)
    for gradient in torch.autograd.grad(found, long):
        assert torch.equal(gradient.abs().sum(-1) > 0, real)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (1, (0, 1)),
        (2, (0, 1, 2)),
        (4, (0, 1, 2, 3, 4)),
        (6, (0, 1, 2, 3, 4, 5, 6)),
        (12, (0, 2, 4, 6, 8, 10, 12)),
        (24, (0, 4, 8, 12, 16, 20, 24)),
    ],
)
def test_the_layers_that_are_compared(layers: int, expected: tuple[int, ...]) -> None:
    assert losses.matched_layers(layers) == expected


@pytest.mark.parametrize("regression", [False, True])
def test_distillation_is_half_the_hidden_error_and_half_the_predictions(tmp_path, regression: bool) -> None:
    """Against MiniDisc's formula written out one unpadded example at a time."""
    labels = 1 if regression else 3
    teacher, student = builders.bert(seed=1, labels=labels), builders.bert(seed=2, labels=labels)
    part = builders.examples(tmp_path, 6, regression=regression)
    ask = targets.live(builders.way(teacher.requires_grad_(False)), layers=(0, 1, 2))
    distillation = Distillation(ask, layers=2, regression=regression, objective=Objective(temperature=2.0))
    (terms,) = distillation.loss_of(builders.way(student))(part.batch(range(6)), 1)
    counts = {"examples": 6, "tokens": int(part.lengths.sum())}
    found = sum(term.weight * term.total.item() / counts[term.per] for term in terms)

    errors, predictions = [], 0.0
    with torch.no_grad():
        for i in range(6):
            ours, theirs = (
                m(**part.batch([i]).named(bert.INPUTS), output_hidden_states=True) for m in (student, teacher)
            )
            layers = zip(ours.hidden_states, theirs.hidden_states, strict=True)
            errors.append(torch.stack([(a - b).square().mean(-1)[0] for a, b in layers]).mean(0))
            if regression:
                predictions += float(F.mse_loss(ours.logits, theirs.logits)) / 6
            else:
                p, q = (torch.softmax(x.logits / 2.0, -1) for x in (theirs, ours))
                predictions += 4.0 * float((p * (p / q).log()).sum()) / 6
    assert len(torch.cat(errors)) == counts["tokens"]
    assert found == pytest.approx(0.5 * float(torch.cat(errors).mean()) + 0.5 * predictions, rel=1e-4)
    assert not any(p.requires_grad for p in teacher.parameters())
