"""Distances between predictions, and between hidden states: sums, so that the caller divides once."""

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


def squared_error(student: Tensor, target: Tensor) -> Tensor:
    """Return the sum over examples of the squared error of scalar predictions ``(n, 1)`` (regression)."""
    return (student.float() - target.float()).square().sum()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the sum over examples of the cross-entropy of logits ``(n, c)`` with labels ``(n,)``."""
    return F.cross_entropy(logits.float(), labels, reduction="sum")


def hidden_error(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], keep: Tensor) -> Tensor:
    """Return the sum over real tokens of the squared error of hidden states, a mean over layers and width.

    Parameters
    ----------
    student, teacher
        A state ``(n, t, h)`` for each matched layer.
    keep
        ``(n, t)``, true for real tokens.

    Dividing by the number of real tokens gives the MSE(H_s, H_t) of MiniDisc.
    """
    total = torch.zeros((), device=keep.device)
    for ours, theirs in zip(student, teacher, strict=True):
        error = F.mse_loss(ours.float(), theirs.float(), reduction="none").mean(dim=-1)
        total = total + error.masked_fill(~keep, 0.0).sum()
    return total / len(student)


def matched_layers(layers: int) -> tuple[int, ...]:
    """Return the hidden states that are compared: the embeddings' and every ``layers // 6``-th layer's.

    The released code takes ``int(layers / 6)``, which is 0, and fails, below six layers; here it is at least 1.
    """
    return tuple(range(0, layers + 1, max(1, layers // 6)))
