"""Apple's law: the published values, its gradients, and fits that find what grids were made from."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.optimize import approx_fprime

from capgap_core.laws import apple_fit, simulate
from capgap_core.laws.apple import (
    PUBLISHED_DISTILLED,
    PUBLISHED_SUPERVISED,
    Distilled,
    Supervised,
    log_distilled,
    log_supervised,
)
from capgap_core.laws.grid import NotEstimable

TEACHERS = np.array([198e6, 546e6, 975e6, 1.82e9, 2.72e9, 4.82e9, 7.75e9])


def test_models_without_a_teacher_lose_what_is_published() -> None:
    found = PUBLISHED_SUPERVISED.loss([198e6, 546e6, 1.82e9, 7.75e9], 20 * np.array([198e6, 546e6, 1.82e9, 7.75e9]))
    assert found.round(4).tolist() == [2.7894, 2.5149, 2.2509, 2.0036]


@pytest.mark.parametrize(
    ("student", "losses", "alone"),
    [
        (198e6, [2.7894, 2.5297, 2.4480, 2.4203, 2.4218, 2.4337, 2.4462], 2.4376),
        (546e6, [2.7894, 2.5152, 2.3858, 2.2891, 2.2569, 2.2428, 2.2472], 2.2542),
    ],
)
def test_students_lose_what_the_published_coefficients_give(student: float, losses: list[float], alone: float) -> None:
    theirs = PUBLISHED_SUPERVISED.loss(TEACHERS, 20 * TEACHERS)
    found = PUBLISHED_DISTILLED.loss(student, 512e9, theirs, PUBLISHED_SUPERVISED)
    assert found.round(4).tolist() == losses
    assert PUBLISHED_SUPERVISED.loss(student, 512e9).round(4).tolist() == [alone]


def test_logarithms_change_nothing_where_the_powers_can_be_written_out() -> None:
    s, d = PUBLISHED_SUPERVISED, Distilled(a=20, b=30, alpha=0.3, beta=0.6, gamma=0.7, c0=2.0, c1=0.5, f1=0.8, d1=1.3)
    n, tokens, theirs = 2e6, 3e8, 2.4
    alone = s.e + (s.a / n**s.alpha + s.b / tokens**s.beta) ** s.gamma
    bend = (1 + (theirs / (alone * d.d1)) ** (1 / d.f1)) ** (-d.c1 * d.f1)
    written_out = theirs + theirs**-d.c0 * bend * (d.a / n**d.alpha + d.b / tokens**d.beta) ** d.gamma
    assert s.loss(n, tokens)[0] == pytest.approx(alone, rel=1e-12)
    assert d.loss(n, tokens, theirs, s)[0] == pytest.approx(written_out, rel=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    moved=st.lists(st.floats(-0.5, 0.5), min_size=9, max_size=9), n=st.floats(1e4, 1e10), d=st.floats(1e6, 1e12),
    theirs=st.floats(1.3, 5.0),
)  # fmt: skip
def test_gradients_are_those_of_the_values(moved: list[float], n: float, d: float, theirs: float) -> None:
    at = np.log([n]), np.log([d])
    own = PUBLISHED_SUPERVISED.vector() + moved[:6]
    found = approx_fprime(own, lambda v: log_supervised(v, *at)[0][0], 1e-6)
    assert log_supervised(own, *at)[1][0] == pytest.approx(found, rel=1e-3, abs=1e-4)
    given_loss = (*at, np.log([theirs]), log_supervised(own, *at)[0])
    between = PUBLISHED_DISTILLED.vector() + moved
    found = approx_fprime(between, lambda v: log_distilled(v, *given_loss)[0][0], 1e-6)
    assert log_distilled(between, *given_loss)[1][0] == pytest.approx(found, rel=1e-3, abs=1e-4)


def test_a_law_is_its_vector() -> None:
    assert Supervised.of(PUBLISHED_SUPERVISED.vector()).a == pytest.approx(3355)
    assert Distilled.of(PUBLISHED_DISTILLED.vector()).f1 == pytest.approx(0.090)


def test_a_grid_without_noise_gives_its_own_law_back() -> None:
    exact = simulate.Shape(teachers=6, students=5, budgets=3, seeds=1, noise=0.0)
    cells, alone = simulate.apple_grid(exact, np.random.default_rng(0))
    supervised = apple_fit.fit_supervised(alone)
    assert supervised.loss(3e8, 2e11) == pytest.approx(PUBLISHED_SUPERVISED.loss(3e8, 2e11), rel=1e-4)
    distilled = apple_fit.fit_distilled(cells, PUBLISHED_SUPERVISED)
    new = distilled.loss(4e8, 1e11, [2.1, 2.3, 2.6], PUBLISHED_SUPERVISED)
    assert new == pytest.approx(PUBLISHED_DISTILLED.loss(4e8, 1e11, [2.1, 2.3, 2.6], PUBLISHED_SUPERVISED), rel=1e-3)


def test_the_best_teacher_of_a_simulated_grid_is_found() -> None:
    cells, alone = simulate.apple_grid(simulate.SMALL, np.random.default_rng(3))
    found = apple_fit.fit_apple(cells, alone, teacher_tokens=simulate.M, bootstraps=10)
    assert not isinstance(found, NotEstimable)
    sizes = np.geomspace(198e6, 7.75e9, 400)
    curve = PUBLISHED_DISTILLED.loss(4e8, 512e9, PUBLISHED_SUPERVISED.loss(sizes, 20 * sizes), PUBLISHED_SUPERVISED)
    best = found.teacher(4e8, 512e9)
    assert best.low < best.value < best.high
    assert best.value == pytest.approx(sizes[curve.argmin()], rel=0.4)
    wider = found.teacher(4e8, 512e9, level=0.99)
    assert wider.low <= best.low
    assert best.high <= wider.high
    again = apple_fit.fit_apple(cells, alone, teacher_tokens=simulate.M, bootstraps=10)
    assert not isinstance(again, NotEstimable)
    assert again.loss(4e8, 512e9, 2.2) == found.loss(4e8, 512e9, 2.2), "the bootstrap is seeded"


def test_a_best_teacher_beyond_what_is_looked_at_has_no_value() -> None:
    fit = apple_fit.AppleFit(
        supervised=PUBLISHED_SUPERVISED, distilled=PUBLISHED_DISTILLED,
        drawn=[(PUBLISHED_SUPERVISED, PUBLISHED_DISTILLED)] * 20, error=0.005, seed=0, teachers=(198e6, 1e9),
        teacher_tokens=20.0, measured=(np.array([198e6, 1e9]), np.array([2.4, 2.2])),
    )  # fmt: skip
    found = fit.teacher(2e9, 512e9)
    assert np.isnan(found.value)
    assert (found.low, found.high) == (pytest.approx(3e9), np.inf)
    assert fit.teacher(198e6, 512e9).value == pytest.approx(2.07e9, rel=0.02)


def test_a_grid_that_holds_no_law_says_what_it_lacks() -> None:
    shape = simulate.Shape(teachers=2, students=1, budgets=1, seeds=1, noise=0.0)
    cells, alone = simulate.apple_grid(shape, np.random.default_rng(0))
    found = apple_fit.fit_apple(cells, alone, teacher_tokens=simulate.M)
    assert isinstance(found, NotEstimable)
    for said in ("1 of 3 sizes of student", "1 of 2 token budgets", "2 of 4 teachers", "2 cells for 9", "3 models"):
        assert said in found.why


def test_where_tokens_of_teachers_are_not_known_one_that_was_measured_is_named() -> None:
    """By what each of them loses: a teacher that lies off the law of models alone is judged by its own loss."""
    cells, alone = simulate.apple_grid(simulate.SMALL, np.random.default_rng(1))
    known = apple_fit.fit_apple(cells, alone, teacher_tokens=simulate.M, bootstraps=2)
    sizes = np.unique(cells.teacher)
    given = np.isin(cells.teacher, sizes[-2:])
    better = dataclasses.replace(cells, teacher=np.where(given, 3 * cells.teacher, cells.teacher))
    found = apple_fit.fit_apple(better, alone, teacher_tokens=None, bootstraps=5)
    assert not isinstance(known, NotEstimable)
    assert not isinstance(found, NotEstimable)
    assert found.distilled == known.distilled, "sizes of teachers are in no formula"
    measured = np.unique(better.teacher)
    losses = np.array([better.teacher_loss[better.teacher == one][0] for one in measured])
    for student, tokens in ((2e8, 128e9), (1e9, 512e9)):
        curve = found.distilled.loss(student, tokens, losses, found.supervised)
        best = found.teacher(student, tokens)
        assert found.best(student, tokens) == measured[curve.argmin()]
        inside = measured[0] < measured[curve.argmin()] < measured[-1]
        assert best.value == measured[curve.argmin()] if inside else np.isnan(best.value)
        assert {best.low, best.high} <= {0.0, *measured, np.inf}
        assert not inside or best.low <= best.value <= best.high
        assert found.curve(measured, student, tokens) == pytest.approx(curve)
    few = dataclasses.replace(found, measured=(measured[:3], losses[:3]), teachers=(measured[0], measured[2]))
    assert (np.diff(few.curve(measured[:3], 1e9, 512e9)) < 0).all(), "a larger teacher is better"
    held = few.teacher(1e9, 512e9)
    assert np.isnan(held.value), "the best teacher may lie beyond the largest"
    assert held.high == np.inf
    assert list(found.sizes(measured[1], measured[3], 50)) == list(measured[1:4]), "nothing is drawn between them"
    assert len(known.sizes(sizes[0], sizes[-1], 50)) == 50
