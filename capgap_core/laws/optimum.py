"""Which teacher is best for one student and one token budget, where the losses of several teachers tell."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from capgap_core.laws.grid import Cells, Floats, Interval

Found = Literal[
    "bracketed", "the smallest teacher is best", "the largest teacher is best", "too close to call", "too few teachers",
    "one seed", "no seed of all teachers",
]  # fmt: skip
"""``bracketed``: both neighbours of the best teacher are worse by more than two standard errors."""

FEWEST = 4
"""Teachers of a curve, at least: a parabola through three points leaves nothing that could speak against it."""
WINDOW = 2
"""How many teachers on each side of the best the parabola is drawn through."""
WORSE = 2.0
"""By how many standard errors both neighbours have to be worse."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What seeds say of the error of one measured loss, beside what a seed does to all teachers alike."""

    variance: float
    freedom: int


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """What the losses of one student say of its best teacher."""

    student: float
    tokens: float
    found: Found
    teacher: float = np.nan
    """T* in parameters, where it is bracketed."""
    error: float = np.nan
    """The standard error of log T*."""
    freedom: int = 0
    loss: float = np.nan
    """At T*, by the parabola."""

    def interval(self, level: float = 0.90) -> Interval:
        """Return T* with its t interval, or an estimate that nothing bounds."""
        if self.found != "bracketed":
            return Interval(value=np.nan, low=0.0, high=np.inf)
        half = float(stats.t.ppf(0.5 + level / 2, self.freedom)) * self.error
        return Interval(value=self.teacher, low=self.teacher * np.exp(-half), high=self.teacher * np.exp(half))


def noise_of(cells: Cells) -> Noise:
    """Return the pooled variance of a loss, after the means of each teacher and of each seed within a curve.

    A seed draws a student's first weights and the order of its texts: what that does is the same for all teachers, and
    moves no optimum.
    """
    total, freedom = 0.0, 0
    for _, _, curve in cells.curves():
        teachers, seeds, table = _table(curve)
        if len(seeds) < 2 or len(teachers) < 2:
            continue
        residual = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
        total += float((residual**2).sum())
        freedom += (len(teachers) - 1) * (len(seeds) - 1)
    return Noise(variance=total / freedom if freedom else 0.0, freedom=freedom)


def optima(cells: Cells, noise: Noise | None = None) -> list[Optimum]:
    """Return what each student and token budget says of its best teacher, with the noise of all of them."""
    noise = noise or noise_of(cells)
    return [_optimum(student, tokens, curve, noise) for student, tokens, curve in cells.curves()]


def _optimum(student: float, tokens: float, curve: Cells, noise: Noise) -> Optimum:
    teachers, _, table = _table(curve)
    if not table.shape[1]:
        return Optimum(student=student, tokens=tokens, found="no seed of all teachers")
    means, variances = table.mean(axis=1), np.full(len(teachers), noise.variance / table.shape[1])
    found = _verdict(means, variances, noise)
    if found != "bracketed":
        return Optimum(student=student, tokens=tokens, found=found)
    best = int(means.argmin())
    near = slice(max(0, best - WINDOW), best + WINDOW + 1)
    x = np.log(teachers[near])
    middle, error, freedom, loss = _vertex(x - x.mean(), means[near], variances[near], noise.freedom)
    low, high = x[0] - x.mean(), x[-1] - x.mean()
    if not low < middle < high or not np.isfinite(error):
        return Optimum(student=student, tokens=tokens, found="too close to call")
    return Optimum(
        student=student, tokens=tokens, found=found, teacher=float(np.exp(middle + x.mean())), error=error,
        freedom=freedom, loss=loss,
    )  # fmt: skip


def _verdict(means: Floats, variances: Floats, noise: Noise) -> Found:
    if len(means) < FEWEST:
        return "too few teachers"
    if not noise.freedom:
        return "one seed"
    best = int(means.argmin())
    if best in (0, len(means) - 1):
        # An end is best only where it is clearly better than its neighbour; a flat curve has no best teacher.
        beside = 1 if best == 0 else best - 1
        if not _worse(means, variances, beside, best):
            return "too close to call"
        return "the smallest teacher is best" if best == 0 else "the largest teacher is best"
    clear = all(_worse(means, variances, beside, best) for beside in (best - 1, best + 1))
    return "bracketed" if clear else "too close to call"


def _worse(means: Floats, variances: Floats, one: int, best: int) -> bool:
    return bool(means[one] - means[best] > WORSE * np.sqrt(variances[one] + variances[best]))


def _vertex(x: Floats, y: Floats, variances: Floats, freedom: int) -> tuple[float, float, int, float]:
    """Return where a parabola through (x, y) is lowest, the standard error of that, its freedom, and the lowest value.

    Least squares with known variances; where the points lie further from the parabola than noise explains, the
    variances are enlarged by as much (Birge's ratio), so that a curve that is no parabola gets a wider interval.
    """
    design = np.stack([np.ones_like(x), x, x**2], axis=1)
    weight = 1.0 / variances if variances.all() else np.ones_like(variances)
    covariance = np.linalg.inv(design.T @ (design * weight[:, None]))
    c, b, a = covariance @ (design.T @ (weight * y))
    left = len(x) - 3
    chi = float((weight * (y - design @ np.array([c, b, a])) ** 2).sum())
    if not variances.all():
        covariance = covariance * (chi / left if left else 0.0)
    elif left and chi > left:
        covariance, freedom = covariance * (chi / left), left
    if a <= 0:
        return np.nan, np.nan, freedom, np.nan
    slope = np.array([0.0, -1.0 / (2 * a), b / (2 * a**2)])
    return -b / (2 * a), float(np.sqrt(slope @ covariance @ slope)), freedom, c - b**2 / (4 * a)


def _table(curve: Cells) -> tuple[Floats, Sequence[int], Floats]:
    """Return teachers (t,) from small to large, seeds (r,), and the losses (t, r), of seeds that all teachers have.

    A seed that some teacher lacks would move the means of the others alone.
    """
    teachers, i = np.unique(curve.teacher, return_inverse=True)
    seeds, j = np.unique(curve.seed, return_inverse=True)
    table = np.full((len(teachers), len(seeds)), np.nan)
    table[i, j] = curve.loss
    whole = ~np.isnan(table).any(axis=0)
    return teachers, seeds[whole].tolist(), table[:, whole]
