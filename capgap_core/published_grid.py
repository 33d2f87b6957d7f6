"""The published grid of a law as the README's tables: its models, what they say, and laws on students held out."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from capgap_core import report_law

Row = Mapping[str, Any]
JUDGED = {
    "left out": "Each size of student left out in turn, laws fitted to the others:",
    "held out": "Students that were trained after the laws had named their teachers:",
}
"""Kind of finding → what is said above its table."""


def readme_table(models: pd.DataFrame, findings: pd.DataFrame) -> str:
    """Return the tables.

    Parameters
    ----------
    models
        Published rows, one for each model.
    findings
        What they say (``law_study.findings``).
    """
    grid = [row for row in rows(models) if row["kind"] == "grid"]
    found = rows(findings)
    optima = [row for row in found if row["what"] == "optimum"]
    parts = [
        "\n\n".join(report_law.verdicts(grid, summary_of(found))),
        report_law.teachers(grid),
        report_law.students(grid, optima),
        _counts(grid),
    ]
    for what, words in JUDGED.items():
        if own := [row for row in found if row["what"] == what]:
            parts += [words, report_law.rivals_table(own)]
    return "\n\n".join(parts)


def summary_of(found: Sequence[Row]) -> dict[str, Any]:
    """Return the findings as the stage ``law`` sums them up."""
    powers: dict[float, dict[str, Any]] = {}
    for row in found:
        if row["what"] in ("exponent", "ratio"):
            held = powers.setdefault(row["tokens"], {"budget": row["tokens"], "power": row["found"]})
            held[row["what"]] = [row["teacher"], row["low"], row["high"]]
            held["students"] = sum(
                other["what"] == "optimum" and other["found"] == "bracketed"
                and round(other["tokens"] / other["student"]) == row["tokens"]
                for other in found
            )  # fmt: skip
    apple = next(row["found"] for row in found if row["what"] == "apple teacher")
    monotone = next(row["found"] for row in found if row["what"] == "teachers") == "monotone"
    ended = next(row["found"] for row in found if row["what"] == "apple ended")
    symbols = ended.split(", ") if ended else []
    return {"powers": list(powers.values()), "apple": apple, "apple_ended": symbols, "monotone": monotone}


def _counts(grid: Sequence[Row]) -> str:
    students = [row for row in grid if row["role"] == "student"]
    seeds = len({row["seed"] for row in students})
    n = {row["n"] for row in grid}
    hours = sum(row["seconds"] for row in grid) / 3600
    return (
        f"Means over {seeds} seeds; {len(grid)} models; {max(n):,} tokens of the part test; {hours:.1f} hours summed "
        "over the models' clocks."
    )


def rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame, null for what is missing."""
    whole: pd.DataFrame = frame.astype(object)
    return [{str(name): None if pd.isna(v) else v for name, v in row.items()} for row in whole.to_dict("records")]
