"""The published rows of MixKD's ablation, and what they allow to be said, as the tables of the README."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from capgap_core import markdown, study
from capgap_core.report_mixkd import EQUAL, FEWEST, NAMES
from capgap_core.stages.ablation import AGAINST

RIVAL = "kd_tokens"
"""What the verdict is against: distillation that sends as many tokens through the student."""
CELL = ("dataset", "teacher_rows", "fraction")
COUNTS = ("trial", "n", "n_train", "steps", "examples", "passes")
"""Columns of whole numbers, which not every row has."""

Row = dict[str, Any]
Verdict = Literal["mixtures helped", "mixtures harmed", "not shown", "not testable"]


def covers(before: pd.DataFrame | None, frame: pd.DataFrame) -> bool:
    """Return whether ``frame`` has every row that is published of its cells, so that it may take their place."""
    cells = {_cell(row) for row in _records(frame)}
    held = {_key(row) for row in _records(frame)}
    return before is None or all(_key(row) in held for row in _records(before) if _cell(row) in cells)


def joined(before: pd.DataFrame | None, frame: pd.DataFrame) -> pd.DataFrame:
    """Return published rows with those of the cells in ``frame`` replaced, in their order."""
    cells = {_cell(row) for row in _records(frame)}
    others = [] if before is None else [row for row in _records(before) if _cell(row) not in cells]
    kept = pd.DataFrame([*others, *_records(frame)])
    kept = kept.astype({name: "Int64" for name in COUNTS if name in kept.columns})
    keys = [*CELL, "role", "training", "draw", "seed", "trial"]
    return kept.sort_values(keys, ignore_index=True)


def over_draws(students: Sequence[Row], column: str = "value") -> dict[str, np.ndarray]:
    """Return a column of one cell's students: training → a value for each draw of the rows, in the same order.

    Seeds are averaged within a draw, since students of one draw have more in common than those of two; where all rows
    are taken, values are seeds'. Only draws and seeds that every training has are there.
    """
    held = {(row["training"], row["draw"], row["seed"]): row[column] for row in students}
    names = list(dict.fromkeys(row["training"] for row in students))
    pairs = sorted({(draw, seed) for _, draw, seed in held})
    pairs = [pair for pair in pairs if all((name, *pair) in held for name in names)]
    of_seeds = all(row["fraction"] == 1.0 for row in students)
    units = sorted({pair[of_seeds] for pair in pairs})
    return {
        name: np.array([np.mean([held[name, *pair] for pair in pairs if pair[of_seeds] == unit]) for unit in units])
        for name in names
    }


def compared(students: Sequence[Row]) -> list[Row]:
    """Return one cell's trainings: mean and 95% t interval, and the paired difference of ``AGAINST`` minus each."""
    table, gaps = over_draws(students), over_draws(students, "gap")
    classes = not any(pd.isna(row["calibration_error"]) for row in students)
    errors = over_draws(students, "calibration_error") if classes else None
    found: list[Row] = []
    for name in sorted(table, key=_order):
        if not len(table[name]):
            return []
        mean, low, high, sd = study.interval(table[name])
        paired = name != AGAINST and AGAINST in table and len(table[name]) > 1
        found.append(
            {
                "training": name, "mean": mean, "low": low, "high": high, "sd": sd, "n": len(table[name]),
                "apart": study.compare_seeds(list(table[AGAINST]), list(table[name])) if paired else None,
                "gap": float(gaps[name].mean()), "ece": None if errors is None else float(errors[name].mean()),
            }
        )  # fmt: skip
    return found


def verdict(difference: study.Difference | None, n_train: int) -> Verdict:
    """Say what ``AGAINST`` minus ``RIVAL`` shows of mixtures."""
    if n_train < FEWEST:
        return "not testable"
    if difference is None or difference.n < study.FEWEST_SEEDS or difference.spread == 0:
        return "not shown"
    if difference.low > 0:
        return "mixtures helped"
    return "mixtures harmed" if difference.high < 0 else "not shown"


def chosen(frame: pd.DataFrame, dataset: str, fraction: float, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return training → the setting that trials on a share, with a teacher of all rows, chose; empty without any."""
    cell = (dataset, "all", fraction)
    held = [row for row in _records(frame) if _cell(row) == cell and row["role"] == "trial" and row["chosen"]]
    return {row["training"]: {name: row[name] for name in names} for row in held}


def readme_table(frame: pd.DataFrame) -> str:
    """Return what the published rows say, a table for each cell that has students."""
    rows = _records(frame)
    parts = []
    for cell in sorted({_cell(row) for row in rows}, key=lambda cell: (*cell[:2], -cell[2])):
        students = [row for row in rows if _cell(row) == cell and row["role"] == "student"]
        found = compared(students) if students else []
        if found:
            trials = [row for row in rows if _cell(row) == cell and row["role"] == "trial"]
            parts += [_heading(students, trials, found), _table(found)]
    return "\n\n".join(parts)


def _heading(students: Sequence[Row], trials: Sequence[Row], found: Sequence[Row]) -> str:
    first, count = students[0], {name: len({row[name] for row in students}) for name in ("draw", "seed")}
    rival = next((row["apart"] for row in found if row["training"] == RIVAL), None)
    whose = "all rows" if first["teacher_rows"] == "all" else "the same rows"
    pairs = len({(row["draw"], row["seed"]) for row in students})
    crossed = " × ".join(f"{number} {name}{'s' * (number > 1)}" for name, number in count.items())
    if pairs < count["draw"] * count["seed"]:
        crossed = f"{pairs} of {count['draw'] * count['seed']} ({crossed})"
    teachers = [row["teacher_value"] for row in students]
    low, high = f"{min(teachers):.3f}", f"{max(teachers):.3f}"
    tuned = f"{len({row['trial'] for row in trials})} trials an arm"
    if isinstance(elsewhere := first.get("tuned_on"), str):
        tuned = f"settings found on {elsewhere}"
    return (
        f"**{first['dataset']}, {first['n_train']:,} training rows, teacher of {whose}: "
        f"{verdict(rival, first['n_train'])}.** {first['metric']} on {int(first['n']):,} examples; teacher "
        f"{low if low == high else f'{low} to {high}'}; constant answer {first['constant']:.3f}; {crossed}, {tuned}."
    )


def _table(found: Sequence[Row]) -> str:
    lines = []
    for row in found:
        apart: study.Difference | None = row["apart"]
        difference = "–" if apart is None else _with(apart.value, apart.low, apart.high, n=apart.n, signed=True)
        own = _with(row["mean"], row["low"], row["high"], n=row["n"], signed=False)
        error = "–" if row["ece"] is None else f"{row['ece']:.3f}"
        lines.append([_name(row["training"]), own, difference, markdown.signed(row["gap"], 3), error])
    return markdown.table(["arm", "mean (95% interval)", f"{NAMES[AGAINST]} minus the arm", "gap", "ECE"], lines)


def _records(frame: pd.DataFrame) -> list[Row]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _cell(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in CELL)


def _key(row: Row) -> tuple[Any, ...]:
    trial = None if pd.isna(row["trial"]) else int(row["trial"])
    return (*_cell(row), row["role"], row["training"], row["draw"], row["seed"], trial)


def _name(training: str) -> str:
    arm = training.removesuffix("_tokens")
    return NAMES[arm] + (EQUAL if arm != training else "")


def _order(training: str) -> tuple[int, bool]:
    arm = training.removesuffix("_tokens")
    return list(NAMES).index(arm), arm != training


def _with(value: float, low: float, high: float, *, n: int, signed: bool) -> str:
    """Return a value with its interval, which two values do not have in earnest."""
    found = [markdown.signed(number, 3) if signed else f"{number:.3f}" for number in (value, low, high)]
    return found[0] if math.isnan(low) or n < study.FEWEST_SEEDS else f"{found[0]} ({found[1]} to {found[2]})"
