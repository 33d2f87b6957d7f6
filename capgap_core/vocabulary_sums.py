"""The machinery of ``vocabulary_losses``: some rows of logits at a time, and their gradients as soon as they are there.

Letters of shapes are those of ``vocabulary_losses``.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from capgap_core.vocabulary_targets import Known

LOGITS, LOGITS_ON_GPU = 2**23, 2**27
"""How many logits of a model exist at once, at most. On one core nothing gets faster with more; a GPU goes through the
whole weight and its gradient for each part, which takes it longer than the products of few rows (not measured)."""

ROWS = 128
"""How many rows of logits exist at once, at least: with fewer the products get slow."""

BLOCK = 2**19
"""How many logits the passes between the products look at together on a CPU, at most: so few stay in its cache."""

LOWEST = -1e4
"""What is further below a row's highest logit is taken for this: the probability is 0 in both cases, but 0 times -inf
is not."""


class Head(NamedTuple):
    """The last linear map of a model, and what it is given."""

    hidden: Tensor
    """``(r, h)``."""
    weight: Tensor
    """``(v, h)``."""
    bias: Tensor | None = None
    """``(v,)``."""


@dataclass(frozen=True)
class How:
    """What is asked for, beside the models."""

    keep: Tensor
    temperature: float
    rows_at_once: int | None
    loss: Literal["divergence", "cross-entropy", "reverse"]
    products: torch.dtype | None = None
    """The type of what is multiplied; ``None``: the wider of hidden states and weight, and the gradient in fp32."""

    @property
    def entropy(self) -> bool:
        """Return whether the teacher's entropy is taken off."""
        return self.loss == "divergence"

    def parts(self, v: int) -> tuple[Tensor, ...]:
        """Return the kept rows in parts of about the same length: the products of a short last one would be slow."""
        rows = self.keep.nonzero()[:, 0]
        most = self.rows_at_once or max(ROWS, (LOGITS_ON_GPU if rows.is_cuda else LOGITS) // v)
        return rows.tensor_split(-(-len(rows) // most)) if len(rows) else ()


def total(student: Head, teacher: Head | Tensor | Known, how: How) -> Tensor:
    """Return the loss, with a node where there is something to differentiate."""
    with torch.autocast(student.hidden.device.type, enabled=False):  # the types of the products are chosen here
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in student):
            return _LinearLoss.apply(how, teacher, *student)
        with torch.no_grad():
            return _Sums(student, teacher, how, wanted=(False, False, False)).total


class _LinearLoss(torch.autograd.Function):
    """``apply(how, teacher, hidden, weight, bias)``: keeps the gradients and nothing else."""

    @staticmethod
    def forward(ctx: Any, how: How, teacher: Head | Tensor | Known, *student: Any) -> Tensor:
        """Compute the value and the gradients."""
        sums = _Sums(Head(*student), teacher, how, wanted=ctx.needs_input_grad[2:])
        ctx.types = [None if x is None else x.dtype for x in student]
        ctx.save_for_backward(*sums.gradients)
        return sums.total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the gradients, scaled and cast in one pass; what is kept stays as it is, for a second call."""
        (grad,) = grads
        scaled = (
            None if x is None else torch.mul(x, grad, out=torch.empty_like(x, dtype=dtype))
            for x, dtype in zip(ctx.saved_tensors, ctx.types, strict=True)
        )
        return None, None, *scaled


class _Sums:
    """The value, and the gradients ``wanted`` of (hidden, weight, bias), summed one part of the rows after the other.

    All parts use the same buffers: memory that is new to the process costs as much time as some passes over it.
    """

    def __init__(self, student: Head, teacher: Head | Tensor | Known, how: How, *, wanted: tuple[bool, ...]) -> None:
        v = len(student.weight)
        self._how, self._student = how, _cut(student, v, how.products)
        self._teacher = teacher[:, :v] if isinstance(teacher, Tensor) else teacher
        if isinstance(teacher, Head):
            self._teacher = _cut(teacher, v, how.products)
        exact = torch.promote_types(self._student.weight.dtype, torch.float32)
        self._buffers: dict[Any, Tensor] = {}
        self.total = student.hidden.new_zeros((), dtype=exact)
        self.gradients = [
            torch.zeros_like(x, dtype=exact) if x is not None and want else None
            for x, want in zip(student, wanted, strict=True)
        ]
        for rows in how.parts(v):
            self._add(rows)

    def _add(self, rows: Tensor) -> None:
        """Add these rows, ``(c,)``."""
        hidden, z = self._logits(self._student, rows, "student")
        size = max(1, BLOCK // z.shape[1]) if z.is_cpu else len(z)
        if isinstance(self._teacher, Known):
            for some, its in zip(z.split(size), rows.split(size), strict=True):
                self.total += self._compare_known(some, Known(*(x.index_select(0, its) for x in self._teacher)))
        else:
            compare = self._compare_reverse if self._how.loss == "reverse" else self._compare
            for some, others in zip(z.split(size), self._theirs(rows).split(size), strict=True):
                self.total += compare(some, others)
        if any(x is not None for x in self.gradients):
            self._differentiate(rows, hidden, z)

    def _theirs(self, rows: Tensor) -> Tensor:
        """Return the teacher's logits at rows, ``(c, v_t)``."""
        if isinstance(self._teacher, Tensor):
            y = self._buffer("teacher", (len(rows), self._teacher.shape[1]), self.total.dtype)
            return y.copy_(self._teacher.index_select(0, rows))
        assert isinstance(self._teacher, Head)
        return self._logits(self._teacher, rows, "teacher")[1]

    def _buffer(self, name: str, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Return memory of this name and type; the first call must ask for most."""
        key, size = (name, dtype), shape[0] * shape[1]
        if key not in self._buffers:
            self._buffers[key] = self.total.new_empty(size, dtype=dtype)
        return self._buffers[key][:size].view(shape)

    def _logits(self, head: Head, rows: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Return what a head is given at rows, ``(c, h)``, in the type of its products, and its logits ``(c, v)``."""
        shape, kind = (len(rows), len(head.weight)), head.weight.dtype
        hidden = head.hidden.index_select(0, rows).to(kind)
        out = self._buffer(name, shape, self.total.dtype)
        if kind == out.dtype:
            torch.mm(hidden, head.weight.T, out=out)
        else:
            out.copy_(torch.mm(hidden, head.weight.T, out=self._buffer("product", shape, kind)))
        return hidden, out if head.bias is None else out.add_(head.bias)

    def _compare(self, z: Tensor, y: Tensor) -> Tensor:
        """Return the loss of logits ``(b, v_s)`` and ``(b, v_t)``; leave softmax(z) - softmax(y) in ``z``."""
        scale, entropy = 1.0 / self._how.temperature, self._how.entropy
        z.sub_(z.amax(1, keepdim=True)).mul_(scale)
        y.sub_(y.amax(1, keepdim=True)).mul_(scale).clamp_(min=LOWEST)
        shared = z[:, : y.shape[1]]
        gap = self._buffer("gap", (len(y), y.shape[1]), y.dtype)
        if entropy:
            torch.sub(y, shared, out=gap)
        else:
            torch.neg(shared, out=gap)
        sum_q, sum_p = (x.exp_().sum(1, keepdim=True) for x in (z, y))
        y.div_(sum_p)
        z.div_(sum_q)
        shared.sub_(y)
        means = gap.mul_(y).sum(1, keepdim=True)
        return (means + (sum_q / sum_p if entropy else sum_q).log()).sum() * self._how.temperature**2

    def _compare_reverse(self, z: Tensor, y: Tensor) -> Tensor:
        """Return KL(softmax(z) || softmax(y)) of logits ``(b, v)``; leave its gradient in ``z``."""
        scale = 1.0 / self._how.temperature
        z.sub_(z.amax(1, keepdim=True)).mul_(scale)
        y.sub_(y.amax(1, keepdim=True)).mul_(scale).clamp_(min=LOWEST)
        gap = self._buffer("gap", (len(y), y.shape[1]), y.dtype)
        torch.sub(z, y, out=gap)
        sum_p = y.exp_().sum(1, keepdim=True)
        sum_q = z.exp_().sum(1, keepdim=True)
        z.div_(sum_q)
        gap.sub_((sum_q / sum_p).log())
        value = torch.mul(gap, z, out=y).sum(1, keepdim=True)
        z.mul_(gap.sub_(value))
        return value.sum() * self._how.temperature**2

    def _compare_known(self, z: Tensor, known: Known) -> Tensor:
        """Return the loss of logits ``(b, v)``; leave w softmax(z) - the weights in ``z``, w the sum of a row's."""
        weights = known.weights.to(z.dtype)
        z.sub_(z.amax(1, keepdim=True)).mul_(1.0 / self._how.temperature)
        chosen = z.gather(1, known.entries)
        whole = weights.sum(1, keepdim=True)
        sum_q = z.exp_().sum(1, keepdim=True)
        z.mul_(whole / sum_q).scatter_add_(1, known.entries, -weights)
        value = (whole * sum_q.log()).sum() - (weights * chosen).sum()
        if self._how.entropy:
            value = value + torch.xlogy(weights, weights).sum()
        return value * self._how.temperature**2

    def _differentiate(self, rows: Tensor, hidden: Tensor, d: Tensor) -> None:
        """Add the gradients, given that for the logits over their temperature, ``(c, v)``."""
        to_hidden, to_weight, to_bias = self.gradients
        weight, scale = self._student.weight, self._how.temperature
        if to_bias is not None:
            to_bias.add_(d.sum(0), alpha=scale)
        if to_weight is not None and self._how.products is None:  # nothing of the sum is rounded to what inputs are
            to_weight.addmm_(d.T, hidden.to(d.dtype), alpha=scale)
        if weight.dtype != d.dtype:
            d = self._buffer("product", (len(d), len(weight)), weight.dtype).copy_(d)
        if to_weight is not None and self._how.products is not None:  # a part's product is, the sum of them is not
            to_weight.add_(torch.mm(d.T, hidden), alpha=scale)
        if to_hidden is not None:
            to_hidden.index_copy_(0, rows, torch.mm(d, weight).to(to_hidden.dtype).mul_(scale))


def _cut(head: Head, v: int, products: torch.dtype | None) -> Head:
    """Return a head over its first ``v`` entries, with its weight in the type of its products."""
    kind = products or torch.promote_types(head.hidden.dtype, head.weight.dtype)
    return Head(head.hidden, head.weight[:v].to(kind), None if head.bias is None else head.bias[:v])
