"""The two halves of a transformer encoder layer of BERT's form on a CPU, each as one node of autograd.

The same function as the layer of transformers under autocast, with fewer calls and fewer passes over memory: query,
key and value are one product, each matrix is cast once, and what the backward pass needs is written by hand. A
slimmed layer is bound by the number of calls and by the random numbers of dropout, not by its products.

Tokens are rows ``(r, h)``: the n examples of t places one after the other, then rows that nothing looks at, so that
every product of a training has the same shape. For each new shape oneDNN compiles a kernel, which takes longer than
the product itself and stays in memory.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

GRAIN = 2**16
"""Random integers have 16 bits: a share is met to 1 / 65536, and what stays is scaled by what the share then is."""

NORM = torch.ops.aten.native_layer_norm_backward.default
GELU = torch.ops.aten.gelu_backward.default
SOFTMAX = torch.ops.aten._softmax_backward_data.default


@dataclass(frozen=True, kw_only=True)
class How:
    """What half a layer computes with, beside its weights."""

    dtype: torch.dtype
    """Of the products; sums, normalisation and softmax have the type of the weights."""
    eps: float
    dropped: float
    """Share that dropout takes of what is added to the input."""
    inner: float = 0.0
    """Share that dropout takes of the attention's probabilities."""
    head_size: int = 1


def noise(shape: tuple[int, ...], share: float) -> Tensor:
    """Return what dropout multiplies by, fp32: 0 for about ``share`` of the places, else 1 / (1 - share).

    Each draw of torch's generator serves four places: one for each took longer than the products of a small layer.
    """
    count = 1
    for size in shape:
        count *= size
    dropped = round(share * GRAIN)
    if dropped == GRAIN:
        return torch.zeros(shape)
    drawn = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = torch.empty(count)
    torch.ge(drawn.view(torch.int16)[:count], dropped - GRAIN // 2, out=kept)
    return kept.mul_(GRAIN / (GRAIN - dropped)).view(shape)


class Dropout(torch.autograd.Function):
    """Dropout with ``noise``: ``apply(x, share)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        """Compute, and keep what the gradients need."""
        ctx.noise = noise(x.shape, share)
        return x * ctx.noise

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Return the gradients; not to be differentiated again."""
        (grad,) = grads
        return grad * ctx.noise, None


class Attention(torch.autograd.Function):
    """Self-attention, added to its input and normalised: ``(r, h)`` → ``(r, h)``.

    ``apply(how, mask, x, wq, bq, wk, bk, wv, bv, wo, bo, gain, shift)``; ``mask``, ``(n, t)``, is added to the scores
    of each token: 0 where others see it, -inf where they do not. A layer that has lost all its heads adds what its bias
    is.
    """

    @staticmethod
    def forward(ctx: Any, how: How, mask: Tensor, x: Tensor, *weights: Tensor) -> Tensor:
        """Compute, and keep what the gradients need."""
        wq, bq, wk, bk, wv, bv, wo, bo, gain, shift = weights
        (n, t), size, width = mask.shape, how.head_size, wq.shape[0]
        heads = width // size
        cast, w_in, w_out = x.to(how.dtype), torch.cat((wq, wk, wv)).to(how.dtype), wo.to(how.dtype)
        qkv = torch.addmm(torch.cat((bq, bk, bv)).to(how.dtype), cast, w_in.T)[: n * t]
        qkv = qkv.view(n, t, 3, heads, size).permute(2, 0, 3, 1, 4).reshape(3, n * heads, t, size)
        scores = torch.bmm(qkv[0], qkv[1].transpose(1, 2)).to(x.dtype).mul_(size**-0.5)
        scores.view(n, heads, t, t).add_(mask[:, None, None])
        p = torch.softmax(scores, dim=-1)
        p_noise = noise(p.shape, how.inner) if how.inner else None
        p_seen = (p if p_noise is None else p * p_noise).to(how.dtype)
        seen = cast.new_zeros(len(x), width)
        seen[: n * t] = torch.bmm(p_seen, qkv[2]).view(n, heads, t, size).transpose(1, 2).reshape(n * t, width)
        y, *kept = _added(x, torch.addmm(bo.to(how.dtype), seen, w_out.T), gain, shift, how)
        ctx.how, ctx.sizes, ctx.kind = how, (n, t, heads, size), wq.dtype
        ctx.save_for_backward(cast, w_in, w_out, qkv, p, p_noise, p_seen, seen, gain, shift, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients; not to be differentiated again."""
        (grad,) = grads
        cast, w_in, w_out, qkv, p, p_noise, p_seen, seen, gain, shift, *kept = ctx.saved_tensors
        how, (n, t, heads, size) = ctx.how, ctx.sizes
        d_sum, d_out, d_gain, d_shift = _added_back(grad, gain, shift, kept, how)
        d_wo, d_bo = _weights(d_out, seen, ctx.kind)
        d_seen = torch.mm(d_out, w_out)[: n * t].view(n, t, heads, size).transpose(1, 2).reshape(n * heads, t, size)
        d_p = torch.bmm(d_seen, qkv[2].transpose(1, 2)).to(p.dtype)
        d_p = d_p if p_noise is None else d_p.mul_(p_noise)
        d_scores = SOFTMAX(d_p, p, -1, p.dtype).mul_(size**-0.5).to(how.dtype)
        each = torch.empty_like(qkv)
        torch.bmm(d_scores, qkv[1], out=each[0])
        torch.bmm(d_scores.transpose(1, 2), qkv[0], out=each[1])
        torch.bmm(p_seen.transpose(1, 2), d_seen, out=each[2])
        d_qkv = cast.new_zeros(len(cast), 3 * heads * size)
        d_qkv[: n * t].view(n, t, 3, heads, size).copy_(each.view(3, n, heads, t, size).permute(1, 3, 0, 2, 4))
        (d_wq, d_wk, d_wv), (d_bq, d_bk, d_bv) = (d.chunk(3) for d in _weights(d_qkv, cast, ctx.kind))
        d_x = d_sum.add_(torch.mm(d_qkv, w_in))  # last: without dropout d_out may be d_sum itself
        return None, None, d_x, d_wq, d_bq, d_wk, d_bk, d_wv, d_bv, d_wo, d_bo, d_gain, d_shift


class FeedForward(torch.autograd.Function):
    """Two linear maps with a GELU between, added to their input and normalised: ``(r, h)`` → ``(r, h)``.

    ``apply(how, x, wu, bu, wd, bd, gain, shift)``.
    """

    @staticmethod
    def forward(ctx: Any, how: How, x: Tensor, *weights: Tensor) -> Tensor:
        """Compute, and keep what the gradients need."""
        wu, bu, wd, bd, gain, shift = weights
        cast, up, down = x.to(how.dtype), wu.to(how.dtype), wd.to(how.dtype)
        before = torch.addmm(bu.to(how.dtype), cast, up.T)
        after = torch.nn.functional.gelu(before)
        y, *kept = _added(x, torch.addmm(bd.to(how.dtype), after, down.T), gain, shift, how)
        ctx.how, ctx.kind = how, wu.dtype
        ctx.save_for_backward(cast, up, down, before, after, gain, shift, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients; not to be differentiated again."""
        (grad,) = grads
        cast, up, down, before, after, gain, shift, *kept = ctx.saved_tensors
        d_sum, d_out, d_gain, d_shift = _added_back(grad, gain, shift, kept, ctx.how)
        d_before = GELU(torch.mm(d_out, down), before)
        d_up, d_down = _weights(d_before, cast, ctx.kind), _weights(d_out, after, ctx.kind)
        d_x = d_sum.add_(torch.mm(d_before, up))  # last: without dropout d_out may be d_sum itself
        return None, d_x, *d_up, *d_down, d_gain, d_shift


def _weights(d_out: Tensor, seen: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the gradients of weight and bias of a linear map, in the type of the weights."""
    return torch.mm(d_out.T, seen).to(dtype), d_out.sum(0).to(dtype)


def _added(
    x: Tensor, out: Tensor, gain: Tensor, shift: Tensor, how: How
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Return norm(x + dropout(out)), and what its backward pass needs."""
    drawn = noise(out.shape, how.dropped) if how.dropped else None
    total = x + out if drawn is None else torch.addcmul(x, out.to(x.dtype), drawn)
    y, mean, rstd = torch.native_layer_norm(total, (x.shape[-1],), gain, shift, how.eps)
    return y, total, mean, rstd, drawn


def _added_back(
    grad: Tensor, gain: Tensor, shift: Tensor, kept: list[Any], how: How
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of ``_added`` for x, for out in the type of the products, for gain and shift."""
    total, mean, rstd, drawn = kept
    d_total, d_gain, d_shift = NORM(
        grad.contiguous(), total, [total.shape[-1]], mean, rstd, gain, shift, [True, True, True]
    )
    d_out = d_total if drawn is None else d_total * drawn
    return d_total, d_out.to(how.dtype), d_gain, d_shift
