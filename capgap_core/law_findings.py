"""From rows of models to the grid that laws are fitted to, and from fitted laws to plain facts."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from capgap_core.laws.apple_fit import AppleFit
from capgap_core.laws.fits import Fits
from capgap_core.laws.grid import Alone, Cells, Interval, NotEstimable
from capgap_core.laws.line import Power
from capgap_core.laws.optimum import Optimum


def grid_of(rows: Sequence[Mapping[str, Any]]) -> tuple[Cells, Alone]:
    """Return the students of teachers, and every model without a teacher, that are not limited by their data.

    A teacher that is given, whose tokens nobody knows, is none of the second: its students know its loss.
    """
    taught = [row for row in rows if row["role"] == "student" and row["teacher"] and not row["data_limited"]]
    free = [row for row in rows if not row["teacher"] and not row["data_limited"] and row["tokens"] is not None]

    def column(name: str, of: Sequence[Mapping[str, Any]]) -> Any:
        return np.array([row[name] for row in of], dtype=np.float64)

    cells = Cells(
        student=column("parameters", taught), tokens=column("tokens", taught), teacher=column("teacher", taught),
        teacher_loss=column("teacher_nats", taught), loss=column("nats", taught),
        seed=column("seed", taught).astype(np.int64),
    )  # fmt: skip
    teaches = np.array([row["role"] == "teacher" for row in free], dtype=bool)
    alone = {"parameters": column("parameters", free), "tokens": column("tokens", free), "loss": column("nats", free)}
    return cells, Alone(**alone, teaches=teaches)


def monotone(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a larger teacher always loses less: where not, size and quality of teachers are confounded."""
    losses = [row["nats"] for row in sorted(rows, key=lambda row: row["parameters"]) if row["role"] == "teacher"]
    return all(later < before for before, later in pairwise(losses))


def summary_of(fits: Fits, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the fits say, as JSON holds it.

    Parameters
    ----------
    rows
        Of the table ``cells``.
    """
    return {
        "cells": len(rows), "bracketed": sum(one.found == "bracketed" for one in fits.optima),
        "monotone": monotone(rows), "powers": [{"budget": b, **_power(power)} for b, power in fits.powers.items()],
        **_apple(fits.apple, fits.cells),
    }  # fmt: skip


def optimum_row(one: Optimum) -> dict[str, Any]:
    """Return a row of the table ``optima``."""
    held = one.interval()
    bounded = one.found == "bracketed"
    return null(
        {
            "student": one.student, "tokens": one.tokens, "found": one.found, "teacher": one.teacher,
            "low": held.low if bounded else None, "high": held.high if bounded else None, "loss": one.loss,
        }
    )  # fmt: skip


def _power(power: Power | NotEstimable) -> dict[str, Any]:
    if isinstance(power, NotEstimable):
        return {"power": power.why}
    return {
        "power": "estimable", "exponent": interval_of(power.exponent()), "ratio": interval_of(power.constant_ratio()),
        "students": power.optima,
    }  # fmt: skip


def _apple(apple: AppleFit | NotEstimable, cells: Cells) -> dict[str, Any]:
    if isinstance(apple, NotEstimable):
        return {"apple": apple.why}
    named = [
        {"student": student, "tokens": tokens, "teacher": interval_of(told(apple, student, tokens))}
        for student, tokens, _ in cells.curves()
    ]
    return {
        "apple": "estimable", "apple_error": apple.error, "apple_teachers": named, "apple_ended": apple.ended,
    }  # fmt: skip


def told(apple: AppleFit, student: float, tokens: float) -> Interval:
    """Return the best teacher, without its value where it is not measured and rests on coefficients that are none."""
    best = apple.teacher(student, tokens)
    if apple.ended and not apple.teachers[0] <= best.value <= apple.teachers[1]:
        return Interval(value=np.nan, low=best.low, high=best.high)
    return best


def interval_of(interval: Interval) -> list[float | None]:
    """Return value, low and high, null where there is none."""
    return [float(x) if np.isfinite(x) else None for x in (interval.value, interval.low, interval.high)]


def null(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with null for what is no number."""
    return {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in row.items()}
