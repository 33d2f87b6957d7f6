"""What is kept of predictions over a vocabulary: some entries, and the losses with them, against sums in fp64."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from capgap_core.vocabulary_losses import linear_divergence, linear_soft_cross_entropy
from capgap_core.vocabulary_targets import Known, drawn, likeliest

R, H, V = 13, 6, 29


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def student(seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states, weight and bias, to be differentiated."""
    held = (numbers(R, H, seed=seed), numbers(V, H, seed=seed + 1), numbers(V, seed=seed + 2))
    return tuple(x.requires_grad_() for x in held)  # pyright: ignore[reportReturnType]


def exact(known: Known, keep: Tensor, temperature: float) -> tuple[float, tuple[Tensor, ...]]:
    """Return -T² Σ w log q and its gradients, in fp64, from a dense prediction."""
    leaves = [x.detach().double().requires_grad_() for x in student()]
    hidden, weight, bias = leaves
    log_q = torch.log_softmax((hidden @ weight.T + bias) / temperature, -1)
    dense = torch.zeros(R, V, dtype=torch.float64).scatter_add_(1, known.entries, known.weights.double())
    loss = -(temperature**2) * (dense * log_q)[keep].sum()
    return loss.item(), torch.autograd.grad(loss, leaves)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.sampled_from([1.0, 2.5]), st.integers(1, R), st.integers(0, 1000), st.booleans())
def test_the_loss_with_some_entries_is_the_sum_over_them(
    k: int, temperature: float, rows: int, seed: int, some: bool
) -> None:
    draw = torch.Generator().manual_seed(seed)
    entries = torch.randint(0, V, (R, k), generator=draw)  # with repeats
    known = Known(entries, torch.rand(R, k, generator=draw) * (torch.rand(R, 1, generator=draw) > 0.2))
    keep = torch.rand(R, generator=draw) > 0.3 if some else torch.ones(R, dtype=torch.bool)
    hidden, weight, bias = student()
    asked = {"keep": keep, "bias": bias, "temperature": temperature, "rows_at_once": rows}
    loss = linear_soft_cross_entropy(hidden, weight, known, **asked)
    value, gradients = exact(known, keep, temperature)
    assert loss.item() == pytest.approx(value, rel=1e-5, abs=1e-5)
    for found, truth in zip(torch.autograd.grad(loss, (hidden, weight, bias)), gradients, strict=True):
        assert float((found - truth).norm()) <= 1e-5 * float(truth.norm()) + 1e-6


@pytest.mark.parametrize("loss", [linear_divergence, linear_soft_cross_entropy])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_all_entries_say_what_the_logits_say(loss, temperature: float) -> None:
    logits, keep = numbers(R, V, seed=7), torch.arange(R) % 3 != 0
    known, mass = likeliest(logits, V, temperature=temperature)
    assert torch.allclose(mass, torch.ones(R))
    results = []
    for teacher in (logits, known):
        own = student()
        value = loss(*own[:2], teacher, keep=keep, bias=own[2], temperature=temperature)
        results.append((value.item(), torch.autograd.grad(value, own)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(results[0][1], results[1][1], strict=True))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_likeliest_are_renormalised_and_their_mass_is_told(temperature: float) -> None:
    logits = numbers(R, V, seed=3) * 2
    known, mass = likeliest(logits, 4, temperature=temperature)
    p = torch.softmax(logits.double() / temperature, -1)
    top, entries = p.sort(-1, descending=True)
    assert torch.equal(known.entries.sort(-1).values, entries[:, :4].sort(-1).values)
    assert torch.allclose(mass.double(), top[:, :4].sum(-1), atol=1e-6)
    assert torch.allclose(known.weights.double(), top[:, :4] / top[:, :4].sum(-1, keepdim=True), atol=1e-6)


def test_a_row_that_says_nothing_has_no_loss_and_no_gradient() -> None:
    hidden, weight, bias = student()
    known = Known(torch.zeros(R, 2, dtype=torch.int64), torch.zeros(R, 2))
    loss = linear_divergence(hidden, weight, known, keep=torch.ones(R, dtype=torch.bool), bias=bias)
    assert loss.item() == 0.0
    assert not any(bool(x.any()) for x in torch.autograd.grad(loss, (hidden, weight, bias)))


def test_on_average_draws_say_what_the_whole_prediction_says() -> None:
    logits, keep, count = numbers(R, V, seed=5), torch.ones(R, dtype=torch.bool), 400
    whole = student()
    truth = torch.autograd.grad(linear_soft_cross_entropy(*whole[:2], logits, keep=keep, bias=whole[2]), whole)
    draw, found = torch.Generator().manual_seed(0), []
    for _ in range(count):
        known = drawn(logits, 3, generator=draw)
        assert torch.allclose(known.weights.sum(-1), torch.ones(R))
        own = student()
        loss = linear_soft_cross_entropy(*own[:2], known, keep=keep, bias=own[2])
        found.append(torch.cat([x.flatten() for x in torch.autograd.grad(loss, own)]))
    each = torch.stack(found)
    off = (each.mean(0) - torch.cat([x.flatten() for x in truth])) / (each.std(0) / count**0.5 + 1e-9)
    assert float(off.abs().max()) < 5.0  # of 271 numbers: 4e-4 by chance
    assert float(off.square().mean()) < 1.5
