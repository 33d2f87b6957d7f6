"""The published grid: what it is made of, its rows, and the test of its laws on students that they have not seen."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from capgap_core import law, law_findings, published_grid, tables
from capgap_core.ladder import sizes_for
from capgap_core.laws.fits import Fits, fits_of
from capgap_core.laws.rivals import Named, came_of, left_out, named
from capgap_core.method import Caller
from capgap_core.preflight import CheckedLaw
from capgap_core.records import Reference
from capgap_core.store import read_record

GRID, TEST = "grid", "held out"
"""Students that laws are fitted to, and those that they are tested on."""
TEACHERS = (1.26e4, 2.8e4, 5.6e4, 1.46e5, 3.3e5)
STUDENTS = (3e3, 6e3, 1.26e4, 2.5e4, 5.6e4)
HELD_OUT = (2.8e4, 4.9e4)
"""Sizes of students that are trained after the laws have named their teachers."""
BUDGETS, TEACHER_TOKENS, SEEDS = (100.0, 200.0), 20.0, (1, 2)
MEASURED = 4000
BOOKS = ("classic-books", "ELTeC")
"""In the names of sources that are books; the others are documentation and speeches."""


def asked_for(dataset: str, root: str, *, students: Sequence[float], threads: int | None) -> dict[str, Any]:
    """Return the parameters of ``capgap/law`` that the study is made of."""
    return {
        "dataset": dataset,
        "ladder": {
            "teachers": list(TEACHERS), "students": list(students), "teacher_tokens": TEACHER_TOKENS,
            "budgets": list(BUDGETS), "seeds": list(SEEDS),
        },
        "training": {"held_out_rows": MEASURED},
        "run": {"root": root, "threads": threads, "verify": "sizes"},
    }  # fmt: skip


def made(checked: CheckedLaw, call: Caller, kind: str) -> list[dict[str, Any]]:
    """Train the grid of checked parameters, and return a published row for each of its models."""
    models: dict[str, Reference] = {}

    def noted(stage: str, recipe: Any, inputs: Any, *, role: str, execution: Any) -> Reference:
        reference = call(stage, recipe, inputs, role=role, execution=execution)
        models[reference.identity] = reference
        return reference

    whole = law.fill(law.grid_of(checked), noted)
    return [
        {"flow": "law", "dataset": checked.text.name, "kind": kind, **row, **_of(models[row["identity"]])}
        for row in tables.read(whole.table("cells"))
        if kind == GRID or row["role"] == "student"
    ]


def _of(model: Reference) -> dict[str, Any]:
    """Return what a row says beside its loss: by kind of source, how long it took, and by which code."""
    record = read_record(model.folder)
    rows = [row for row in tables.read(model.table("held_out")) if row["part"] == "test" and row["source"]]
    books = [any(name in row["source"] for name in BOOKS) for row in rows]
    return {
        "nats_books": _mean([row for row, book in zip(rows, books, strict=True) if book]),
        "nats_others": _mean([row for row, book in zip(rows, books, strict=True) if not book]),
        "n": sum(row["tokens"] for row in rows), "seconds": model.seconds, "code": model.code,
        "device": record.provenance["device"], "threads": record.provenance["threads"],
    }  # fmt: skip


def _mean(rows: Sequence[Mapping[str, Any]]) -> float | None:
    tokens = sum(row["tokens"] for row in rows)
    return sum(row["nats"] * row["tokens"] for row in rows) / tokens if tokens else None


def fits(frame: pd.DataFrame) -> Fits:
    """Return every law of the published grid."""
    cells, alone = law_findings.grid_of(rows_of(frame, GRID))
    return fits_of(cells, alone, teacher_tokens=TEACHER_TOKENS)


def rows_of(frame: pd.DataFrame, kind: str) -> list[dict[str, Any]]:
    """Return published rows of a kind."""
    return [row for row in published_grid.rows(frame) if row["kind"] == kind]


def predictions(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what every law of the published grid names and predicts for the students that are held out."""
    cells, alone = law_findings.grid_of(rows_of(frame, GRID))
    sizes = [sizes_for(size).parameters() for size in HELD_OUT]
    students = [(float(size), float(round(budget * size))) for size in sizes for budget in BUDGETS]
    return pd.DataFrame([vars(one) for one in named(cells, alone, students, teacher_tokens=TEACHER_TOKENS)])


def findings(frame: pd.DataFrame, told: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return what the published rows say: optima, laws, and each law on students it has not seen, a row each.

    Parameters
    ----------
    told
        What ``predictions`` gave before students were held out of the grid were trained; null: nothing was said.
    """
    held = fits(frame)
    rows = rows_of(frame, GRID)
    facts = law_findings.summary_of(held, rows)
    found = [{"what": "optimum", **law_findings.optimum_row(one)} for one in held.optima]
    for power in facts["powers"]:
        for what in ("exponent", "ratio"):
            value, low, high = power.get(what) or (None, None, None)
            says = {"tokens": power["budget"], "found": power["power"], "teacher": value, "low": low, "high": high}
            found.append({"what": what, **says})
    for one in facts.get("apple_teachers", []):
        value, low, high = one["teacher"]
        found.append({"what": "apple teacher", **one, "teacher": value, "low": low, "high": high, "found": "estimable"})
    found.append({"what": "apple ended", "found": ", ".join(facts.get("apple_ended", []))})
    if facts["apple"] != "estimable":
        found.append({"what": "apple teacher", "found": facts["apple"]})
    found.append({"what": "teachers", "found": "monotone" if facts["monotone"] else "not monotone"})
    cells, alone = held.cells, held.alone
    for one in left_out(cells, alone, teacher_tokens=TEACHER_TOKENS):
        found.append({"what": "left out", **vars(one)})
    unseen, _ = law_findings.grid_of([*rows, *rows_of(frame, TEST)])
    unseen = unseen.where(~np.isin(unseen.student, np.unique(cells.student)))
    for one in came_of(_as_named(told), unseen, held.noise) if told is not None else ():
        found.append({"what": TEST, **vars(one)})
    return pd.DataFrame(found)


def _as_named(told: pd.DataFrame) -> list[Named]:
    said = [{name: value for name, value in row.items() if value is not None} for row in published_grid.rows(told)]
    return [Named(**{"why_not": None, **row}) for row in said]
