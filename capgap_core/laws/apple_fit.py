"""Fit Apple's law to a grid by the published recipe, and say with intervals what it predicts.

The recipe (arXiv 2502.08606, appendix F): residuals of log losses under the Huber loss, minimised by L-BFGS-B from a
grid of starts, and a bootstrap whose fits begin at the optimum. Theirs has δ = 1e-4, which is next to the sum of
absolute errors; losses of small models scatter more, and with δ = 0.01 intervals of T* are narrower and hold more
often, as the published simulation shows. The objective is divided by δ, which moves no optimum, because the stopping
rules are absolute. Which starts were used could not be verified; these are our own, and bounds keep coefficients that a
small grid does not tell apart from running away.

A bootstrap draws normal errors of the size of the residuals, √(n / (n - p)) larger for what p coefficients took of
them, and not the cells themselves: a small grid without one of its cells may not hold a coefficient at all. It is for
losses and best teachers: to begin each of its fits at two further optima as well widens none of these intervals, and
those of single coefficients are made otherwise (``coefficients``).

A coefficient that ends at its bound is no estimate. What the law says of losses and best teachers may still be sound
among the sizes and tokens that were measured: intervals of simulated grids whose fit has ended so hold as often as
others.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy.optimize import minimize

from capgap_core.laws.apple import SYMBOLS, Distilled, Supervised, log_distilled, log_supervised
from capgap_core.laws.grid import Alone, Cells, Floats, Interval, NotEstimable
from capgap_core.laws.threads import one_thread

DELTA, PUBLISHED_DELTA = 1e-2, 1e-4
BOOTSTRAPS = 200
SUPERVISED_STARTS = {
    "e": (1.0,),
    "a": (30.0, 3e3),
    "b": (3e3,),
    "alpha": (0.3, 0.6),
    "beta": (0.3, 0.6),
    "gamma": (0.5, 1.0),
}
DISTILLED_STARTS = {
    "a": (30.0, 1e3), "b": (2e4,), "alpha": (0.3,), "beta": (0.6,), "gamma": (0.5, 1.0), "c0": (1.0, 3.0),
    "c1": (10.0, 5e2), "f1": (0.05, 0.3), "d1": (1.0, 1.3),
}  # fmt: skip
BOUNDS = {
    "e": (1e-3, 20.0), "a": (1e-6, 1e15), "b": (1e-6, 1e15), "alpha": (1e-3, 4.0), "beta": (1e-3, 4.0),
    "gamma": (1e-2, 20.0), "c0": (1e-3, 50.0), "c1": (1e-4, 1e6), "f1": (1e-3, 10.0), "d1": (0.2, 5.0),
}  # fmt: skip
AT_BOUND = 1e-6
"""How close the logarithm of a coefficient is to its bound where it has ended there."""
FEWEST = {"student": (3, "sizes of student"), "tokens": (2, "token budgets of one student"), "teacher": (4, "teachers")}
"""Column of the cells → how many different values it has at least, and what they are."""
REACH = 3.0
"""How many times beyond what was measured a law is still asked."""


_Law = Callable[..., tuple[Floats, Floats]]
"""Of a vector and what a law is given, the logarithm of the loss, (k,), and its gradient for the vector, (k, p)."""


@dataclass(frozen=True, kw_only=True)
class AppleFit:
    """Apple's law of a grid, and as many more fits to the same grid with other errors."""

    supervised: Supervised
    distilled: Distilled
    drawn: Sequence[tuple[Supervised, Distilled]]
    error: float
    """Standard deviation of a log loss around the law."""
    seed: int
    teachers: tuple[float, float]
    """The smallest and the largest, in parameters."""
    teacher_tokens: float | None
    """For each parameter of a teacher: the median of the grid's; null where those of some are not known."""
    measured: tuple[Floats, Floats]
    """Sizes of the grid's teachers, ascending, and what each of them loses. Where tokens of some are not known, no law
    says what a teacher of another size would lose: the best teacher is one of these."""

    @property
    def ended(self) -> list[str]:
        """Return the symbols of the coefficients that the grid does not tell apart: the fit ends at their bounds."""
        return [*ended(self.supervised), *ended(self.distilled)]

    def loss(self, student: float, tokens: float, teacher_loss: float, level: float = 0.90) -> Interval:
        """Return the loss of a new student in nats, with an interval in which a measurement of it lies."""
        best = _loss(self.supervised, self.distilled, student, tokens, teacher_loss)
        drawn = np.array([_loss(s, d, student, tokens, teacher_loss) for s, d in self.drawn])
        noise = np.random.default_rng([self.seed, 1]).normal(0.0, self.error, (20, len(drawn)))  # apart from the fits'
        return around(best, (drawn * np.exp(noise)).ravel(), level)

    def alone(self, parameters: float, tokens: float, level: float = 0.90) -> Interval:
        """Return the loss of a model without a teacher in nats, with the law's interval."""
        best, *drawn = (
            float(law.loss(parameters, tokens)[0]) for law in (self.supervised, *(s for s, _ in self.drawn))
        )
        return around(best, drawn, level)

    def teacher(self, student: float, tokens: float, level: float = 0.90) -> Interval:
        """Return the size of the best teacher, looked for up to ``REACH`` times beyond the measured ones.

        Where it lies at an end of that, it has no value; where too many bootstraps do, the interval has no such end.
        Where tokens of teachers are not known, nothing is said beyond the measured ones: it is one of these, and so are
        the ends of the interval.
        """
        best, *drawn = (self._best(s, d, student, tokens) for s, d in [(self.supervised, self.distilled), *self.drawn])
        if self.teacher_tokens is None:
            first, last = self.teachers
            ends = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2], method="inverted_cdf")
            return Interval(
                value=best if first < best < last else np.nan, low=0.0 if ends[0] == first else float(ends[0]),
                high=np.inf if ends[1] == last else float(ends[1]),
            )  # fmt: skip
        low, high = self.teachers[0] / REACH, self.teachers[1] * REACH
        under, over = ((np.isclose(drawn, end)).mean() > 0.5 - level / 2 for end in (low, high))
        inside = not np.isclose(best, [low, high]).any()
        if inside and not under and not over:
            return around(best, drawn, level)
        ends = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2])
        return Interval(
            value=best if inside else np.nan, low=0.0 if under else float(ends[0]),
            high=np.inf if over else float(ends[1]),
        )  # fmt: skip

    def best(self, student: float, tokens: float) -> float:
        """Return the size of the best teacher up to ``REACH`` times beyond the measured ones, ends included."""
        return self._best(self.supervised, self.distilled, student, tokens)

    def curve(self, teachers: Floats, student: float, tokens: float) -> Floats:
        """Return the loss of a student over sizes of its teacher ``(k,)``, of which ``sizes`` are known."""
        return self._curve(self.supervised, self.distilled, teachers, student, tokens)

    def sizes(self, low: float, high: float, count: int) -> Floats:
        """Return sizes of teachers between two whose losses are known: so many, or those that were measured."""
        if self.teacher_tokens is not None:
            return np.geomspace(low, high, count)
        held = self.measured[0]
        return held[(held >= low) & (held <= high)]

    def teacher_loss(self, teachers: Floats, supervised: Supervised | None = None) -> Floats:
        """Return what teachers of these sizes lose: by a law of models alone (null: the grid's), or as measured."""
        if self.teacher_tokens is not None:
            return (supervised or self.supervised).loss(teachers, self.teacher_tokens * teachers)
        sizes, losses = self.measured
        return losses[np.searchsorted(sizes, teachers)]

    def _best(self, supervised: Supervised, distilled: Distilled, student: float, tokens: float) -> float:
        low, high = self.teachers
        sizes = self.sizes(low / REACH, high * REACH, 400)
        return float(sizes[self._curve(supervised, distilled, sizes, student, tokens).argmin()])

    def _curve(
        self, supervised: Supervised, distilled: Distilled, teachers: Floats, student: float, tokens: float
    ) -> Floats:
        return distilled.loss(student, tokens, self.teacher_loss(teachers, supervised), supervised)


def fit_supervised(alone: Alone, *, delta: float = DELTA) -> Supervised:
    """Return the coefficients of L(N, D) for models that learned without a teacher."""
    given = (np.log(alone.parameters), np.log(alone.tokens))
    starts = starts_of(SUPERVISED_STARTS)
    return Supervised.of(_minimised(log_supervised, given, np.log(alone.loss), starts, bounds_of(Supervised), delta))


def fit_distilled(cells: Cells, supervised: Supervised, *, delta: float = DELTA) -> Distilled:
    """Return the coefficients of the gap between students and their teachers."""
    given = _given(cells, supervised)
    starts = starts_of(DISTILLED_STARTS)
    return Distilled.of(_minimised(log_distilled, given, np.log(cells.loss), starts, bounds_of(Distilled), delta))


def fit_apple(
    cells: Cells, alone: Alone, *, teacher_tokens: float | None, delta: float = DELTA, bootstraps: int = BOOTSTRAPS,
    seed: int = 0,
) -> AppleFit | NotEstimable:  # fmt: skip
    """Return Apple's law of a grid, or why there is none.

    Parameters
    ----------
    alone
        Teachers, and students that learned without one.
    teacher_tokens
        Tokens for each parameter of a teacher; null where those of some are not known.
    """
    if lacking := _lacking(cells, alone):
        return NotEstimable(why=lacking)
    supervised = fit_supervised(alone, delta=delta)
    distilled = fit_distilled(cells, supervised, delta=delta)
    given = (np.log(alone.parameters), np.log(alone.tokens))
    of_alone = log_supervised(supervised.vector(), *given)[0]
    of_cells = log_distilled(distilled.vector(), *_given(cells, supervised))[0]
    errors = (error_of(np.log(alone.loss) - of_alone, Supervised), error_of(np.log(cells.loss) - of_cells, Distilled))
    draw = np.random.default_rng([seed, 0])
    drawn: list[tuple[Supervised, Distilled]] = []
    for _ in range(bootstraps):
        moved = (
            of_alone + draw.normal(0.0, errors[0], len(of_alone)),
            of_cells + draw.normal(0.0, errors[1], len(of_cells)),
        )
        start = [supervised.vector()]
        s = Supervised.of(_minimised(log_supervised, given, moved[0], start, bounds_of(Supervised), delta))
        start = [distilled.vector()]
        d = Distilled.of(_minimised(log_distilled, _given(cells, s), moved[1], start, bounds_of(Distilled), delta))
        drawn.append((s, d))
    theirs, first = np.unique(cells.teacher, return_index=True)
    return AppleFit(
        supervised=supervised, distilled=distilled, drawn=drawn, error=errors[1], seed=seed,
        teachers=(float(cells.teacher.min()), float(cells.teacher.max())), teacher_tokens=teacher_tokens,
        measured=(theirs, cells.teacher_loss[first]),
    )  # fmt: skip


def _lacking(cells: Cells, alone: Alone) -> str:
    """Return what a grid lacks for a fit; nothing where it will do."""
    counts = {name: len(np.unique(getattr(cells, name))) for name in FEWEST}
    # Students on equal tokens a parameter have tokens of their own, which say nothing of tokens apart from size.
    counts["tokens"] = max((len(np.unique(cells.tokens[cells.student == s])) for s in cells.student), default=0)
    few = [f"{counts[name]} of {least} {what}" for name, (least, what) in FEWEST.items() if counts[name] < least]
    distinct = len(np.unique(np.stack([cells.student, cells.tokens, cells.teacher], axis=1), axis=0))
    if distinct <= len(fields(Distilled)):
        few.append(f"{distinct} cells for {len(fields(Distilled))} coefficients")
    models = len(np.unique(np.stack([alone.parameters, alone.tokens], axis=1), axis=0))
    if models <= len(fields(Supervised)):
        few.append(f"{models} models without a teacher for {len(fields(Supervised))} coefficients")
    if not few and np.ptp(cells.loss) == 0.0:
        few.append("all losses are equal")
    return "; ".join(few)


def _minimised(
    law: _Law, given: tuple[Floats, ...], log_loss: Floats, starts: Sequence[Floats],
    bounds: Sequence[tuple[float, float]], delta: float,
) -> Floats:  # fmt: skip
    """Return the vector of the lowest objective that any start leads to."""

    def objective(vector: Floats) -> tuple[float, Floats]:
        value, gradient = law(vector, *given)
        residual = value - log_loss
        size = np.abs(residual)
        huber = np.where(size <= delta, residual**2 / (2 * delta), size - delta / 2).sum()
        return float(huber), (np.clip(residual, -delta, delta) / delta) @ gradient

    options = {"maxiter": 500, "maxfun": 1000}
    with one_thread():
        found = [
            minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options) for start in starts
        ]
    return min(found, key=lambda result: result.fun).x


def starts_of(values: Mapping[str, tuple[float, ...]]) -> list[Floats]:
    """Return the vector of each point of a grid of starts."""
    return [np.log(point) for point in itertools.product(*values.values())]


def bounds_of(law: type[Supervised | Distilled]) -> list[tuple[float, float]]:
    """Return the least and the largest logarithm of each coefficient."""
    return [(float(np.log(BOUNDS[f.name][0])), float(np.log(BOUNDS[f.name][1]))) for f in fields(law)]


def _given(cells: Cells, supervised: Supervised) -> tuple[Floats, ...]:
    log_n, log_d = np.log(cells.student), np.log(cells.tokens)
    return log_n, log_d, np.log(cells.teacher_loss), log_supervised(supervised.vector(), log_n, log_d)[0]


def ended(law: Supervised | Distilled) -> list[str]:
    """Return the symbols of the coefficients that a fit has left at one of their bounds: it does not estimate them."""
    near = np.isclose(law.vector()[:, None], bounds_of(type(law)), rtol=0.0, atol=AT_BOUND)
    return [symbol for symbol, at in zip(SYMBOLS[type(law)], near, strict=True) if at.any()]


def error_of(residual: Floats, law: type[Supervised | Distilled]) -> float:
    """Return the standard deviation of residuals that the coefficients of a law were fitted to."""
    left = max(1, len(residual) - len(fields(law)))
    return float(np.sqrt((residual**2).sum() / left))


def _loss(supervised: Supervised, distilled: Distilled, student: float, tokens: float, teacher_loss: float) -> float:
    return float(distilled.loss(student, tokens, teacher_loss, supervised)[0])


def around(value: float, drawn: Sequence[float] | Floats, level: float) -> Interval:
    """Return the basic bootstrap interval in the logarithm: how far fits lie from the law, laid off from the value.

    Fits to a small grid are a little off to one side, and so the interval goes to the other (Davison and Hinkley 1997,
    chapter 5).
    """
    low, high = np.quantile(np.log(drawn), [0.5 - level / 2, 0.5 + level / 2])
    return Interval(value=value, low=float(value**2 / np.exp(high)), high=float(value**2 / np.exp(low)))
