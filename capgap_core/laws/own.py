"""Which teacher a student wants, by the laws of a grid of one's own; each answer has an interval, or why there is none.

A student more than ``REACH`` times beyond the measured sizes or tokens gets an interval and no point. Apple's law gives
one that is beyond them at all no point either where its fit ends at a bound of a coefficient: there all coefficients
count, and that one is no estimate.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np

from capgap_core.laws.apple_fit import REACH
from capgap_core.laws.fits import Fits
from capgap_core.laws.grid import Floats, Interval, NotEstimable
from capgap_core.laws.line import Power, budget_of, by_budget
from capgap_core.laws.recommend import Answer, Range, first_useless, training_flops
from capgap_core.markdown import short

LEVEL = 0.90
APPLE = "distillation scaling law"
NEAR = 1.5
"""How far the tokens for each parameter of a student may be from those that a power was fitted on."""


def recommend(fits: Fits, student: float, tokens: float) -> Sequence[Answer]:
    """Return what each law of a grid says.

    Parameters
    ----------
    student
        Parameters outside the embeddings.
    tokens
        On which the student is distilled.
    """
    beyond = _beyond(fits, student, tokens)
    return [*_by_power(fits, student, tokens, beyond), _by_apple(fits, student, tokens, beyond)]


def _by_power(fits: Fits, student: float, tokens: float, beyond: str) -> Sequence[Answer]:
    """Return the answers of the power and of the constant ratio, fitted on about as many tokens a parameter."""
    budget = budget_of(student, tokens)
    names = ("power", "constant ratio")
    near = min(fits.powers, key=lambda other: abs(np.log(other / budget)), default=None)
    if near is None or abs(np.log(near / budget)) > np.log(NEAR):
        on = ", ".join(f"{one:g}" for one in sorted(fits.powers)) or "none"
        says = f"no students on about {budget:g} tokens a parameter were measured, but on {on}"
        return [Answer(law=name, whose="this grid", teacher=None, says=says) for name in names]
    power, whose = fits.powers[near], f"this grid, students on {near:g} tokens a parameter"
    if isinstance(power, NotEstimable):
        says = f"not estimable: {power.why}{_found(fits, near)}"
        return [Answer(law=name, whose=whose, teacher=None, says=says) for name in names]
    return [_power_answer(name, power, student, tokens, whose, beyond, fits) for name in names]


def _found(fits: Fits, budget: float) -> str:
    """Return what was found of the students on so many tokens a parameter whose best teacher is not bracketed."""
    counts = Counter(one.found for one in by_budget(fits.optima)[budget] if one.found != "bracketed")
    return f" ({', '.join(f'{found}: {count}' for found, count in counts.items())})" if counts else ""


def _power_answer(
    name: str, power: Power, student: float, tokens: float, whose: str, beyond: str, fits: Fits
) -> Answer:
    held = (power.teacher if name == "power" else power.teacher_by_ratio)(student, LEVEL)
    return _answer(fits, held, tokens, student, beyond, partial(Answer, law=name, whose=whose))


def _by_apple(fits: Fits, student: float, tokens: float, beyond: str) -> Answer:
    said = partial(Answer, law=APPLE, whose="this grid")
    apple = fits.apple
    if isinstance(apple, NotEstimable):
        return said(teacher=None, says=f"not estimable: {apple.why}")
    held = apple.teacher(student, tokens, LEVEL)
    reach = 1.0 if apple.ended else REACH
    beyond = beyond or _beyond(fits, student, tokens, reach)
    if beyond or not np.isfinite(held.value):
        return _answer(fits, held, tokens, student, beyond, said, apple.ended)
    theirs = float(apple.teacher_loss(np.array([held.value]))[0])
    loss, alone = apple.loss(student, tokens, theirs, LEVEL), apple.alone(student, tokens, LEVEL)
    if fits.teacher_tokens is None:
        said = partial(said, whose="this grid: one of its teachers, by what it loses")
    more = partial(
        said, loss=loss.value, loss_low=loss.low, loss_high=loss.high, alone=alone.value, alone_low=alone.low,
        alone_high=alone.high,
        break_even=first_useless(_tokens(fits, reach), apple.supervised, apple.distilled, student, theirs),
    )  # fmt: skip
    return _answer(fits, held, tokens, student, beyond, more, apple.ended)


def _answer(
    fits: Fits, held: Interval, tokens: float, student: float, beyond: str, said: "partial[Answer]",
    ended: Sequence[str] = (),
) -> Answer:  # fmt: skip
    low, high = (float(x) if np.isfinite(x) and x > 0 else None for x in (held.low, held.high))
    apart = f"; the grid does not tell {', '.join(ended)} apart" if ended else ""
    if beyond:
        return said(teacher=None, low=low, high=high, says=f"{beyond}: an interval and no point{apart}")
    if not np.isfinite(held.value):
        far = "beyond 3 times the measured ones"
        if fits.teacher_tokens is None and said.keywords["law"] == APPLE:
            far = "at an end of the measured ones or beyond"
        return said(teacher=None, low=low, high=high, says=f"the best teacher lies {far}")
    teacher = float(held.value)
    measured = Range(low=float(fits.cells.teacher.min()), high=float(fits.cells.teacher.max()))
    if measured.beyond(teacher, 1.0 if ended else REACH):
        far = "beyond" if ended else f"beyond {REACH:g} times"
        return said(teacher=None, low=low, high=high, says=f"{far} the measured teachers: no point{apart}")
    spent = None if fits.teacher_tokens is None else 6.0 * fits.teacher_tokens * teacher**2
    return said(
        teacher=teacher, low=low, high=high, says=f"with a 90% interval{apart}",
        flops=training_flops(student, tokens, teacher), teacher_flops=spent,
    )  # fmt: skip


def _beyond(fits: Fits, student: float, tokens: float, reach: float = REACH) -> str:
    """Return in what a student is far from those that were measured; nothing where it is near."""
    if not len(fits.cells):
        return ""
    asked = {"parameters": (student, fits.cells.student), "tokens": (tokens, fits.cells.tokens)}
    times = "" if reach == 1.0 else f"{reach:g} times "
    far = [
        f"{short(value)} {what} are beyond {times}what was measured ({_range(column)})"
        for what, (value, column) in asked.items()
        if Range(low=float(column.min()), high=float(column.max())).beyond(value, reach)
    ]
    return "; ".join(far)


def _tokens(fits: Fits, reach: float) -> Floats:
    """Return tokens up to ``reach`` times beyond the measured ones."""
    return np.geomspace(fits.cells.tokens.min() / reach, fits.cells.tokens.max() * reach, 500)


def _range(column: Floats) -> str:
    return f"{short(float(column.min()))} to {short(float(column.max()))}"
