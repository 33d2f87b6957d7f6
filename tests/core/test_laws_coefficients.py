"""Intervals of single coefficients: against a second source, and what they say where a grid does not tell."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import approx_fprime, curve_fit, minimize

from capgap_core.laws import apple_fit, coefficients, own, simulate
from capgap_core.laws.apple import PUBLISHED_DISTILLED, PUBLISHED_SUPERVISED, SYMBOLS, Distilled, Supervised
from capgap_core.laws.fits import Fits
from capgap_core.laws.grid import Alone, NotEstimable
from capgap_core.laws.optimum import Noise


def models(noise: float, *, sizes: int = 9, budgets: int = 8, wide: float = 1e4) -> Alone:
    """Models without a teacher that follow the published law, sizes and tokens over so many times."""
    n, d = np.geomspace(1e7, 1e7 * wide, sizes), np.geomspace(1e8, 1e8 * wide, budgets)
    n, d = (x.ravel() for x in np.meshgrid(n, d))
    loss = PUBLISHED_SUPERVISED.loss(n, d) * np.exp(noise * np.random.default_rng(0).standard_normal(len(n)))
    return Alone(parameters=n, tokens=d, loss=loss, teaches=np.zeros(len(n), dtype=bool))


def test_small_errors_leave_the_intervals_of_linear_regression() -> None:
    alone = models(1e-4)
    found = coefficients.of_supervised(alone, apple_fit.fit_supervised(alone))

    def log_loss(at: tuple[np.ndarray, np.ndarray], *vector: float) -> np.ndarray:
        return np.log(Supervised.of(np.array(vector)).loss(*at))

    at = (alone.parameters, alone.tokens)
    best, covariance = curve_fit(log_loss, at, np.log(alone.loss), p0=PUBLISHED_SUPERVISED.vector())
    half = stats.t.ppf(0.95, len(alone) - 6) * np.sqrt(np.diag(covariance))
    assert tuple(found) == SYMBOLS[Supervised]
    for one, middle, wide in zip(found.values(), best, half, strict=True):
        assert np.log(one.low) == pytest.approx(middle - wide, abs=0.06 * wide)
        assert np.log(one.high) == pytest.approx(middle + wide, abs=0.06 * wide)


def test_an_end_is_where_the_sum_of_squares_has_risen_by_what_is_allowed() -> None:
    """A grid so small that its profile is no parabola, fitted again by another optimiser."""
    alone = models(3e-3, sizes=4, budgets=4, wide=1e2)
    law = apple_fit.fit_supervised(alone)
    found = coefficients.of_supervised(alone, law)["E"]
    objective = coefficients._of_alone(alone, law)
    bounds = apple_fit.bounds_of(Supervised)

    def squares(e: float | None) -> float:
        held = [bounds[0] if e is None else (np.log(e), np.log(e)), *bounds[1:]]
        tried = [
            minimize(objective.squares, np.clip(start, *np.array(held).T), method="SLSQP", bounds=held,
                               options={"maxiter": 2000, "ftol": 1e-12})
            for start in [law.vector(), PUBLISHED_SUPERVISED.vector()]
        ]  # fmt: skip
        return min(one.fun for one in tried)

    least, left = squares(None), len(alone) - 6
    allowed = least * (1 + stats.t.ppf(0.95, left) ** 2 / left)
    assert np.log(found.high / law.e) != pytest.approx(np.log(law.e / found.low), rel=0.1)
    for end in (found.low, found.high):
        assert squares(end) == pytest.approx(allowed, rel=0.1)


def test_gradients_of_both_laws_together_are_those_of_the_values() -> None:
    cells, alone = simulate.apple_grid(simulate.SMALL, np.random.default_rng(0))
    objective = coefficients._of_both(cells, alone, PUBLISHED_SUPERVISED, PUBLISHED_DISTILLED)
    vector = np.append(PUBLISHED_SUPERVISED.vector(), PUBLISHED_DISTILLED.vector()) + 0.02
    gradient = objective.weighted(vector)[1]
    found = approx_fprime(vector, lambda v: objective.weighted(v)[0], 1e-7)
    assert gradient == pytest.approx(found, rel=1e-3, abs=0.02)


def test_what_a_grid_does_not_tell_apart_has_no_end() -> None:
    """On models of one budget nothing says what tokens do."""
    alone = models(2e-3, sizes=12, budgets=1)
    law = apple_fit.fit_supervised(alone)
    found = coefficients.irreducible(alone, law)
    assert isinstance(found, NotEstimable)
    assert found.why.startswith(("any E", "the fit ends at a bound of"))
    whole = models(2e-3)
    held = coefficients.irreducible(whole, apple_fit.fit_supervised(whole))
    assert not isinstance(held, NotEstimable)
    assert held.low < PUBLISHED_SUPERVISED.e < held.high < 1.5


def test_a_coefficient_at_its_bound_makes_no_estimate_of_e() -> None:
    alone = models(1e-3)
    assert apple_fit.ended(PUBLISHED_SUPERVISED) == []
    stuck = replace(PUBLISHED_SUPERVISED, gamma=apple_fit.BOUNDS["gamma"][1])
    found = coefficients.irreducible(alone, stuck)
    assert isinstance(found, NotEstimable)
    assert "the fit ends at a bound of γ" in found.why
    assert apple_fit.ended(replace(PUBLISHED_DISTILLED, b=1e15, d1=5.0)) == ["B'", "d1"]


def fits(distilled: Distilled) -> Fits:
    cells, alone = simulate.apple_grid(simulate.SMALL, np.random.default_rng(0))
    sizes, first = np.unique(cells.teacher, return_index=True)
    apple = apple_fit.AppleFit(
        measured=(sizes, cells.teacher_loss[first]),
        supervised=PUBLISHED_SUPERVISED, distilled=distilled, drawn=[(PUBLISHED_SUPERVISED, distilled)] * 20,
        error=0.005, seed=0, teachers=(float(cells.teacher.min()), float(cells.teacher.max())), teacher_tokens=20.0,
    )  # fmt: skip
    noise = Noise(variance=1e-6, freedom=10)
    return Fits(cells=cells, alone=alone, noise=noise, optima=[], powers={}, apple=apple, teacher_tokens=20.0)


def test_advice_rests_on_no_coefficient_that_is_none() -> None:
    """The tokens' part of the gap is next to nothing: at its bound B' says as much, and no more."""
    free = fits(PUBLISHED_DISTILLED)
    stuck = fits(replace(PUBLISHED_DISTILLED, b=apple_fit.BOUNDS["b"][0]))
    for tokens, has in ((3e11, True), (8e11, False)):
        (answer,) = [one for one in own.recommend(stuck, 4e8, tokens) if one.law == "distillation scaling law"]
        (other,) = [one for one in own.recommend(free, 4e8, tokens) if one.law == "distillation scaling law"]
        assert other.teacher is not None
        assert "tell" not in other.says
        assert (answer.teacher is not None) == has
        assert "the grid does not tell B' apart" in answer.says
    assert "beyond what was measured" in answer.says
    assert answer.low is not None
    (far,) = [one for one in own.recommend(stuck, 9e8, 512e9) if one.law == "distillation scaling law"]
    (far_free,) = [one for one in own.recommend(free, 9e8, 512e9) if one.law == "distillation scaling law"]
    assert (far.teacher is None) == (far_free.teacher is None or far_free.teacher > 7.75e9)


def test_a_grid_as_large_as_the_published_one_tells_some_coefficients() -> None:
    cells, alone = simulate.large_grid(np.random.default_rng(0))
    assert (len(cells), len(alone)) == (700, 73)
    held = {one.quantity: one for one in simulate.of_coefficients(1)}
    assert tuple(held) == tuple(f"700 cells: {symbol}" for law in SYMBOLS.values() for symbol in law)
    for symbol in ("E", "A", "B", "α", "β", "γ", "c0", "f1"):
        assert 0 < held[f"700 cells: {symbol}"].low < held[f"700 cells: {symbol}"].high < np.inf
    assert held["700 cells: B'"].high == np.inf
