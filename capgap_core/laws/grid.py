"""The cells of a law grid: students of some sizes, distilled on some tokens from teachers of some sizes, over seeds."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]
C = TypeVar("C", bound="_Columns")


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """Columns of equal length."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def where(self: C, mask: Mask) -> C:
        """Return the rows of a mask ``(k,)``."""
        return type(self)(**{field.name: getattr(self, field.name)[mask] for field in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Cells(_Columns):
    """Distilled students; each column ``(k,)``, a row for each seed. Sizes are parameters, losses nats for a token."""

    student: Floats
    tokens: Floats
    """On which the student was distilled."""
    teacher: Floats
    teacher_loss: Floats
    """On the held-out text that students are measured on."""
    loss: Floats
    seed: NDArray[np.int64]

    def curves(self) -> Iterator[tuple[float, float, "Cells"]]:
        """Yield (student, tokens, its cells) for each pair, from small to large."""
        for student, tokens in sorted(set(zip(self.student.tolist(), self.tokens.tolist(), strict=True))):
            yield student, tokens, self.where((self.student == student) & (self.tokens == tokens))


@dataclass(frozen=True, kw_only=True)
class Alone(_Columns):
    """Models that learned from text alone; columns as those of ``Cells``."""

    parameters: Floats
    tokens: Floats
    loss: Floats
    teaches: Mask
    """Whether it is a teacher of the grid, and not a student for comparison."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate between two ends, which are infinite where nothing bounds it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class NotEstimable:
    """What is said in place of a law where the data do not hold one."""

    why: str
