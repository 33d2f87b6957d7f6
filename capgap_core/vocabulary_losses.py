"""Distances between predictions over a vocabulary whose logits never exist at once: sums, as in ``losses``.

The gradient of a soft target's loss for the logits is known as soon as they are: softmax(student) minus
softmax(teacher). So it is formed in the forward pass, some rows at a time, and the logits of the next rows take the
place of those. What stays is a gradient of the size of the head and one of the size of the hidden states. Liger's
chunked losses (https://arxiv.org/abs/2410.10989) have this order. Here rows that do not count never meet a head,
nothing is summed in bf16, and a vocabulary that was padded is cut and not filled with zeros.

Letters of shapes: r rows (places in texts), c and b some of them, h a hidden width, v the number of entries of a
vocabulary; s is the student's and t the teacher's.

Two vocabularies may differ in how many entries follow after those they share, which come first in both. A teacher
that is wider is cut to the student's entries and renormalised, as if its other logits were -inf. A student that is
wider keeps its whole softmax, and the teacher's probability of what it does not know is 0: what the student gives to
these entries is lost, and they are pulled down. So a model has no divergence from itself with rows added to its head,
and one of -log(what it gives to the shared entries) the other way round. To compare over the shared entries alone,
give ``weight[:v_t]``. The reverse divergence is infinite there, and refuses such a student.
"""

import torch
from torch import Tensor

from capgap_core.vocabulary_sums import Head, How, total
from capgap_core.vocabulary_targets import Known


def linear_divergence(
    hidden: Tensor,
    weight: Tensor,
    teacher: Head | Tensor | Known,
    *,
    keep: Tensor,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    rows_at_once: int | None = None,
    products: torch.dtype | None = None,
) -> Tensor:
    """Return the sum over kept rows of KL(teacher || student), times ``temperature ** 2``.

    Parameters
    ----------
    hidden, weight, bias
        The student's: ``(r, h_s)``, ``(v_s, h_s)`` and ``(v_s,)``. Products have the wider of the types of hidden
        states and weight, so that a weight in fp32 gives logits in fp32; all else is fp32 at least.
    teacher
        Its head, or its logits ``(r, v_t)``, of any type, or some entries of its prediction, which is then taken for
        the whole and for one at this temperature. It gets no gradient.
    keep
        ``(r,)``, true for rows that count. What stands in the others is not looked at, and their gradient is 0.
    temperature
        Divides both logits.
    rows_at_once
        How many rows of logits exist at once, of each model; ``None`` for what is fast (``LOGITS``, ``ROWS``).
    products
        The type of what is multiplied, forward and backward, in both models, as under autocast: gradients are summed
        over the parts in fp32, and returned in the types of the inputs. ``None``: as above.

    The gradients are computed here, and the backward pass only scales them.
    """
    how = How(keep, temperature, rows_at_once, "divergence", products)
    return total(Head(hidden, weight, bias), teacher, how)


def linear_soft_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    teacher: Head | Tensor | Known,
    *,
    keep: Tensor,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    rows_at_once: int | None = None,
    products: torch.dtype | None = None,
) -> Tensor:
    """Return the sum over kept rows of -Σ p log q, p the teacher's, times ``temperature ** 2``.

    As ``linear_divergence``, with the same gradients; the value is larger by the teacher's entropy. For entries that
    were drawn it is this one that is right on average.
    """
    how = How(keep, temperature, rows_at_once, "cross-entropy", products)
    return total(Head(hidden, weight, bias), teacher, how)


def linear_reverse_divergence(
    hidden: Tensor,
    weight: Tensor,
    teacher: Head | Tensor,
    *,
    keep: Tensor,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    rows_at_once: int | None = None,
    products: torch.dtype | None = None,
) -> Tensor:
    """Return the sum over kept rows of KL(student || teacher), times ``temperature ** 2`` (MiniLLM, arXiv 2306.08543).

    As ``linear_divergence``, but for the student's entries that a teacher excludes: a probability there costs up to
    ``-LOWEST`` nats.

    Raises
    ------
    ValueError
        The student has entries that the teacher does not have.
    """
    theirs = teacher.shape[1] if isinstance(teacher, Tensor) else len(teacher.weight)
    if len(weight) > theirs:
        raise ValueError(f"the student has {len(weight)} entries and the teacher {theirs}: give weight[:{theirs}]")
    how = How(keep, temperature, rows_at_once, "reverse", products)
    return total(Head(hidden, weight, bias), teacher, how)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, keep: Tensor, bias: Tensor | None = None,
    rows_at_once: int | None = None, products: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """Return the sum over kept rows of the cross-entropy with labels ``(r,)``, in nats."""
    known = Known(labels[:, None], torch.ones(len(labels), 1, device=labels.device))
    return linear_soft_cross_entropy(
        hidden, weight, known, keep=keep, bias=bias, rows_at_once=rows_at_once, products=products
    )
