"""Distances between predictions, and between hidden states: sums, so that the caller divides once."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def divergence(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Return the sum over examples of KL(teacher || student), times ``temperature ** 2``; logits ``(n, c)``.

    MiniDisc's code uses the soft cross-entropy, which differs by the teacher's entropy: the gradients are the
    same, and this one is zero where the student equals the teacher.
    """
    log_q = F.log_softmax(student.float() / temperature, dim=-1)
    log_p = F.log_softmax(teacher.float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="sum", log_target=True)


def logits_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the sum over examples of the mean squared error of logits ``(n, c)``."""
    return (student.float() - teacher.float()).square().mean(dim=-1).sum()


def squared_error(student: Tensor, target: Tensor) -> Tensor:
    """Return the sum over examples of the squared error of scalar predictions ``(n, 1)`` (regression)."""
    return (student.float() - target.float()).square().sum()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the sum over examples of the cross-entropy of logits ``(n, c)`` with labels ``(n,)``."""
    return F.cross_entropy(logits.float(), labels, reduction="sum")


def hidden_error(student: tuple[Tensor, ...], teacher: Tensor, keep: Tensor) -> Tensor:
    """Return the sum over real tokens of the squared error of hidden states, a mean over layers and width.

    Parameters
    ----------
    student
        A state ``(r, h)`` for each of the l matched layers.
    teacher
        ``(r, l, h)``.
    keep
        ``(r,)``, true for real tokens.

    Dividing by the number of real tokens gives the MSE(H_s, H_t) of MiniDisc.
    """
    return _HiddenError.apply(keep, teacher, *student)


def matched_layers(layers: int) -> tuple[int, ...]:
    """Return the hidden states that are compared: the embeddings' and every ``layers // 6``-th layer's.

    The released code takes ``int(layers / 6)``, which is 0, and fails, below six layers; here it is at least 1.
    """
    return tuple(range(0, layers + 1, max(1, layers // 6)))


class _HiddenError(torch.autograd.Function):
    """All layers as one node, which keeps the errors and nothing else."""

    @staticmethod
    def forward(ctx: Any, keep: Tensor, target: Tensor, *states: Tensor) -> Tensor:
        """Compute, and keep what the gradients need."""
        errors = []
        total = torch.zeros((), device=keep.device)
        dropped = (~keep).nonzero()[:, 0]
        for layer, state in enumerate(states):
            error = state.float().sub(target[:, layer].float()).index_fill_(0, dropped, 0.0)
            total += error.flatten().dot(error.flatten())
            errors.append(error)
        ctx.scale = 1.0 / (target.shape[1] * target.shape[2])
        ctx.save_for_backward(*errors)
        return total * ctx.scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients; not to be differentiated again."""
        (grad,) = grads
        return None, None, *(error * (2.0 * ctx.scale * grad) for error in ctx.saved_tensors)
