"""Fit laws to the students of finished runs of minidisc, and say which assistant a student wants."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from capgap_core import assistant_findings as findings, report_assistants, tables
from capgap_core.law_findings import null
from capgap_core.laws.fits import Fits
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Made, Reference


class Cell(BaseModel):
    """One student of the grid; the input ``run_<i>`` is the report of its run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    identity: str
    """Of the student."""
    direct: str | None
    """Of the student that learned from the teacher itself; null where it is not there, or stands with another cell."""


class Said(BaseModel):
    """What only the report says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    split: str
    runs: int
    """That were given; several may be one cell."""
    other_code: bool
    """Whether models were made by different code."""
    command: str


class Recipe(BaseModel):
    """What the inputs are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    cells: tuple[Cell, ...]
    said: Said


def run(
    recipe: Recipe, inputs: Mapping[str, Input], out_dir: Path, *, execution: Execution, progress: Progress
) -> Made:
    """Write ``cells``, ``optima``, ``rivals``, the figures and ``report.md``."""
    rows = _rows(recipe, inputs)
    tables.write(out_dir / "cells.parquet", "assistant_cells", rows)
    fits, sizes = findings.fits_of(rows), findings.sizes_of(rows)
    progress.message(f"{len(fits.cells)} students of {len(set(fits.cells.teacher))} sizes of assistants")
    best = [findings.optimum(one, rows) for one in fits.optima]
    held, why_not = findings.judged(fits.cells)
    judged = [{**null(vars(one)), "tokens": None} for one in held]
    tables.write(out_dir / "optima.parquet", "assistant_optima", best)
    tables.write(out_dir / "rivals.parquet", "rivals", judged)
    summary = findings.summary(fits, rows, why_not)
    figures = _figures(fits, recipe.metric, sizes)
    for name, png in figures.items():
        (out_dir / f"{name}.png").write_bytes(png)
    facts = report_assistants.Facts(
        **recipe.said.model_dump(), metric=recipe.metric, rows=rows, sizes=sizes, optima=best, rivals=judged,
        unlike=findings.unlike_their_size(rows), summary=summary,
    )  # fmt: skip
    (out_dir / "report.md").write_text(report_assistants.compose(facts, figures), encoding="utf8")
    return Made(summary={**summary, "says": report_assistants.verdicts(facts)})


def _rows(recipe: Recipe, inputs: Mapping[str, Input]) -> list[dict[str, Any]]:
    """Return a row for each student of an assistant, and for each of the teacher itself."""
    found = []
    for i, cell in enumerate(recipe.cells):
        report = inputs[f"run_{i}"]
        assert isinstance(report, Reference)
        held = {r["role"]: r for r in tables.read(report.table("results")) if r["metric"] == recipe.metric}
        found.append(_row("student", held["student"], held["assistant"], cell.seed, cell.identity))
        if cell.direct is not None:
            found.append(_row("direct", held["direct"], held["teacher"], cell.seed, cell.direct))
    return sorted(found, key=lambda r: (r["role"] == "direct", r["scale"], r["teacher_scale"], r["seed"]))


def _row(role: str, own: Mapping[str, Any], whose: Mapping[str, Any], seed: int, identity: str) -> dict[str, Any]:
    return {
        "role": role, "scale": own["scale"], "teacher_scale": whose["scale"], "parameters": own["non_embedding"],
        "teacher": whose["non_embedding"], "seed": seed, "metric": own["metric"], "value": own["value"],
        "stderr": own["stderr"], "n": own["n"], "teacher_value": whose["value"], "identity": identity,
    }  # fmt: skip


def _figures(fits: Fits, metric: str, sizes: Mapping[float, float]) -> dict[str, bytes]:
    """Return name → PNG; none where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        return {}
    from capgap_core import plots_law  # noqa: PLC0415 - needs matplotlib

    words = plots_law.words_of_scales(metric, sizes)
    return {"losses": plots_law.losses(fits, words), "teachers": plots_law.teachers(fits, words)}
