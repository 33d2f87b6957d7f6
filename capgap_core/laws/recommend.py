"""Which teacher a student wants, by the laws that others have published, and what it costs to follow them.

The laws disagree: one says about 2.5 times the student whatever the tokens, the other makes the best teacher grow with
the tokens. Both were measured on other models and texts than a user's, and both are told as what they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from capgap_core.laws.apple import PUBLISHED_DISTILLED, PUBLISHED_SUPERVISED, Distilled, Supervised
from capgap_core.laws.apple_fit import REACH
from capgap_core.laws.grid import Floats
from capgap_core.laws.line import PUBLISHED_INTERCEPT, PUBLISHED_SLOPE

TEACHER_TOKENS = 20.0
"""Tokens for each parameter of a teacher, where none are given."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """Between which values a law was measured."""

    low: float
    high: float

    def beyond(self, value: float, reach: float = REACH) -> bool:
        """Return whether a value lies more than ``reach`` times outside."""
        return not self.low / reach <= value <= self.high * reach


APPLE_PARAMETERS, APPLE_TOKENS = Range(low=143e6, high=12.6e9), Range(low=4e9, high=512e9)
LINE_TEACHERS = Range(low=70e6, high=2.8e9)
"""GPT-2 and Pythia models from 70M to 2.8B, cut to students of their own."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one law says of one student."""

    law: str
    whose: str
    teacher: float | None
    """In parameters; null where the law names none."""
    says: str
    """What stands beside the number, or in its place."""
    low: float | None = None
    """End of the 90% interval of the teacher; null where nothing bounds it, or none is known."""
    high: float | None = None
    loss: float | None = None
    """Of the student with that teacher, in nats for a token of the text that the law was measured on."""
    loss_low: float | None = None
    loss_high: float | None = None
    alone: float | None = None
    """Of the student without a teacher, on as many tokens."""
    alone_low: float | None = None
    alone_high: float | None = None
    break_even: float | None = None
    """Tokens from which on that teacher no longer helps; null where it helps at all that are near the measured ones."""
    flops: float | None = None
    """Of the student's training with that teacher's answers, the teacher being there."""
    teacher_flops: float | None = None
    """Of training that teacher, too; null where nobody knows on how many tokens teachers were trained."""


def recommend(student: float, tokens: float, *, teacher_tokens: float = TEACHER_TOKENS) -> Sequence[Answer]:
    """Return what each published law says.

    Parameters
    ----------
    student
        Parameters outside the embeddings.
    tokens
        On which the student is distilled.
    teacher_tokens
        On which a teacher was trained, for each of its parameters.
    """
    return [_by_line(student, tokens, teacher_tokens), _by_apple(student, tokens, teacher_tokens)]


def training_flops(student: float, tokens: float, teacher: float) -> float:
    """Return the FLOPs of distilling: for a token 6 per parameter of the student, 2 per parameter of its teacher."""
    return (6.0 * student + 2.0 * teacher) * tokens


def break_even(student: float, teacher_loss: float) -> float | None:
    """Return the tokens from which on a student does as well without a teacher of this loss, by Apple's law.

    Looked for up to ``REACH`` times beyond the measured tokens on both sides: null where the teacher helps at the most
    of them, 0 where it helps at none.
    """
    tokens = np.geomspace(APPLE_TOKENS.low / REACH, APPLE_TOKENS.high * REACH, 2000)
    return first_useless(tokens, PUBLISHED_SUPERVISED, PUBLISHED_DISTILLED, student, teacher_loss)


def first_useless(
    tokens: Floats, supervised: Supervised, distilled: Distilled, student: float, teacher_loss: float
) -> float | None:
    """Return the first of rising tokens from which on a teacher no longer helps; null or 0 as ``break_even``."""
    helped = distilled.loss(student, tokens, teacher_loss, supervised)
    still = np.flatnonzero(helped < supervised.loss(student, tokens))
    if not len(still):
        return 0.0
    return None if still[-1] == len(tokens) - 1 else float(tokens[still[-1] + 1])


def _by_line(student: float, tokens: float, teacher_tokens: float) -> Answer:
    said = partial(Answer, law="T* = 2.498 S - 11.498M", whose="Zhang et al., arXiv 2311.07052; pruned GPT-2, Pythia")
    teacher = PUBLISHED_SLOPE * student + PUBLISHED_INTERCEPT
    if teacher <= student or LINE_TEACHERS.beyond(teacher):
        return said(teacher=None, says="beyond 3 times what was measured: no point")
    return said(
        teacher=teacher, says="whatever the tokens; its interval was not published",
        flops=training_flops(student, tokens, teacher), teacher_flops=6.0 * teacher_tokens * teacher**2,
    )  # fmt: skip


def _by_apple(student: float, tokens: float, teacher_tokens: float) -> Answer:
    said = partial(Answer, law="distillation scaling law", whose="Busbridge et al., arXiv 2502.08606; English C4")
    alone = float(PUBLISHED_SUPERVISED.loss(student, tokens)[0])
    if APPLE_PARAMETERS.beyond(student) or APPLE_TOKENS.beyond(tokens):
        return said(teacher=None, says="beyond 3 times what was measured: no point")
    sizes = np.geomspace(APPLE_PARAMETERS.low, APPLE_PARAMETERS.high, 2000)
    sizes = np.array([size for size in sizes if not APPLE_TOKENS.beyond(teacher_tokens * size)])
    if not len(sizes):
        return said(teacher=None, says="teachers on so few or so many tokens are beyond what was measured: no point")
    theirs = PUBLISHED_SUPERVISED.loss(sizes, teacher_tokens * sizes)
    losses = PUBLISHED_DISTILLED.loss(student, tokens, theirs, PUBLISHED_SUPERVISED)
    best = int(losses.argmin())
    if best in (0, len(sizes) - 1):
        end = "smallest" if best == 0 else "largest"
        says = f"the {end} teacher near what was measured: the best one may lie beyond it"
    else:
        says = f"of teachers with {teacher_tokens:g} tokens a parameter; coefficients as published, without intervals"
    teacher = float(sizes[best])
    return said(
        teacher=teacher, says=says, loss=float(losses[best]), alone=alone,
        break_even=break_even(student, float(theirs[best])), flops=training_flops(student, tokens, teacher),
        teacher_flops=6.0 * teacher_tokens * teacher**2,
    )  # fmt: skip
