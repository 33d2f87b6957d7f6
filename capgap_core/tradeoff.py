"""Which candidate becomes the assistant: the best t = m + λ(1 - achieved scale), and how sure that choice is.

Source: MiniDisc (arXiv 2205.14570), its λ-tradeoff. Scales and metrics are compared as the decimal numbers they are
written as, in exact arithmetic, so that a tie is a tie and no choice hangs on the last bit of a sum.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from capgap_core.errors import InputFaults, StageFailed, fault


@dataclass(frozen=True, kw_only=True)
class Option:
    """A sub-network that was measured on the selection part."""

    scale: float
    """Nominal scale: the share of prunable parameters that was asked for, in (0, 1]."""
    achieved: float
    """The share that the plan keeps, after whole heads and neurons were counted, in (0, 1]."""
    metric: float
    """The primary metric on the selection part, a fraction; higher is better."""
    stderr: float | None = None
    """Standard error of the metric over examples."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the tradeoff table."""

    scale: float
    achieved: float
    metric_value: float
    """m as measured, even where the tradeoff uses the normalised one."""
    tradeoff: float
    """t = m' + λ(1 - achieved)."""
    chosen: bool
    target: bool
    """The target size itself, for comparison; never chosen."""
    margin: float | None
    """For the chosen: its t minus the second best candidate's; null for all others, and where there is no second."""
    wins_from: float | None
    """The smallest λ (0 or more) from which this candidate is chosen; null where it never is, and for the target."""
    wins_to: float | None
    """The λ up to which it is chosen; null with a ``wins_from`` means without end. At an end the larger model wins."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The chosen assistant and what the choice rests on."""

    rows: tuple[Row, ...]
    """The candidates from large to small, then the target."""
    scale: float
    """Nominal scale of the chosen candidate."""
    margin: float | None
    """Its t minus the second best candidate's, in the units of the tradeoff; null where there is only one."""
    within_error: bool | None
    """Whether the margin is smaller than one standard error of the chosen's metric; null where one is not known."""
    assistant_preferred: bool
    """False where the target's own t is higher than every candidate's: at this λ no assistant is preferred."""
    target_from: float | None
    """The λ beyond which the target's t is the highest of all; null where no λ makes it so."""


@dataclass(frozen=True)
class _Line:
    """t as a function of λ, exactly: ``metric + λ * saved``."""

    option: Option
    metric: Fraction
    saved: Fraction

    def at(self, lam: Fraction) -> Fraction:
        return self.metric + lam * self.saved

    @property
    def size(self) -> tuple[Fraction, Fraction]:
        """Order by size: what the plan keeps, and where equal, what was asked for."""
        return -self.saved, _exact(self.option.scale)


def choose(
    options: Sequence[Option],
    *,
    target: float,
    lam: float,
    metric_scale: Literal["raw", "normalised"] = "raw",
    teacher: float | None = None,
    chance: float | None = None,
) -> Choice:
    """Choose the assistant among the options whose nominal scale lies strictly between ``target`` and 1.

    Parameters
    ----------
    options
        Must hold the target itself; a teacher (scale 1) and what is smaller than the target are left out.
    target
        Nominal scale of the student.
    lam
        λ, 0 or more.
    metric_scale
        ``raw``: m' = m; ``normalised``: m' = (m - chance)/(teacher - chance).
    teacher, chance
        The metric, on the same part, of the teacher and of the best constant predictor; for ``normalised`` only.

    Raises
    ------
    InputFaults
        No option is larger than the target.
    StageFailed
        The metric is to be normalised and the teacher is not better than chance.
    """
    if not (math.isfinite(lam) and lam >= 0):
        raise ValueError(f"lam = {lam}: must be a finite number, 0 or more")
    low, span = _normaliser(metric_scale, teacher, chance)
    lines = [_line(option, low, span) for option in options]
    goal, weight = _exact(target), _exact(lam)
    candidates = [line for line in lines if goal < _exact(line.option.scale) < 1]
    candidates.sort(key=lambda line: line.size, reverse=True)
    targets = [line for line in lines if _exact(line.option.scale) == goal]
    _check(candidates, targets, target)
    # max keeps the first of equals, and the candidates go from large to small.
    best = max(candidates, key=lambda line: line.at(weight))
    others = [line.at(weight) for line in candidates if line is not best]
    margin = best.at(weight) - max(others) if others else None
    rows = [_row(line, candidates, weight, margin if line is best else None, line is best) for line in candidates]
    stderr = best.option.stderr
    ahead = _wins(targets[0], candidates)
    return Choice(
        rows=(*rows, _row(targets[0], None, weight, None, False)),
        scale=best.option.scale,
        margin=None if margin is None else float(margin),
        within_error=None if margin is None or stderr is None else margin < _exact(stderr) / span,
        assistant_preferred=targets[0].at(weight) <= best.at(weight),
        target_from=None if ahead is None else float(ahead[0]),
    )


def _exact(value: float) -> Fraction:
    """Return the decimal number that ``value`` is written as (0.1 is one tenth)."""
    return Fraction(repr(float(value)))


def _line(option: Option, low: Fraction, span: Fraction) -> _Line:
    if not math.isfinite(option.metric):
        raise ValueError(f"scale {option.scale}: metric = {option.metric}, must be finite")
    for name, value in (("scale", option.scale), ("achieved", option.achieved)):
        if not 0 < value <= 1:
            raise ValueError(f"{name} = {value}: must be in (0, 1]")
    return _Line(option, (_exact(option.metric) - low) / span, 1 - _exact(option.achieved))


def _normaliser(metric_scale: str, teacher: float | None, chance: float | None) -> tuple[Fraction, Fraction]:
    """Return what to subtract from the metric and what to divide it by."""
    if metric_scale == "raw":
        return Fraction(0), Fraction(1)
    if metric_scale != "normalised":
        raise ValueError(f"metric_scale = {metric_scale}: must be raw or normalised")
    if teacher is None or chance is None:
        raise ValueError("metric_scale = normalised: needs the metric of the teacher and of the constant predictor")
    if not teacher > chance:
        raise StageFailed(
            "tradeoff",
            f"the teacher's metric on the selection part is {teacher:.4f}, not above the constant predictor's "
            f"{chance:.4f}, so the metric cannot be normalised between them",
            "Train the teacher longer (teacher_recipe.epochs), or set tradeoff.metric_scale=raw",
        )
    return _exact(chance), _exact(teacher) - _exact(chance)


def _check(candidates: Sequence[_Line], targets: Sequence[_Line], target: float) -> None:
    if not candidates:
        rule = f"needs a scale strictly between student.scale = {target} and 1"
        raise InputFaults([fault("sandwich.grid", "none that is larger", rule, "Add a larger scale, for example 0.5")])
    if len(targets) != 1:
        raise ValueError(f"target = {target}: must be measured exactly once, found {len(targets)} times")


def _wins(line: _Line, rivals: Sequence[_Line]) -> tuple[Fraction, Fraction | None] | None:
    """Return the λ from which and up to which ``line`` is the first of ``rivals``; None where it never is.

    Each rival bounds λ on one side: a larger one is overtaken beyond their crossing, a smaller one overtakes after it.
    """
    low, low_tied, high = Fraction(0), False, None
    for rival in rivals:
        if rival is line:
            continue
        gain, lead = line.saved - rival.saved, rival.metric - line.metric
        if gain == 0:
            if lead > 0 or (lead == 0 and rival.size > line.size):
                return None
            continue
        crossing = lead / gain
        if gain > 0 and crossing >= low:
            low, low_tied = crossing, True
        elif gain < 0 and (high is None or crossing < high):
            high = crossing
    if high is not None and (high < low or (high == low and low_tied)):
        return None
    return low, high


def _row(line: _Line, candidates: Sequence[_Line] | None, lam: Fraction, margin: Fraction | None, chosen: bool) -> Row:
    """Return the table's line; ``candidates`` is None for the target, which is never chosen."""
    span = None if candidates is None else _wins(line, candidates)
    return Row(
        scale=line.option.scale,
        achieved=line.option.achieved,
        metric_value=line.option.metric,
        tradeoff=float(line.at(lam)),
        chosen=chosen,
        target=candidates is None,
        margin=None if margin is None else float(margin),
        wins_from=None if span is None else float(span[0]),
        wins_to=None if span is None or span[1] is None else float(span[1]),
    )
