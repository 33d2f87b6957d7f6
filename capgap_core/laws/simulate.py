"""Grids with a known answer, and how often the intervals of the fits hold it.

Two sources: losses by Apple's law with its published coefficients, and parabolas in log T whose best teachers follow a
power of the student's size, each student a little beside it. Errors are normal in log loss; a seed moves all students
of a size alike, too. The teacher's own loss is measured with an error of its own, and its students learn from that
teacher as it is.
"""

from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from functools import partial
from typing import Literal

import numpy as np

from capgap_core.laws.apple import PUBLISHED_DISTILLED, PUBLISHED_SUPERVISED, SYMBOLS
from capgap_core.laws.apple_fit import DELTA, PUBLISHED_DELTA, fit_apple, fit_distilled, fit_supervised
from capgap_core.laws.coefficients import of_both
from capgap_core.laws.grid import Alone, Cells, Floats, Interval, NotEstimable
from capgap_core.laws.line import PUBLISHED_INTERCEPT, PUBLISHED_SLOPE, fit_power, straight
from capgap_core.laws.optimum import optima

LEVEL = 0.90
M = 20.0
"""Tokens for each parameter of a simulated teacher."""

Source = Literal["apple", "apple, δ = 1e-4", "apple, coefficients", "power", "straight"]


@dataclass(frozen=True, kw_only=True)
class Held:
    """Whether one interval of one simulated grid holds what it should."""

    source: Source
    quantity: str
    grid: int
    truth: float
    value: float
    low: float
    high: float

    @property
    def covered(self) -> bool:
        """Return whether the truth lies in the interval."""
        return self.low <= self.truth <= self.high


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The size of a simulated grid."""

    teachers: int
    students: int
    budgets: int
    seeds: int
    noise: float
    """Standard deviation of a log loss."""


SMALL = Shape(teachers=6, students=5, budgets=2, seeds=2, noise=0.005)
CURVES = Shape(teachers=6, students=7, budgets=1, seeds=3, noise=0.001)


def apple_grid(shape: Shape, draw: np.random.Generator) -> tuple[Cells, Alone]:
    """Return a grid whose losses follow Apple's law as published; students of 143M to 1B, teachers of 198M to 7.75B."""
    teachers, students = np.geomspace(198e6, 7.75e9, shape.teachers), np.geomspace(143e6, 1e9, shape.students)
    budgets = np.geomspace(512e9 / 4 ** (shape.budgets - 1), 512e9, shape.budgets)
    theirs = _noisy(PUBLISHED_SUPERVISED.loss(teachers, M * teachers), shape, draw)
    student, tokens, which, seed = _crossed(
        students, budgets, np.arange(float(shape.teachers)), np.arange(float(shape.seeds))
    )
    place = which.astype(np.int64)
    exact = PUBLISHED_DISTILLED.loss(student, tokens, theirs[place], PUBLISHED_SUPERVISED)
    cells = Cells(
        student=student, tokens=tokens, teacher=teachers[place], teacher_loss=theirs[place],
        loss=_noisy(exact, shape, draw), seed=seed.astype(np.int64),
    )  # fmt: skip
    size, given, _ = _crossed(students, budgets, np.arange(float(shape.seeds)))
    controls = _noisy(PUBLISHED_SUPERVISED.loss(size, given), shape, draw)
    alone = Alone(
        parameters=np.append(size, teachers),
        tokens=np.append(given, M * teachers),
        loss=np.append(controls, theirs),
        teaches=np.arange(len(size) + len(teachers)) >= len(size),
    )
    return cells, alone


def power_grid(
    shape: Shape, draw: np.random.Generator, *, ratio: float = 2.5, exponent: float = 1.0, between: float = 0.05
) -> Cells:
    """Return parabolas in log T with best teachers at ``ratio`` S^``exponent``, sizes in millions of parameters.

    Parameters
    ----------
    between
        Standard deviation of a student's own log T* around that.
    """
    teachers, students = np.geomspace(0.1, 30.0, shape.teachers), np.geomspace(0.1, 3.0, shape.students)
    best = np.log(ratio * students**exponent) + between * draw.standard_normal(shape.students)
    i, t, r = _crossed(np.arange(float(shape.students)), teachers, np.arange(float(shape.seeds)))
    place, seed = i.astype(np.int64), r.astype(np.int64)
    moved = 2 * shape.noise * draw.standard_normal((shape.students, shape.seeds))
    loss = 2.5 - 0.1 * i + 0.02 * (np.log(t) - best[place]) ** 2
    return Cells(
        student=students[place], tokens=100.0 * students[place], teacher=t, teacher_loss=np.ones(len(t)),
        loss=_noisy(loss * np.exp(moved[place, seed]), shape, draw), seed=seed,
    )  # fmt: skip


def of_apple(
    grid: int, *, shape: Shape = SMALL, source: Source = "apple", bootstraps: int = 200, delta: float = DELTA
) -> Iterator[Held]:
    """Yield the loss of a new student and its best teacher; coefficients a grid of this size does not tell apart."""
    draw = np.random.default_rng([grid, 0])
    cells, alone = apple_grid(shape, draw)
    found = fit_apple(cells, alone, teacher_tokens=M, delta=delta, bootstraps=bootstraps, seed=grid)
    if isinstance(found, NotEstimable):
        raise ValueError(found.why)
    student, tokens, theirs = 400e6, 512e9, 2.2
    exact = PUBLISHED_DISTILLED.loss(student, tokens, theirs, PUBLISHED_SUPERVISED)
    measured = float(_noisy(exact, shape, draw)[0])
    sizes = np.geomspace(198e6, 7.75e9, 4000)
    curve = PUBLISHED_DISTILLED.loss(student, tokens, PUBLISHED_SUPERVISED.loss(sizes, M * sizes), PUBLISHED_SUPERVISED)
    name = f"{len(cells)} cells: "
    yield _held(source, name + "loss", grid, measured, found.loss(student, tokens, theirs, LEVEL))
    yield _held(source, name + "T*", grid, float(sizes[curve.argmin()]), found.teacher(student, tokens, LEVEL))


def large_grid(draw: np.random.Generator, *, noise: float = SMALL.noise) -> tuple[Cells, Alone]:
    """Return about as many runs as the published law was fitted to: 700 distilled and 73 alone, of one seed each.

    10 teachers of 198M to 7.75B, 7 students of 143M to 2.72B and 10 token budgets of 4B to 512B; alone the teachers,
    and 9 sizes of 143M to 12.6B on 7 of such budgets. Which sizes met which budgets there was not published.
    """
    shape = Shape(teachers=10, students=7, budgets=10, seeds=1, noise=noise)
    teachers, tokens = np.geomspace(198e6, 7.75e9, shape.teachers), (4e9, 512e9)
    theirs = _noisy(PUBLISHED_SUPERVISED.loss(teachers, M * teachers), shape, draw)
    student, given, which = _crossed(
        np.geomspace(143e6, 2.72e9, shape.students), np.geomspace(*tokens, shape.budgets),
        np.arange(float(shape.teachers)),
    )  # fmt: skip
    place = which.astype(np.int64)
    exact = PUBLISHED_DISTILLED.loss(student, given, theirs[place], PUBLISHED_SUPERVISED)
    cells = Cells(
        student=student, tokens=given, teacher=teachers[place], teacher_loss=theirs[place],
        loss=_noisy(exact, shape, draw), seed=np.zeros(len(student), dtype=np.int64),
    )  # fmt: skip
    size, own = _crossed(np.geomspace(143e6, 12.6e9, 9), np.geomspace(*tokens, 7))
    controls = _noisy(PUBLISHED_SUPERVISED.loss(size, own), shape, draw)
    alone = Alone(
        parameters=np.append(size, teachers), tokens=np.append(own, M * teachers), loss=np.append(controls, theirs),
        teaches=np.arange(len(size) + len(teachers)) >= len(size),
    )  # fmt: skip
    return cells, alone


def of_coefficients(grid: int) -> Iterator[Held]:
    """Yield every coefficient of Apple's law, of a grid about as large as theirs."""
    cells, alone = large_grid(np.random.default_rng([grid, 3]))
    supervised = fit_supervised(alone)
    found = of_both(cells, alone, supervised, fit_distilled(cells, supervised), LEVEL)
    for law in (PUBLISHED_SUPERVISED, PUBLISHED_DISTILLED):
        for symbol, truth in zip(SYMBOLS[type(law)], astuple(law), strict=True):
            yield _held("apple, coefficients", f"{len(cells)} cells: {symbol}", grid, truth, found[symbol])


def of_power(grid: int, *, shape: Shape = CURVES) -> Iterator[Held]:
    """Yield the exponent, the ratio, and the best teacher of a new student by the power and by the ratio."""
    draw = np.random.default_rng([grid, 1])
    between = 0.05
    found = fit_power(optima(power_grid(shape, draw, between=between)))
    new = 2.5 * 0.7 * float(np.exp(between * draw.standard_normal()))
    if not isinstance(found, NotEstimable):
        yield _held("power", "exponent", grid, 1.0, found.exponent(LEVEL))
        yield _held("power", "ratio", grid, 2.5, found.constant_ratio(LEVEL))
        yield _held("power", "T* by the power", grid, new, found.teacher(0.7, LEVEL))
        yield _held("power", "T* by the ratio", grid, new, found.teacher_by_ratio(0.7, LEVEL))


def of_straight(grid: int, *, students: int = 8, noise: float = 0.02) -> Iterator[Held]:
    """Yield the slope of points made from the published line."""
    sizes = np.geomspace(50e6, 1e9, students)
    exact = PUBLISHED_SLOPE * sizes + PUBLISHED_INTERCEPT
    found = straight(sizes, exact * np.exp(noise * np.random.default_rng([grid, 2]).standard_normal(students)))
    yield _held("straight", "slope", grid, PUBLISHED_SLOPE, found.coefficient(1, LEVEL))


SOURCES: dict[Source, Callable[[int], Iterator[Held]]] = {
    "straight": of_straight, "power": of_power, "apple": of_apple,
    "apple, δ = 1e-4": partial(of_apple, source="apple, δ = 1e-4", delta=PUBLISHED_DELTA),
    "apple, coefficients": of_coefficients,
}  # fmt: skip


def _held(source: Source, quantity: str, grid: int, truth: float, found: Interval) -> Held:
    return Held(
        source=source, quantity=quantity, grid=grid, truth=truth, value=found.value, low=found.low, high=found.high
    )


def _noisy(exact: Floats, shape: Shape, draw: np.random.Generator) -> Floats:
    return exact * np.exp(shape.noise * draw.standard_normal(len(exact)))


def _crossed(*axes: Floats) -> tuple[Floats, ...]:
    return tuple(axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
