"""The losses over a large vocabulary, against sums over the whole logits in fp64, written out here."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from capgap_core.vocabulary_losses import (
    linear_cross_entropy,
    linear_divergence,
    linear_reverse_divergence,
    linear_soft_cross_entropy,
)
from capgap_core.vocabulary_sums import LOGITS, LOWEST, Head

LOSSES: dict[str, Callable[..., Tensor]] = {
    "kl": linear_divergence, "cross-entropy": linear_soft_cross_entropy, "reverse": linear_reverse_divergence,
}  # fmt: skip
KEPT = {"some": 3, "none": 1, "all": 10**6}
"""Of so many rows that follow one another, one is masked."""
ROOT = Path(__file__).parents[2]


class Case(NamedTuple):
    """A student and a teacher at the same rows."""

    student: Head
    teacher: Head
    keep: Tensor


def case(
    *, r: int = 11, v: tuple[int, int] = (31, 31), h: tuple[int, int] = (8, 12), keep: str = "some",
    bias: bool = False, seed: int = 0,
) -> Case:  # fmt: skip
    draw = torch.Generator().manual_seed(seed)
    heads = []
    for entries, width in zip(v, h, strict=True):
        hidden, weight = torch.randn(r, width, generator=draw), torch.randn(entries, width, generator=draw) / width**0.5
        heads.append(Head(hidden, weight, torch.randn(entries, generator=draw) if bias else None))
    return Case(heads[0], heads[1], torch.arange(1, r + 1) % KEPT[keep] != 0)


def each(head: Head, change: Callable[[Tensor], Tensor]) -> Head:
    return Head(change(head.hidden), change(head.weight), None if head.bias is None else change(head.bias))


def leaves(head: Head, dtype: torch.dtype = torch.float32) -> Head:
    return each(head, lambda x: x.detach().to(dtype, copy=True).requires_grad_())


def tensors(head: Head) -> list[Tensor]:
    return [x for x in head if x is not None]


def logits(head: Head) -> Tensor:
    z = head.hidden @ head.weight.T
    return z if head.bias is None else z + head.bias


def ours(name: str, student: Head, teacher: Head | Tensor, keep: Tensor, **how: Any) -> Tensor:
    return LOSSES[name](student.hidden, student.weight, teacher, keep=keep, bias=student.bias, **how)


def by_hand(name: str, student: Head, teacher: Tensor, keep: Tensor, temperature: float = 1.0) -> Tensor:
    """Return T² Σ p (log p - log q), -T² Σ p log q, or T² Σ q (log q - log p), with softmax in fp32 at least."""
    z = logits(student)[keep]
    y = teacher[keep][:, : z.shape[1]]
    z, y = (x.to(torch.promote_types(x.dtype, torch.float32)) / temperature for x in (z, y))
    if name == "reverse":
        y = (y - y.amax(-1, keepdim=True)).clamp(min=LOWEST)
        log_q, log_p = torch.log_softmax(z, -1), torch.log_softmax(y, -1)
        return temperature**2 * (log_q.exp() * (log_q - log_p)).sum()
    log_q, p = torch.log_softmax(z, -1)[:, : y.shape[1]], torch.softmax(y, -1)
    return temperature**2 * ((torch.xlogy(p, p) if name == "kl" else 0.0) - p * log_q).sum()


def exact(name: str, c: Case, temperature: float = 1.0) -> tuple[float, tuple[Tensor, ...]]:
    """Return the value and the gradients in fp64."""
    student = leaves(c.student, torch.float64)
    loss = by_hand(name, student, logits(each(c.teacher, Tensor.double)), c.keep, temperature)
    return loss.item(), torch.autograd.grad(loss, tensors(student))


def close(found: Tensor | None, truth: Tensor) -> bool:
    """Return whether the error is 1e-5 beside the whole, or 1e-7 a number where the whole cancels to nothing."""
    assert found is not None
    return float((found.double() - truth).norm()) <= 1e-5 * float(truth.norm()) + 1e-7 * truth.numel() ** 0.5


def check(name: str, c: Case, temperature: float = 1.0, *, as_logits: bool = False, rows: int | None = None) -> None:
    student, teacher = leaves(c.student), logits(c.teacher) if as_logits else c.teacher
    loss = ours(name, student, teacher, c.keep, temperature=temperature, rows_at_once=rows)
    value, gradients = exact(name, c, temperature)
    assert loss.item() == pytest.approx(value, rel=1e-5, abs=1e-5)
    assert all(map(close, torch.autograd.grad(loss, tensors(student)), gradients))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("keep", KEPT)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("as_logits", [False, True])
def test_value_and_gradients_are_those_of_the_whole_logits(
    name: str, keep: str, temperature: float, bias: bool, as_logits: bool
) -> None:
    check(name, case(keep=keep, bias=bias), temperature, as_logits=as_logits)


SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@given(
    name=st.sampled_from(sorted(LOSSES)), temperature=st.floats(0.5, 4.0), as_logits=st.booleans(),
    rows=st.integers(1, 14), r=st.integers(0, 12), v=SIZES, h=SIZES, keep=st.sampled_from(sorted(KEPT)),
    bias=st.booleans(), seed=st.integers(0, 9),
)  # fmt: skip
@settings(deadline=None, max_examples=200)
def test_any_shape(name: str, temperature: float, as_logits: bool, rows: int, **shape: Any) -> None:
    if name == "reverse":
        shape["v"] = sorted(shape["v"])
    check(name, case(**shape), temperature, as_logits=as_logits, rows=rows)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 100])
@pytest.mark.parametrize("block", [1, 100, 10**6])
def test_how_many_rows_exist_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch, rows: int, block: int) -> None:
    monkeypatch.setattr("capgap_core.vocabulary_sums.BLOCK", block)
    check("kl", case(r=10, keep="all"), 2.0, rows=rows)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("v", [(31, 47), (47, 31)])
@pytest.mark.parametrize("as_logits", [False, True])
def test_vocabularies_of_other_widths(name: str, v: tuple[int, int], as_logits: bool) -> None:
    if name == "reverse" and v[0] > v[1]:
        with pytest.raises(ValueError, match=r"give weight\[:31\]"):
            check(name, case(v=v, bias=True), 2.0, as_logits=as_logits)
        return
    check(name, case(v=v, bias=True), 2.0, as_logits=as_logits)


def test_labels_cost_their_cross_entropy() -> None:
    c = case(bias=True)
    student, labels = leaves(c.student), torch.arange(11) % 31
    found = linear_cross_entropy(student.hidden, student.weight, labels, keep=c.keep, bias=student.bias)
    truth = torch.nn.functional.cross_entropy(logits(student)[c.keep], labels[c.keep], reduction="sum")
    assert found.item() == pytest.approx(truth.item(), rel=1e-6)
    assert all(map(close, torch.autograd.grad(found, tensors(student)), torch.autograd.grad(truth, tensors(student))))


def padded(head: Head) -> Head:
    """Add 64 entries to a vocabulary."""
    extra = torch.randn(64, head.weight.shape[1], generator=torch.Generator().manual_seed(1))
    return head._replace(weight=torch.cat((head.weight, extra)))


@pytest.mark.parametrize("name", ["kl", "reverse"])
def test_a_model_has_no_divergence_from_itself_and_no_gradient(name: str) -> None:
    c = case(bias=True)
    student = leaves(c.student)
    loss = ours(name, student, c.student, c.keep, temperature=2.0)
    assert loss.item() == 0.0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, tensors(student)))


def test_a_model_has_no_divergence_from_itself_with_rows_added_to_its_head() -> None:
    c = case()
    student = leaves(c.student)
    loss = ours("kl", student, padded(c.student), c.keep)
    assert loss.item() == pytest.approx(0.0, abs=1e-5)
    assert all(gradient.abs().max() < 1e-5 for gradient in torch.autograd.grad(loss, tensors(student)))


def test_a_student_with_rows_added_loses_what_it_gives_to_them() -> None:
    c, known = case(), 31
    wide = leaves(padded(c.student))
    share = torch.softmax(logits(wide), -1)[c.keep, :known].sum(-1)
    loss = ours("kl", wide, c.student, c.keep)
    assert loss.item() == pytest.approx(-share.log().sum().item(), rel=1e-5)
    cut = ours("kl", wide._replace(weight=wide.weight[:known]), c.student, c.keep)
    assert cut.item() == pytest.approx(0.0, abs=1e-5)
    (gradient,) = torch.autograd.grad(cut, wide.weight)
    assert gradient.shape == wide.weight.shape
    assert gradient.abs().max() < 1e-5


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("excluded", [0, 15])
def test_given_logits_are_of_any_type_and_may_exclude_entries(name: str, dtype: torch.dtype, excluded: int) -> None:
    c = case()
    kept, student, same = logits(c.teacher).to(dtype), leaves(c.student), leaves(c.student, torch.float64)
    kept[:, 5 : 5 + excluded] = -torch.inf
    loss, truth = ours(name, student, kept, c.keep), by_hand(name, same, kept.double(), c.keep)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(truth.item(), rel=1e-5)
    assert all(map(close, torch.autograd.grad(loss, tensors(student)), torch.autograd.grad(truth, tensors(same))))


@pytest.mark.parametrize("garbage", [1e30, math.nan, math.inf])
@pytest.mark.parametrize("as_logits", [False, True])
def test_what_stands_in_masked_rows_is_not_looked_at(garbage: float, as_logits: bool) -> None:
    c = case()
    hidden, theirs, kept = (x.clone() for x in (c.student.hidden, c.teacher.hidden, logits(c.teacher)))
    for x in (hidden, theirs, kept):
        x[~c.keep] = garbage
    student = leaves(c.student._replace(hidden=hidden))
    loss = ours("kl", student, kept if as_logits else c.teacher._replace(hidden=theirs), c.keep)
    found, (value, truth) = torch.autograd.grad(loss, tensors(student)), exact("kl", c)
    assert loss.item() == pytest.approx(value, rel=1e-5)
    assert all(map(close, found, truth))
    assert not found[0][~c.keep].any()


def test_the_incoming_gradient_scales_the_gradients_of_each_loss() -> None:
    one, two = case(), case(r=5, seed=1)
    student, other = leaves(one.student), leaves(two.student)
    other = other._replace(weight=student.weight)
    first = ours("kl", student, one.teacher, one.keep, temperature=2.0)
    second = ours("cross-entropy", other, two.teacher, two.keep)
    found = torch.autograd.grad(3.0 * first + second / 7.0, (*tensors(student), other.hidden))
    of_first = exact("kl", one, 2.0)[1]
    of_second = exact("cross-entropy", Case(each(other, Tensor.detach), two.teacher, two.keep))[1]
    truth = (3.0 * of_first[0], 3.0 * of_first[1] + of_second[1] / 7.0, of_second[0] / 7.0)
    assert all(map(close, found, truth))


def test_a_second_backward_pass_gives_the_same_whatever_became_of_the_first() -> None:
    c = case()
    student = leaves(c.student)
    loss = ours("kl", student, c.teacher, c.keep)
    first = torch.autograd.grad(loss, tensors(student), retain_graph=True)
    copies = [x.clone() for x in first]
    for x in first:
        x.mul_(100.0)
    second = torch.autograd.grad(2.0 * loss, tensors(student), retain_graph=True)
    assert all(torch.equal(2.0 * a, b) for a, b in zip(copies, second, strict=True))
    loss.backward(retain_graph=True)
    loss.backward()
    assert all(
        x.grad is not None and torch.equal(2.0 * a, x.grad) for a, x in zip(copies, tensors(student), strict=True)
    )


def test_gradients_of_gradients_are_refused() -> None:
    c = case()
    student = leaves(c.student)
    loss = ours("kl", student, c.teacher, c.keep).square()
    (gradient,) = torch.autograd.grad(loss, student.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_without_gradients_there_is_the_value_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    c = case()
    monkeypatch.delattr("capgap_core.vocabulary_sums._Sums._differentiate")
    with torch.no_grad():
        found = ours("kl", leaves(c.student), c.teacher, c.keep)
    assert found.grad_fn is ours("kl", c.student, leaves(c.teacher), c.keep).grad_fn is None
    assert found.item() == pytest.approx(exact("kl", c)[0], rel=1e-5)


def test_the_teacher_gets_no_gradient_and_what_is_fixed_takes_no_room() -> None:
    c = case(bias=True)
    teacher, bias = leaves(c.teacher), leaves(c.student).bias
    loss: Any = ours("kl", c.student._replace(bias=bias), teacher, c.keep)
    assert [None if x is None else x.shape for x in loss.grad_fn.saved_tensors] == [None, None, (31,)]
    loss.backward()
    assert bias is not None
    assert close(bias.grad, exact("kl", c)[1][2])
    assert all(x.grad is None for x in tensors(teacher))


@pytest.mark.parametrize("gap", [1.0, 0.1])
def test_in_bf16_the_gradients_are_as_good_as_those_of_the_whole_logits(gap: float) -> None:
    c = case(r=96, v=(2000, 2000), h=(64, 64))
    student = each(c.student, Tensor.bfloat16)
    teacher = each(Head(c.student.hidden, c.student.weight + gap * c.teacher.weight), Tensor.bfloat16)

    def errors(loss_of: Callable[[Head], Tensor], at: Head) -> list[float]:
        wide = leaves(student, torch.float64)
        truth = by_hand("kl", wide, logits(each(teacher, Tensor.double)), c.keep)
        pairs = (torch.autograd.grad(x, tensors(y)) for x, y in ((loss_of(at), at), (truth, wide)))
        return [float((a - b).norm() / b.norm()) for a, b in zip(*pairs, strict=True)]

    bf16 = leaves(student, torch.bfloat16)
    dense = errors(lambda x: by_hand("kl", x, logits(teacher), c.keep), bf16)
    found = errors(lambda x: ours("kl", x, teacher, c.keep, rows_at_once=16), bf16)
    assert all(a <= 1.01 * b for a, b in zip(found, dense, strict=True))
    assert dense[1] > 1e-3
    # A weight that is kept in fp32 gives logits in fp32: then only the gradient of the hidden states is rounded.
    weight = leaves(student).weight
    mixed = errors(lambda x: ours("kl", x, each(teacher, Tensor.float), c.keep), bf16._replace(weight=weight))
    assert mixed[0] < 3e-3
    assert mixed[1] < 1e-5


@pytest.mark.parametrize("name", LOSSES)
def test_products_in_bf16_are_as_good_as_those_of_whole_logits_under_autocast(name: str) -> None:
    c = case(r=96, v=(2000, 2000), h=(64, 96))
    student = leaves(c.student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole = by_hand(name, student, logits(c.teacher), c.keep)
    found = ours(name, student, c.teacher, c.keep, rows_at_once=16, products=torch.bfloat16)
    value, truth = exact(name, c)
    assert found.item() == pytest.approx(value, rel=1e-3)

    def errors(loss: Tensor) -> list[float]:
        gradients = torch.autograd.grad(loss, tensors(student))
        assert all(x.dtype == torch.float32 for x in gradients)
        return [float((a - b).norm() / b.norm()) for a, b in zip(gradients, truth, strict=True)]

    own, autocast = errors(found), errors(whole)
    assert all(a <= 1.05 * b for a, b in zip(own, autocast, strict=True))
    assert all(a > 1e-3 for a in own), "these products are in fp32"


def test_products_in_bf16_of_labels_too() -> None:
    c = case(r=96, v=(2000, 2000), h=(64, 96))
    labels = torch.arange(96)
    student = leaves(c.student)
    losses = [
        linear_cross_entropy(student.hidden, student.weight, labels, keep=c.keep, products=products)
        for products in (None, torch.bfloat16)
    ]
    assert losses[0].item() != losses[1].item()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-3)


def test_autocast_changes_nothing() -> None:
    c = case()
    student = leaves(c.student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ours("kl", student, c.teacher, c.keep)
    outside = ours("kl", student, c.teacher, c.keep)
    pairs = zip(*(torch.autograd.grad(x, tensors(student)) for x in (inside, outside)), strict=True)
    assert torch.equal(inside, outside)
    assert all(torch.equal(*pair) for pair in pairs)


PEAKS = """
import os, resource, sys
import torch
from torch.nn.functional import kl_div, log_softmax
from capgap_core.vocabulary_losses import linear_divergence
from capgap_core.vocabulary_sums import Head

torch.set_num_threads(1)
v, r, h = 60000, 256, 16
hidden, weight = torch.randn(r, h).requires_grad_(), torch.randn(v, h).requires_grad_()
teacher, keep = Head(torch.randn(r, h), torch.randn(v, h)), torch.arange(r) % int(sys.argv[1]) != 1

def ours():
    return linear_divergence(hidden, weight, teacher, keep=keep)

def dense():
    z, y = (hidden @ weight.T)[keep], (teacher.hidden @ teacher.weight.T)[keep]
    return kl_div(log_softmax(z, -1), log_softmax(y, -1), reduction="sum", log_target=True)

for loss in (ours, dense):
    if not (child := os.fork()):
        begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        (loss() / r).backward()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begun, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
@pytest.mark.parametrize("one_masked_of", [4, 1000])
def test_at_most_half_of_the_memory_of_the_whole_logits(one_masked_of: int) -> None:
    command = [sys.executable, "-c", PEAKS, str(one_masked_of)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found, dense = map(int, done.stdout.split())
    print(found, dense)
    assert dense * 1024 > 2 * 60000 * 256 * 4
    assert found <= 0.5 * dense
    assert found * 1024 <= 3 * 4 * LOGITS
