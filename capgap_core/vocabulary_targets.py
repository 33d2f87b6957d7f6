"""What is kept of a teacher's prediction over a large vocabulary, where its last hidden state is not.

A prediction over v entries in fp32 takes 4v bytes for each token: more than the text. Three things are smaller. The
last hidden state, with the teacher's head, says all of it (``vocabulary_sums.Head``). The k likeliest entries say
most; what the rest would have said is a bias, which the mass of those that are kept tells. Entries that are drawn say
all of it on average: with them the student's soft cross-entropy and its gradient have the expectation of those with the
whole prediction (arXiv 2503.16870). Logits of entries that the student does not have are to be cut off first.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Known(NamedTuple):
    """Some entries of each row's prediction, and what they weigh."""

    entries: Tensor
    """``(r, k)``, int64; in a row each may stand more than once."""
    weights: Tensor
    """``(r, k)``, fp32, not negative; the sum of a row is 1, or 0 where a row says nothing."""


def likeliest(logits: Tensor, k: int, *, temperature: float = 1.0) -> tuple[Known, Tensor]:
    """Return the k likeliest entries of each row, renormalised, and the mass ``(r,)`` that they have of the whole.

    Parameters
    ----------
    logits
        ``(r, v)``; k is v at most.
    temperature
        Divides the logits: a truncated prediction cannot be softened later as the whole would be.
    """
    log_p = torch.log_softmax(logits.float() / temperature, dim=-1)
    top, entries = log_p.topk(k, dim=-1)
    mass = top.exp().sum(-1)
    return Known(entries, top.softmax(-1)), mass


def drawn(logits: Tensor, draws: int, *, generator: torch.Generator, temperature: float = 1.0) -> Known:
    """Return so many independent draws from each row's prediction, each of the same weight.

    Parameters
    ----------
    logits
        ``(r, v)``.
    """
    p = torch.softmax(logits.float() / temperature, dim=-1)
    entries = torch.multinomial(p, draws, replacement=True, generator=generator)
    return Known(entries, torch.full(entries.shape, 1.0 / draws, device=logits.device))
