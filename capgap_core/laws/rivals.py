"""Laws held against each other on students that they have not seen.

Each law is fitted without one size of student, names a teacher for it and says what its losses will be. A teacher that
is named is the measured one nearest in the logarithm of size. The regret is what the named teacher's student loses
beyond that of the best measured teacher, in nats; two teachers that noise cannot tell apart have a regret that it
explains, which is why its standard error stands beside it.

The power and the ratio are fitted to students with as many tokens for each parameter as the one that is left out. Laws
that only name a teacher say losses by a common shape, log L = c0 + c1 log S + c2 log D + c3 f, where f is
(log T - log T*)², or log T where the largest teacher is taken to be best, with coefficients by least squares.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from capgap_core.laws.apple_fit import AppleFit, fit_apple
from capgap_core.laws.grid import Alone, Cells, Floats, NotEstimable
from capgap_core.laws.line import PUBLISHED_RATIO, budget_of, by_budget, fit_power
from capgap_core.laws.optimum import Noise, noise_of, optima

Name = Literal["published ratio", "constant ratio", "power", "largest teacher", "apple"]
NAMES: tuple[Name, ...] = ("published ratio", "constant ratio", "power", "largest teacher", "apple")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What one law said of one student that it had not seen, and what was measured."""

    law: Name
    student: float
    tokens: float
    why_not: str | None
    """Why the law could not be fitted without this student; then the rest is NaN."""
    named: float = np.nan
    """The teacher's size by the law."""
    taken: float = np.nan
    """The measured teacher nearest to it."""
    regret: float = np.nan
    regret_error: float = np.nan
    loss_error: float = np.nan
    """Root mean square of predicted minus measured loss over this student's teachers, in nats."""


@dataclass(frozen=True, kw_only=True)
class Named:
    """What one law says, before it is trained, of a student with one teacher."""

    law: Name
    student: float
    tokens: float
    why_not: str | None
    """Why the law could not be fitted; then the rest is NaN."""
    named: float = np.nan
    """The best teacher's size by the law."""
    teacher: float = np.nan
    """One that was measured."""
    taken: bool = False
    """Whether it is the one nearest to what is named."""
    predicted: float = np.nan
    """The student's loss with it, in nats."""


@dataclass(frozen=True, kw_only=True)
class _Fitted:
    """A law that was fitted: the best teacher's size, and losses over sizes of teachers with their losses."""

    teacher: Callable[[float, float], float]
    losses: Callable[[Cells], Floats]


def left_out(cells: Cells, alone: Alone, *, teacher_tokens: float | None) -> Iterator[Judged]:
    """Yield what every law says of every student, each fitted without any cell of a student of that size.

    Parameters
    ----------
    alone
        Models without a teacher; those of a left-out student's size are left out, too, but for teachers, whose losses
        are known before any student is trained.
    teacher_tokens
        Tokens for each parameter of a teacher; null where those of some are not known.
    """
    for size in np.unique(cells.student):
        its_own = (alone.parameters == size) & ~alone.teaches
        seen = cells.where(cells.student != size)
        yield from _judged(
            seen, alone.where(~its_own), cells.where(cells.student == size), teacher_tokens=teacher_tokens
        )


def _judged(seen: Cells, alone: Alone, unseen: Cells, *, teacher_tokens: float | None) -> Iterator[Judged]:
    noise = noise_of(unseen if not len(seen) else seen)
    curves = {(student, tokens): curve for student, tokens, curve in unseen.curves()}
    for name, student, tokens, fitted in _each(seen, alone, list(curves), teacher_tokens):
        if isinstance(fitted, NotEstimable):
            yield Judged(law=name, student=student, tokens=tokens, why_not=fitted.why)
        else:
            curve = curves[student, tokens]
            yield _held(name, fitted.teacher(student, tokens), fitted.losses(curve), curve, noise)


def came_of(told: Sequence[Named], measured: Cells, noise: Noise) -> Iterator[Judged]:
    """Yield how what laws have named and predicted comes out on students that were trained since.

    Nothing is fitted again: what was said before stands as it was said.

    Parameters
    ----------
    told
        What ``named`` gave, of every law, student and teacher.
    measured
        Those students; one that is not among them, or lacks a teacher that was spoken of, is passed over.
    noise
        Of the grid that the laws were fitted to.
    """
    by_law: dict[tuple[Name, float, float], list[Named]] = {}
    for one in told:
        by_law.setdefault((one.law, one.student, one.tokens), []).append(one)
    curves = {(student, tokens): curve for student, tokens, curve in measured.curves()}
    for (law, student, tokens), own in by_law.items():
        curve = curves.get((student, tokens))
        if curve is None:
            continue
        if own[0].why_not is not None:
            yield Judged(law=law, student=student, tokens=tokens, why_not=own[0].why_not)
            continue
        predicted = {one.teacher: one.predicted for one in own}
        if set(predicted) == set(curve.teacher.tolist()):
            losses = np.array([predicted[teacher] for teacher in curve.teacher.tolist()])
            yield _held(law, own[0].named, losses, curve, noise)


def named(
    seen: Cells, alone: Alone, students: Sequence[tuple[float, float]], *, teacher_tokens: float
) -> Iterator[Named]:
    """Yield what each law, fitted to cells it has seen, names and predicts for students that nobody has trained.

    Parameters
    ----------
    students
        (parameters, tokens) of each.
    """
    sizes, first = np.unique(seen.teacher, return_index=True)
    for name, student, tokens, fitted in _each(seen, alone, students, teacher_tokens):
        if isinstance(fitted, NotEstimable):
            yield Named(law=name, student=student, tokens=tokens, why_not=fitted.why)
            continue
        best = fitted.teacher(student, tokens)
        every = np.ones(len(sizes))
        asked = Cells(
            student=student * every, tokens=tokens * every, teacher=sizes, teacher_loss=seen.teacher_loss[first],
            loss=np.nan * every, seed=np.zeros(len(sizes), dtype=np.int64),
        )  # fmt: skip
        said, taken = fitted.losses(asked), _nearest(sizes, best)
        for i, size in enumerate(sizes):
            yield Named(
                law=name, student=student, tokens=tokens, why_not=None, named=best, teacher=float(size),
                taken=i == taken, predicted=float(said[i]),
            )  # fmt: skip


def _each(
    seen: Cells, alone: Alone, students: Sequence[tuple[float, float]], teacher_tokens: float | None
) -> Iterator[tuple[Name, float, float, _Fitted | NotEstimable]]:
    """Yield every law for every student, each law fitted once."""
    held: dict[tuple[Name, float | None], _Fitted | NotEstimable] = {}
    for name in NAMES:
        for student, tokens in students:
            budget = budget_of(student, tokens)
            key = (name, budget if name in ("power", "constant ratio") else None)
            if key not in held:
                held[key] = _fitted(name, seen, alone, teacher_tokens, budget)
            yield name, student, tokens, held[key]


def _nearest(sizes: Floats, size: float) -> int:
    return int(np.abs(np.log(sizes / size)).argmin())


def _held(name: Name, said: float, losses: Floats, curve: Cells, noise: Noise) -> Judged:
    """Return how a teacher that is named, and losses that are predicted for each cell of a curve, come out there."""
    sizes, which = np.unique(curve.teacher, return_inverse=True)
    count = np.bincount(which)
    means = np.bincount(which, curve.loss) / count
    taken, best = _nearest(sizes, said), int(means.argmin())
    return Judged(
        law=name, student=float(curve.student[0]), tokens=float(curve.tokens[0]), why_not=None, named=said,
        taken=float(sizes[taken]), regret=float(means[taken] - means[best]),
        regret_error=_regret_error(noise, int(count[taken]), int(count[best]), same=taken == best),
        loss_error=float(np.sqrt(np.mean((losses - curve.loss) ** 2))),
    )  # fmt: skip


def _regret_error(noise: Noise, taken: int, best: int, *, same: bool) -> float:
    """Return the standard error of a regret, NaN where one seed says nothing of it."""
    if not noise.freedom:
        return np.nan
    return 0.0 if same else float(np.sqrt(noise.variance * (1 / taken + 1 / best)))


def _fitted(
    name: Name, seen: Cells, alone: Alone, teacher_tokens: float | None, budget: float
) -> _Fitted | NotEstimable:
    if not len(seen):
        return NotEstimable(why="there is no student of another size")
    if name == "apple":
        apple = fit_apple(seen, alone, teacher_tokens=teacher_tokens, bootstraps=1)
        return apple if isinstance(apple, NotEstimable) else _by_apple(apple)
    if name == "largest teacher":
        largest = float(seen.teacher.max())
        return _Fitted(teacher=lambda _s, _d: largest, losses=_shape(seen, lambda c: np.log(c.teacher)))
    if name == "published ratio":
        return _by_size(seen, lambda student: PUBLISHED_RATIO * student)
    power = fit_power(by_budget(optima(seen)).get(budget, []))
    if isinstance(power, NotEstimable):
        return power
    return _by_size(seen, lambda s: (power.teacher(s) if name == "power" else power.teacher_by_ratio(s)).value)


def _by_apple(apple: AppleFit) -> _Fitted:
    def losses(curve: Cells) -> Floats:
        return apple.distilled.loss(curve.student, curve.tokens, curve.teacher_loss, apple.supervised)

    return _Fitted(teacher=apple.best, losses=losses)


def _by_size(seen: Cells, best: Callable[[float], float]) -> _Fitted:
    def apart(cells: Cells) -> Floats:
        return np.log(cells.teacher / np.array([best(float(student)) for student in cells.student])) ** 2

    return _Fitted(teacher=lambda student, _tokens: best(student), losses=_shape(seen, apart))


def _shape(seen: Cells, feature: Callable[[Cells], Floats]) -> Callable[[Cells], Floats]:
    """Return the common shape with a feature, its coefficients fitted to cells."""

    def design(cells: Cells) -> Floats:
        return np.stack([np.ones(len(cells)), np.log(cells.student), np.log(cells.tokens), feature(cells)], axis=1)

    found = np.linalg.lstsq(design(seen), np.log(seen.loss), rcond=None)[0]
    return lambda cells: np.exp(design(cells) @ found)
