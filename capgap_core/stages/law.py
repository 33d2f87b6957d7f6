"""Fit every law to the losses of a grid, hold them against each other, and say which teacher a student wants."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from capgap_core import hmm, report_law, tables
from capgap_core.ladder import MOST_EPOCHS, Begin, data_limited
from capgap_core.law_findings import grid_of, interval_of, null, optimum_row, summary_of
from capgap_core.laws.coefficients import irreducible
from capgap_core.laws.fits import Fits, fits_of
from capgap_core.laws.grid import NotEstimable
from capgap_core.laws.rivals import left_out
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Made, Reference

PART = "test"
"""The part whose losses are fitted: nothing was chosen on it."""


class Teacher(BaseModel):
    """One teacher of the grid."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: int
    tokens: int | None
    """Null for one that is given: nobody here knows."""


class Cell(BaseModel):
    """One student of the grid."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    student: int
    tokens: int
    teacher: int | None
    seed: int
    begin: Begin = "scratch"


class Control(BaseModel):
    """How models were measured on the control, whose own loss is known: the input ``text`` is its stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    length: int
    """Tokens of a row."""
    rows: int | None
    """That were measured on, evenly spread; null: all."""


class Said(BaseModel):
    """What only the report says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    command: str
    measured: int
    """Tokens on which every model was measured."""


class Recipe(BaseModel):
    """What the inputs ``teacher_<i>`` and ``cell_<i>`` are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teachers: tuple[Teacher, ...]
    cells: tuple[Cell, ...]
    teacher_tokens: float | None
    """For each parameter of a teacher; null where those of some are not known."""
    control: Control | None = None
    """Null where the text's own loss is not known."""
    said: Said


def run(
    recipe: Recipe, inputs: Mapping[str, Input], out_dir: Path, *, execution: Execution, progress: Progress
) -> Made:
    """Write ``cells``, ``optima``, ``rivals``, the figures and ``report.md``."""
    rows = _rows(recipe, inputs)
    tables.write(out_dir / "cells.parquet", "cells", rows)
    cells, alone = grid_of(rows)
    progress.message(f"{len(cells)} cells in the fits, {sum(row['data_limited'] for row in rows)} limited by data")
    fits = fits_of(cells, alone, teacher_tokens=recipe.teacher_tokens)
    best = [optimum_row(one) for one in fits.optima]
    judged = [null(vars(one)) for one in left_out(cells, alone, teacher_tokens=recipe.teacher_tokens)]
    tables.write(out_dir / "optima.parquet", "optima", best)
    tables.write(out_dir / "rivals.parquet", "rivals", judged)
    summary = {**summary_of(fits, rows), **_known(recipe.control, inputs, fits)}
    figures = _figures(fits)
    for name, png in figures.items():
        (out_dir / f"{name}.png").write_bytes(png)
    facts = report_law.Facts(
        dataset=recipe.said.dataset, command=recipe.said.command, n=recipe.said.measured, rows=rows,
        optima=best, rivals=judged, summary=summary,
    )  # fmt: skip
    (out_dir / "report.md").write_text(report_law.compose(facts, figures), encoding="utf8")
    return Made(summary=summary)


def _figures(fits: Fits) -> dict[str, bytes]:
    """Return name → PNG; none where matplotlib is not installed, or no cell is in a fit."""
    if find_spec("matplotlib") is None or not len(fits.cells):
        return {}
    from capgap_core import plots_law  # noqa: PLC0415 - needs matplotlib

    drawn = {
        "losses": plots_law.losses(fits), "teachers": plots_law.teachers(fits),
        "residuals": plots_law.residuals(fits), "surface": plots_law.surface(fits),
    }  # fmt: skip
    return {name: png for name, png in drawn.items() if png is not None}


def _rows(recipe: Recipe, inputs: Mapping[str, Input]) -> list[dict[str, Any]]:
    """Return a row for each teacher and each student."""
    theirs = {t.parameters: _taught_on(t, _facts(inputs[f"teacher_{i}"])) for i, t in enumerate(recipe.teachers)}
    rows: list[dict[str, Any]] = [
        {"role": "teacher", "teacher": None, "teacher_nats": None, "seed": None,
         "begin": "given" if facts["tokens"] is None else "scratch", **facts}
        for facts in theirs.values()
    ]  # fmt: skip
    for i, cell in enumerate(recipe.cells):
        own = _facts(inputs[f"cell_{i}"])
        whose = theirs.get(cell.teacher or 0)
        limited = own["epochs"] > MOST_EPOCHS or bool(whose and whose["data_limited"])
        rows.append(
            {
                **own, "role": "student", "parameters": cell.student, "tokens": cell.tokens, "teacher": cell.teacher,
                "seed": cell.seed, "begin": cell.begin, "teacher_nats": whose and whose["nats"],
                "data_limited": limited,
            }
        )  # fmt: skip
    order = ("teacher", "student")
    return sorted(
        rows, key=lambda r: (order.index(r["role"]), r["parameters"], r["tokens"], r["teacher"] or 0, r["seed"] or 0)
    )


def _taught_on(teacher: Teacher, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of a teacher by the tokens that it was given, where they are known.

    By these it is limited or not: steps are whole and the first token of a document is no target, so that of short
    documents it has learned from fewer.
    """
    tokens, size = teacher.tokens, teacher.parameters
    limited = tokens is not None and data_limited(tokens / size, facts["epochs"])
    return {**facts, "parameters": size, "tokens": tokens, "data_limited": limited}


def _facts(item: Input) -> dict[str, Any]:
    assert isinstance(item, Reference)
    held = item.summary
    (lost,) = [r for r in tables.read(item.table("held_out")) if r["part"] == PART and r["source"] is None]
    return {
        "achieved_parameters": held["non_embedding"], "unique_tokens": held["unique_tokens"], "epochs": held["epochs"],
        "tokens_per_parameter": held["tokens_per_parameter"], "nats": lost["nats"], "stderr": lost["stderr"],
        "bits_per_byte": lost["bits_per_byte"], "identity": item.identity,
    }  # fmt: skip


def _known(control: Control | None, inputs: Mapping[str, Input], fits: Fits) -> dict[str, Any]:
    """Return what the control's source loses on the same rows, and what the law takes that for; else nothing."""
    if control is None:
        return {}
    text = inputs["text"]
    assert isinstance(text, Reference)
    known = hmm.on_part(text.table(PART), control.length, most=control.rows)
    said: dict[str, Any] = {"source_nats": known.nats, "source_stderr": known.stderr, "irreducible": None}
    if isinstance(fits.apple, NotEstimable):
        return said
    found = irreducible(fits.alone, fits.apple.supervised)
    if isinstance(found, NotEstimable):
        return {**said, "irreducible_why": found.why}
    return {**said, "irreducible": interval_of(found)}
