"""How the best teacher grows with the student: a power, a constant ratio, or the published straight line.

Every optimum comes with an error of its own, and students differ from any line by more than that. Both are in the fit:
random-effects regression with the restricted maximum likelihood estimate of the variance between students, and t
intervals by the residuals around the line (Knapp and Hartung 2003, doi 10.1002/sim.1482). R² is not given: the ratio of
T* to S may be drawn at random from 1.5 to 4, and a straight line through five students, each twice the one before,
still has a median R² of 0.98.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import minimize_scalar

from capgap_core.laws.grid import Floats, Interval, NotEstimable
from capgap_core.laws.optimum import Optimum

FEWEST = 5
"""Bracketed optima, at least; below that nothing is said of a law."""
REPEATS = 25
"""How often weights are found again: 2% errors settle in five."""
PUBLISHED_SLOPE, PUBLISHED_INTERCEPT = 2.498, -11.498e6
"""T* = 2.498 S - 11.498 million parameters (arXiv 2311.07052), of pruned GPT-2 and Pythia models."""
PUBLISHED_RATIO = 2.5
"""What the same authors call it for short; below 5 million parameters the line itself has no meaning."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line y = coefficients · (1, x), and what its residuals say of it; logarithms but in ``straight``."""

    coefficients: Floats
    covariance: Floats
    freedom: int
    between: float
    """The variance of students around the line that their own errors do not explain."""

    def coefficient(self, i: int, level: float = 0.90) -> Interval:
        """Return a coefficient with its t interval."""
        return self._interval(self.coefficients[i], self.covariance[i, i], level, self.freedom)

    def at(self, x: float, level: float = 0.90) -> Interval:
        """Return y at x with the interval of a new student's own best value.

        The variance between students is estimated too, which costs a degree of freedom more (Higgins, Thompson and
        Spiegelhalter 2009, doi 10.1111/j.1467-985X.2008.00552.x).
        """
        row = np.array([1.0, x])[: len(self.coefficients)]
        variance = float(row @ self.covariance @ row) + self.between
        return self._interval(float(row @ self.coefficients), variance, level, self.freedom - 1)

    @staticmethod
    def _interval(value: float, variance: float, level: float, freedom: int) -> Interval:
        half = float(stats.t.ppf(0.5 + level / 2, freedom) * np.sqrt(variance))
        return Interval(value=float(value), low=float(value) - half, high=float(value) + half)


@dataclass(frozen=True, kw_only=True)
class Power:
    """log T* = a + b log S: ``line`` with its own b, ``ratio`` with b = 1."""

    line: Line
    ratio: Line
    """One coefficient, of log T* - log S."""
    optima: int

    def exponent(self, level: float = 0.90) -> Interval:
        """Return b; the published law has b = 1."""
        return self.line.coefficient(1, level)

    def constant_ratio(self, level: float = 0.90) -> Interval:
        """Return T* / S where it is taken to be the same for all students."""
        return _exp(self.ratio.coefficient(0, level))

    def teacher(self, student: float, level: float = 0.90) -> Interval:
        """Return T* of a new student by the power."""
        return _exp(self.line.at(np.log(student), level))

    def teacher_by_ratio(self, student: float, level: float = 0.90) -> Interval:
        """Return T* of a new student by the constant ratio."""
        found = _exp(self.ratio.at(0.0, level))
        return Interval(value=found.value * student, low=found.low * student, high=found.high * student)


def fit_power(optima: Sequence[Optimum]) -> Power | NotEstimable:
    """Return the power and the constant ratio of the bracketed optima, or why there is none.

    Parameters
    ----------
    optima
        Of students at one number of tokens for each parameter, one of each student: the best teacher grows with the
        tokens, and two optima of one student are not independent.
    """
    held = [optimum for optimum in optima if optimum.found == "bracketed"]
    if len(held) < FEWEST:
        return NotEstimable(why=f"{len(held)} of {len(optima)} best teachers are bracketed, and a law takes {FEWEST}")
    if len({optimum.student for optimum in held}) < len(held):
        return NotEstimable(why="students with several token budgets are no points of one law")
    x, y = (np.log([getattr(optimum, name) for optimum in held]) for name in ("student", "teacher"))
    variances = np.array([optimum.error**2 for optimum in held])
    both = np.stack([np.ones_like(x), x], axis=1)
    return Power(line=fit(both, y, variances), ratio=fit(both[:, :1], y - x, variances), optima=len(held))


def by_budget(optima: Sequence[Optimum]) -> dict[float, list[Optimum]]:
    """Return tokens for each parameter of a student, to two digits → the optima of students on so many."""
    found: dict[float, list[Optimum]] = {}
    for optimum in optima:
        found.setdefault(budget_of(optimum.student, optimum.tokens), []).append(optimum)
    return dict(sorted(found.items()))


def budget_of(student: float, tokens: float) -> float:
    """Return the tokens for each parameter of a student, to two digits."""
    return float(f"{tokens / student:.1e}")


def straight(students: Floats, teachers: Floats) -> Line:
    """Return T* = a + b S as the published law has it, for teachers ``(k,)`` whose errors are relative.

    Weights are those of the fitted values, found again until they stay (as a gamma model with an identity link).
    """
    design = np.stack([np.ones_like(students), students], axis=1)
    fitted = teachers
    for _ in range(REPEATS):
        _, _, found = _weighted(design, teachers, fitted**2, 0.0)
        fitted = np.maximum(design @ found, teachers.min() / 10)  # a weight needs a size above 0
    weight, covariance, found = _weighted(design, teachers, fitted**2, 0.0)
    freedom = len(teachers) - 2
    scale = float((weight * (teachers - design @ found) ** 2).sum()) / freedom
    return Line(coefficients=found, covariance=covariance * scale, freedom=freedom, between=0.0)


def fit(design: Floats, y: Floats, variances: Floats) -> Line:
    """Return the random-effects regression of y ``(k,)`` with errors of known variance on a design ``(k, p)``."""
    variances = np.maximum(variances, 1e-18)  # errors of 0 would leave nothing to divide by
    between = _between(design, y, variances)
    weight, covariance, found = _weighted(design, y, variances, between)
    freedom = len(y) - design.shape[1]
    scale = float((weight * (y - design @ found) ** 2).sum()) / freedom
    # Below 1 residuals would give less than the known errors do (Röver et al. 2015, doi 10.1186/s12874-015-0091-1).
    return Line(coefficients=found, covariance=covariance * max(1.0, scale), freedom=freedom, between=between)


def _weighted(design: Floats, y: Floats, variances: Floats, between: float) -> tuple[Floats, Floats, Floats]:
    weight = 1.0 / (variances + between)
    covariance = np.linalg.inv(design.T @ (design * weight[:, None]))
    return weight, covariance, covariance @ (design.T @ (weight * y))


def _between(design: Floats, y: Floats, variances: Floats) -> float:
    """Return the restricted maximum likelihood estimate of the variance between students."""

    def deviance(between: float) -> float:
        weight, covariance, found = _weighted(design, y, variances, between)
        left = y - design @ found
        return float(-np.log(weight).sum() - np.linalg.slogdet(covariance)[1] + (weight * left**2).sum())

    most = float(np.var(y - design @ np.linalg.lstsq(design, y, rcond=None)[0])) * 10 + 1e-12
    found = minimize_scalar(deviance, bounds=(0.0, most), method="bounded", options={"xatol": most * 1e-6})
    return float(found.x) if deviance(float(found.x)) < deviance(0.0) else 0.0


def _exp(interval: Interval) -> Interval:
    return Interval(
        value=float(np.exp(interval.value)), low=float(np.exp(interval.low)), high=float(np.exp(interval.high))
    )
