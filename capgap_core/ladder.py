"""The ladder of a law: which sizes of teacher and student, on how many tokens, and the cells that they make.

Sizes are parameters outside the embeddings, as scaling laws count them. A model of a size has the shape that comes
nearest to it among those with heads of 16, a feed-forward width of 8/3 of the hidden one, and about one layer for each
32 of the hidden width, so that no size is much flatter or deeper than its neighbours.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from capgap_core.lm_recipes import Sizes
from capgap_core.markdown import short
from capgap_core.recipes import Recipe

HEAD = 16
"""Width of an attention head."""
ASPECT = 32
"""Hidden width for each layer."""
WIDEST = 4096
BASE = 64
"""The width at which a model learns at the rate that is asked for."""
FURTHEST = 1.5
"""Most that a shape may be larger or smaller than the size that is asked for."""
FEWEST_TOKENS, MOST_EPOCHS = 10.0, 4.0
"""A teacher with fewer tokens for each parameter, or that has seen its text more often, is limited by its data."""


Size = Annotated[float, Field(gt=0, le=1e12)]
MOST = 64
Amounts = Annotated[tuple[Size, ...], Field(min_length=1, max_length=MOST)]
Begin = Literal["scratch", "slimmed"]
Name = Annotated[str, Field(min_length=1, max_length=1000)]


class Ladder(Recipe):
    """Sizes, tokens and seeds of a grid; sizes are parameters outside the embeddings."""

    teachers: tuple[Size, ...] = Field(
        default=(5.6e4, 9.8e4, 2e5, 3.3e5), max_length=MOST, description="Sizes of the teachers that are trained here."
    )
    given: tuple[Name, ...] = Field(
        default=(), max_length=MOST,
        description="Teachers that are there: folders of causal language models, or hub names; beside the others.",
    )  # fmt: skip
    students: Amounts = Field(default=(2.5e4, 5.6e4, 9.8e4), description="Sizes of the students.")
    teacher_tokens: float = Field(
        default=10.0, gt=0, le=1e6, description="Tokens that a teacher sees for each of its parameters."
    )
    budgets: Amounts = Field(default=(10.0,), description="Tokens that a student sees for each of its parameters.")
    begin: Begin = Field(
        default="scratch",
        description="How students of a teacher begin: from scratch, or slimmed from it to about their size.",
    )
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(
        default=(1, 2), min_length=1, max_length=64,
        description="Draw first weights and the order of the text; teachers have the first.",
    )  # fmt: skip

    @field_validator("teachers", "students", "budgets", "seeds", mode="before")
    @classmethod
    def _one(cls, given: object) -> object:
        return (given,) if isinstance(given, int | float) else given

    @field_validator("given", mode="before")
    @classmethod
    def _one_name(cls, given: object) -> object:
        return (given,) if isinstance(given, str) else given

    @field_validator("teachers", "given", "students", "budgets", "seeds")
    @classmethod
    def _distinct(cls, given: tuple[float | str, ...]) -> tuple[float | str, ...]:
        if twice := [value for value, count in Counter(given).items() if count > 1]:
            raise ValueError(f"{twice[0]} stands there more than once")
        return given

    @field_validator("teachers", "students")
    @classmethod
    def _shaped(cls, given: tuple[float, ...]) -> tuple[float, ...]:
        """Refuse sizes that no shape has, and two that come to the same one."""
        found: dict[Sizes, float] = {}
        for size in given:
            shape = sizes_for(size)
            if shape in found:
                same = f"{found[shape]:g} and {size:g} come to the same shape, of {shape.parameters():,} parameters"
                raise ValueError(f"{same}: give sizes further apart")
            found[shape] = size
        return given

    @model_validator(mode="after")
    def _someone_teaches(self) -> "Ladder":
        if not self.teachers and not self.given:
            raise ValueError("there is no teacher: give sizes of teachers, or some that are there (given)")
        return self


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One student: on how many tokens, from which teacher, with which seed."""

    student: Sizes
    tokens: int
    teacher: int | None
    """Its parameters outside the embeddings; null for a student that learns from the text alone."""
    seed: int
    begin: Begin = "scratch"
    """``slimmed``: as the slice of its teacher that comes nearest to the student's size."""

    @property
    def role(self) -> str:
        """Return the name of the cell."""
        whose = "alone" if self.teacher is None else f"of {short(self.teacher)}"
        return f"{short(self.student.parameters())} {whose} on {short(self.tokens)} seed {self.seed}"


@cache
def sizes_for(parameters: float) -> Sizes:
    """Return the shape of about so many parameters outside the embeddings."""
    near = [shape for shape in _shapes() if abs(math.log(shape.parameters() / parameters)) < math.log(FURTHEST)]
    if not near:
        raise ValueError(f"no shape has about {parameters:,.0f} parameters")
    return min(near, key=lambda shape: _distance(shape, parameters))


@cache
def _shapes() -> tuple[Sizes, ...]:
    return tuple(_every_shape())


def _every_shape() -> Iterator[Sizes]:
    for hidden in [*range(HEAD, 512, HEAD), *range(512, WIDEST + 1, 128)]:
        middle = max(1, round(hidden / ASPECT))
        for layers in range(math.ceil(hidden / (2 * ASPECT)), 2 * middle + 1):
            heads = hidden // HEAD
            yield Sizes(layers=layers, hidden=hidden, heads=heads, kv_heads=heads, neurons=8 * round(hidden / 3))


def _distance(sizes: Sizes, parameters: float) -> float:
    """Return how far a shape is from a size, and a little of how far it is from the usual aspect."""
    aspect = math.log(sizes.hidden / (ASPECT * sizes.layers))
    return abs(math.log(sizes.parameters() / parameters)) + 0.15 * abs(aspect)


def rate(peak: float, width: int) -> float:
    """Return the learning rate of a model of this width, where one of width ``BASE`` learns at ``peak``."""
    return peak * BASE / width


def teachers(ladder: Ladder) -> list[tuple[Sizes, int]]:
    """Return each teacher that is trained here with its tokens, from small to large."""
    shapes = sorted((sizes_for(size) for size in ladder.teachers), key=Sizes.parameters)
    return [(shape, round(ladder.teacher_tokens * shape.parameters())) for shape in shapes]


def cells(ladder: Ladder, given: Sequence[int] = ()) -> list[Cell]:
    """Return every student of the grid: each alone, then of each teacher; seed by seed, so that a part is a grid.

    A student that begins slimmed is smaller than its teacher: there is no cell of any other.

    Parameters
    ----------
    given
        Parameters outside the embeddings of the teachers that are given.
    """
    students = sorted((sizes_for(size) for size in ladder.students), key=Sizes.parameters)
    theirs = sorted([*given, *(shape.parameters() for shape, _ in teachers(ladder))])
    return [
        Cell(
            student=student, tokens=round(budget * student.parameters()), teacher=teacher, seed=seed,
            begin="scratch" if teacher is None else ladder.begin,
        )
        for seed in ladder.seeds
        for student in students
        for budget in sorted(ladder.budgets)
        for teacher in (None, *theirs)
        if teacher is None or ladder.begin == "scratch" or teacher > student.parameters()
    ]  # fmt: skip


def data_limited(tokens_per_parameter: float, epochs: float) -> bool:
    """Return whether a teacher that was given so many tokens is limited by them: it stands in plots, and in no fit."""
    # Those who ask for just enough may mean a round number, or steps of their own.
    return tokens_per_parameter < 0.99 * FEWEST_TOKENS or epochs > MOST_EPOCHS
