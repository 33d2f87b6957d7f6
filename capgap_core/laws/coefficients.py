"""Intervals of single coefficients of Apple's law, and which of them a grid does not tell apart.

A bootstrap around the optimum is no use here: along flat valleys coefficients move by powers of ten and the losses
stay. So each interval is one of profile likelihood (Bates and Watts 1988, chapter 6): the coefficient is held at a
value, all others are fitted again by least squares of log losses (Levenberg and Marquardt's steps, with the gradients
of ``apple``), and the interval ends where the sum of squares has risen by t² s², with n - p degrees of freedom. Valleys
bend, and a walk along one coefficient may lose its own: every fit that errors explain is kept, and walks begin again
from the furthest of all. Where a bound of ``BOUNDS`` comes first the interval is open: the grid does not say.

The supervised law stands within the distilled one, so both are fitted together to all models, each with residuals in
units of its own error. That carries what is not known of the one into the other.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy import stats
from scipy.optimize import brentq, least_squares

from capgap_core.laws.apple import SYMBOLS, Distilled, Supervised, log_distilled, log_supervised
from capgap_core.laws.apple_fit import (
    DISTILLED_STARTS,
    SUPERVISED_STARTS,
    bounds_of,
    ended,
    error_of,
    starts_of,
)
from capgap_core.laws.grid import Alone, Cells, Floats, Interval, NotEstimable
from capgap_core.laws.threads import one_thread

WALL = 30.0
"""Standard errors for each unit of a logarithm beyond a bound: fits come back from there, and lose no gradient."""
EVALUATIONS = 200
PASSES, RESTARTS = 3, 6
"""How often ends are looked for again from fits that other walks have found, and from a better one than the best."""
NOTICED = 0.05
"""Share of the allowed rise by which a fit has to be better than the best one to take its place."""
STEPS = (1e-3, 1.5)
"""The shortest and the longest first step of a walk, in the logarithm of a coefficient."""
CLOSE = 0.03
"""How close an end is found, of its distance."""
TRIED = 40
"""Vectors found so far that are tried where a walk seems to end."""
EACH = 8
"""One of so many of the recipe's starts is tried for a better optimum than that of the fit."""
LEAST_ERROR = 1e-9

_Weighted = Callable[[Floats], tuple[Floats, Floats]]
"""Of a vector, residuals in units of their error (n,), and their gradient (n, p)."""


def of_supervised(alone: Alone, law: Supervised, level: float = 0.90) -> dict[str, Interval]:
    """Return the interval of each coefficient of L(N, D), by its symbol; 0 and infinity where nothing bounds it.

    Parameters
    ----------
    alone
        More models than coefficients.
    law
        As it was fitted: the values.
    """
    own = law.vector()
    found = _Region(_of_alone(alone, law), [own, *starts_of(SUPERVISED_STARTS)], level).ends()
    return _by_symbol(law, found)


def of_both(
    cells: Cells, alone: Alone, supervised: Supervised, distilled: Distilled, level: float = 0.90
) -> dict[str, Interval]:
    """Return the interval of each coefficient of L(N, D) and of L_S, as ``of_supervised``."""
    own = supervised.vector()
    starts = [distilled.vector(), *starts_of(DISTILLED_STARTS)[::EACH]]
    objective = _of_both(cells, alone, supervised, distilled)
    found = _Region(objective, [np.append(own, start) for start in starts], level).ends()
    return {**_by_symbol(supervised, found[: len(own)]), **_by_symbol(distilled, found[len(own) :])}


def irreducible(alone: Alone, law: Supervised, level: float = 0.90) -> Interval | NotEstimable:
    """Return E in nats, the loss that neither parameters nor tokens take away, or why these models do not say."""
    if at := ended(law):
        return NotEstimable(why=f"the fit ends at a bound of {', '.join(at)}, not told apart from E by these models")
    held = of_supervised(alone, law, level)
    if _bounded(held["E"]):
        return held["E"]
    others = ", ".join(symbol for symbol, one in held.items() if symbol != "E" and not _bounded(one))
    apart = f"; {others} not bounded either" if others else ""
    return NotEstimable(why=f"{_unbounded(held['E'])} fits these models as well, within errors{apart}")


def _bounded(interval: Interval) -> bool:
    return interval.low > 0.0 and bool(np.isfinite(interval.high))


def _unbounded(interval: Interval) -> str:
    if np.isfinite(interval.high):
        return f"any E below {interval.high:.4g}"
    return f"any E above {interval.low:.4g}" if interval.low > 0.0 else "any E"


@dataclass(frozen=True, kw_only=True)
class _Objective:
    """A sum of squares, and between which ends its vector lies."""

    weighted: _Weighted
    low: Floats
    high: Floats

    def lowest(self, start: Floats, held: int | None = None) -> tuple[Floats, float]:
        """Return the vector of the lowest sum of squares near ``start``, one of its values held, and that sum."""
        free, whole, last = np.arange(len(start)) != held, start.copy(), {}

        def both(moved: Floats) -> tuple[Floats, Floats]:
            if (key := moved.tobytes()) not in last:
                whole[free] = moved
                residual, gradient = self.weighted(whole)
                over = whole - np.clip(whole, self.low, self.high)
                walls = np.diag(WALL * (over != 0.0))
                last.clear()
                last[key] = np.append(residual, WALL * over), np.vstack([gradient, walls])[:, free]
            return last[key]

        with one_thread(), np.errstate(all="ignore"):  # a step too far overflows, and is not taken
            found = least_squares(
                lambda moved: both(moved)[0], start[free],
                lambda moved: both(moved)[1],  # pyright: ignore[reportArgumentType] - a function is allowed
                method="lm", x_scale="jac",
                ftol=1e-7, xtol=1e-9, gtol=1e-9, max_nfev=EVALUATIONS,
            )  # fmt: skip
        whole[free] = found.x
        return whole, 2.0 * float(found.cost)

    def squares(self, vector: Floats) -> float:
        """Return the sum of squares of a vector between the ends."""
        return float((self.weighted(vector)[0] ** 2).sum())


class _Better(Exception):
    """A fit that is better than the one taken for the best."""

    def __init__(self, vector: Floats) -> None:
        super().__init__()
        self.vector = vector


class _Region:
    """Where each coefficient, taken alone, lies with a given probability."""

    def __init__(self, objective: _Objective, starts: Sequence[Floats], level: float) -> None:
        self.objective, self.level, self.restarts = objective, level, RESTARTS
        self._settle(min(map(objective.lowest, starts), key=lambda one: one[1])[0])

    def ends(self) -> list[tuple[float, float]]:
        """Return the lower and the upper end of each value of the vector; infinite where a bound comes first."""
        while True:
            try:
                return self._ends()
            except _Better as found:
                self.restarts -= 1
                self._settle(found.vector)

    def _settle(self, start: Floats) -> None:
        self.best, self.least = self.objective.lowest(start)
        gradient = self.objective.weighted(self.best)[1]
        left = len(gradient) - len(start)
        self.rise = self.least / left * float(stats.t.ppf(0.5 + self.level / 2, left)) ** 2
        near = np.sqrt((np.linalg.pinv(gradient, rcond=1e-12) ** 2).sum(axis=1) * self.rise)
        self.steps = np.clip(near, *STEPS)
        self.inside = [self.best]

    def _ends(self) -> list[tuple[float, float]]:
        found: dict[tuple[int, int], float] = {}
        for _ in range(PASSES):
            before = len(found), len(self.inside)
            for i, side in itertools.product(range(len(self.best)), (-1, 1)):
                furthest = max(self.inside, key=lambda vector: side * vector[i])
                if (i, side) not in found or side * (furthest[i] - found[i, side]) > CLOSE * self.steps[i]:
                    found[i, side] = self._end(furthest, i, side)
            if before == (len(found), len(self.inside)):
                break
        return [(found[i, -1], found[i, 1]) for i in range(len(self.best))]

    def _end(self, at: Floats, i: int, side: int) -> float:
        """Return how far a coefficient goes to one side, from a vector that errors explain."""
        bound = (self.objective.low if side < 0 else self.objective.high)[i]
        ahead, step = np.zeros_like(at), self.steps[i]
        while side * (bound - at[i]) > 0:
            to = side * min(side * bound, side * at[i] + step)
            vector, height = self._held(at + ahead * (to - at[i]), i, to)
            if height > 1.0:
                vector, height = min((vector, height), self._held(self._likely(i, to), i, to), key=lambda one: one[1])
            if height > 1.0:
                return self._crossing(at, vector, i, height)
            ahead, at, step = (vector - at) / (to - at[i]), vector, 2 * step
        return side * np.inf

    def _crossing(self, inside: Floats, outside: Floats, i: int, height: float) -> float:
        """Return where between two vectors the sum of squares has risen by what is allowed."""
        low, high = inside[i], outside[i]
        known = {low: self._height(self.objective.squares(inside)) - 1.0, high: height - 1.0}

        def above(to: float) -> float:
            if to not in known:
                between = inside + (outside - inside) * (to - low) / (high - low)
                known[to] = self._held(between, i, to)[1] - 1.0
            return known[to]

        if known[low] >= 0.0:
            return float(low)
        root, _ = brentq(
            above, low, high, xtol=CLOSE * abs(high - self.best[i]), maxiter=8, full_output=True, disp=False
        )
        return float(root)

    def _held(self, guess: Floats, i: int, to: float) -> tuple[Floats, float]:
        """Return the best vector with one of its values held, and how high it lies; 1 is as high as is allowed."""
        start = np.clip(guess, self.objective.low, self.objective.high)
        start[i] = to
        vector, squares = self.objective.lowest(start, held=i)
        if self.restarts and squares < self.least - NOTICED * self.rise:
            raise _Better(vector)
        height = self._height(squares)
        if height <= 1.0:
            self.inside.append(vector)
        return vector, height

    def _likely(self, i: int, to: float) -> Floats:
        """Return which of the vectors found so far does best with a value changed: it may lie in another valley."""
        some = self.inside[:: 1 + len(self.inside) // TRIED]
        tried = [np.where(np.arange(len(self.best)) == i, to, one) for one in some]
        with np.errstate(all="ignore"):
            squares = [self.objective.squares(one) for one in tried]
        return tried[int(np.nanargmin(squares))]

    def _height(self, squares: float) -> float:
        """Return the root of the rise, which grows with the distance where the sum of squares is a parabola."""
        return float(np.sqrt(max(0.0, squares - self.least) / self.rise))


def _of_alone(alone: Alone, law: Supervised) -> _Objective:
    given, log_loss = (np.log(alone.parameters), np.log(alone.tokens)), np.log(alone.loss)
    error = _unit(log_supervised(law.vector(), *given)[0] - log_loss, Supervised)

    def weighted(vector: Floats) -> tuple[Floats, Floats]:
        value, gradient = log_supervised(vector, *given)
        return (value - log_loss) / error, gradient / error

    low, high = np.array(bounds_of(Supervised)).T
    return _Objective(weighted=weighted, low=low, high=high)


def _of_both(cells: Cells, alone: Alone, supervised: Supervised, distilled: Distilled) -> _Objective:
    first, k = _of_alone(alone, supervised), len(fields(Supervised))
    sizes = (np.log(cells.student), np.log(cells.tokens))
    log_teacher, log_loss = np.log(cells.teacher_loss), np.log(cells.loss)

    def second(vector: Floats) -> tuple[Floats, Floats]:
        own, of_own = log_supervised(vector[:k], *sizes)
        value, gradient = log_distilled(vector[k:], *sizes, log_teacher, own)
        # What the student loses alone counts as d1 does: as their sum.
        return value - log_loss, np.hstack([gradient[:, -1:] * of_own, gradient])

    error = _unit(second(np.append(supervised.vector(), distilled.vector()))[0], Distilled)

    def weighted(vector: Floats) -> tuple[Floats, Floats]:
        residual, gradient = first.weighted(vector[:k])
        other, of_other = second(vector)
        gradient = np.hstack([gradient, np.zeros((len(residual), len(vector) - k))])
        return np.append(residual, other / error), np.vstack([gradient, of_other / error])

    low, high = np.array([*bounds_of(Supervised), *bounds_of(Distilled)]).T
    return _Objective(weighted=weighted, low=low, high=high)


def _unit(residual: Floats, law: type[Supervised | Distilled]) -> float:
    return max(error_of(residual, law), LEAST_ERROR)


def _by_symbol(law: Supervised | Distilled, ends: Sequence[tuple[float, float]]) -> dict[str, Interval]:
    return {
        symbol: Interval(value=float(np.exp(value)), low=float(np.exp(low)), high=float(np.exp(high)))
        for symbol, value, (low, high) in zip(SYMBOLS[type(law)], law.vector(), ends, strict=True)
    }
