"""From the students of runs to the grid that laws are fitted to: the teacher of a cell is the assistant of its run.

Laws are fitted to sizes and losses. A size is the mean over seeds of the parameters outside the embeddings at a scale,
a loss is 1 minus the metric. All students of a grid take the same steps on the same text, so that they have one budget
and no law of tokens: each stands there with as many tokens as it has parameters, which makes the budget one for all.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from capgap_core.law_findings import optimum_row, summary_of
from capgap_core.laws.fits import Fits, fits_of as every_law_of
from capgap_core.laws.grid import Alone, Cells, Floats
from capgap_core.laws.optimum import Optimum
from capgap_core.laws.rivals import Judged, left_out
from capgap_core.runs_alike import mean_sizes

Row = Mapping[str, Any]
BUDGET = 1.0
"""Tokens for each parameter of a student, by what has been said above."""
NOTHING = np.zeros(0)
ALONE = Alone(parameters=NOTHING, tokens=NOTHING, loss=NOTHING, teaches=np.zeros(0, dtype=bool))
"""No model of a grid learned without a teacher."""


def sizes_of(rows: Sequence[Row]) -> dict[float, float]:
    """Return scale → parameters, of students and assistants, from rows of the table ``cells``."""
    taught = students(rows)
    return mean_sizes(
        [(row["scale"], row["seed"], row["parameters"]) for row in taught]
        + [(row["teacher_scale"], row["seed"], row["teacher"]) for row in taught]
    )


def students(rows: Sequence[Row]) -> list[Row]:
    """Return the students of assistants: those that learned from the teacher itself began elsewhere, and are shown."""
    return [row for row in rows if row["role"] == "student"]


def cells_of(rows: Sequence[Row]) -> Cells:
    """Return the grid of the students of assistants."""
    taught, sizes = students(rows), sizes_of(rows)

    def column(values: Sequence[float]) -> Floats:
        return np.array(values, dtype=np.float64)

    own = column([sizes[row["scale"]] for row in taught])
    return Cells(
        student=own, tokens=BUDGET * own, teacher=column([sizes[row["teacher_scale"]] for row in taught]),
        teacher_loss=1.0 - column([row["teacher_value"] for row in taught]),
        loss=1.0 - column([row["value"] for row in taught]),
        seed=np.array([row["seed"] for row in taught], dtype=np.int64),
    )  # fmt: skip


def fits_of(rows: Sequence[Row]) -> Fits:
    """Return what the grid says: best assistants, the power and the constant ratio; Apple's law has too few budgets."""
    return every_law_of(cells_of(rows), ALONE, teacher_tokens=BUDGET)


def judged(cells: Cells) -> tuple[list[Judged], str | None]:
    """Return each law on students left out, or why none is asked: their losses are predicted in the logarithm."""
    if not (cells.loss > 0.0).all():
        return [], "a student without any error has no loss whose logarithm could be predicted"
    return list(left_out(cells, ALONE, teacher_tokens=BUDGET)), None


def summary(fits: Fits, rows: Sequence[Row], why_not: str | None) -> dict[str, Any]:
    """Return what the fits say, as JSON holds it; ``why_not`` no law is held against students left out."""
    held = summary_of(fits, rows)
    return {**held, "monotone": not unlike_their_size(rows), "left_out": why_not or "asked"}


def optimum(one: Optimum, rows: Sequence[Row]) -> dict[str, Any]:
    """Return a row of the table ``optima``: with the student's scale, and the scale of an assistant of T*."""
    row, sizes = optimum_row(one), sizes_of(rows)
    del row["tokens"]
    scale = next(r["scale"] for r in students(rows) if sizes[r["scale"]] == one.student)
    known = {sizes[r["teacher_scale"]]: r["teacher_scale"] for r in students(rows) if r["scale"] == scale}
    best = None if row["teacher"] is None else scale_at(row["teacher"], known)
    return {**row, "scale": scale, "teacher_scale": best}


def scale_at(size: float, known: Mapping[float, float]) -> float:
    """Return the scale at a size between two of size → scale, straight in the logarithms of both."""
    sizes, scales = np.log(np.array(sorted(known.items()))).T
    return float(np.exp(np.interp(np.log(size), sizes, scales)))


def unlike_their_size(rows: Sequence[Row]) -> list[float]:
    """Return the scales of students of whose assistants a larger one does not always score better, means over seeds."""
    taught, found = students(rows), []
    for scale in sorted({row["scale"] for row in taught}):
        own = [row for row in taught if row["scale"] == scale]
        means = [
            float(np.mean([row["teacher_value"] for row in own if row["teacher_scale"] == whose]))
            for whose in sorted({row["teacher_scale"] for row in own})
        ]
        if not all(larger > smaller for smaller, larger in pairwise(means)):
            found.append(scale)
    return found
