"""The published grid of a law as the README's tables: its models, what they say, and laws on students held out."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from capgap_core import report_law
from capgap_core.markdown import short, table

Row = Mapping[str, Any]


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
        _by_law([row for row in found if row["what"] in ("left out", "held out")]),
    ]
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
    return {"powers": list(powers.values()), "apple": apple, "monotone": monotone}


def _counts(grid: Sequence[Row]) -> str:
    students = [row for row in grid if row["role"] == "student"]
    seeds = len({row["seed"] for row in students})
    n = {row["n"] for row in grid}
    hours = sum(row["seconds"] for row in grid) / 3600
    return (
        f"Means over {seeds} seeds; {len(grid)} models; {max(n):,} tokens of the part test; {hours:.1f} hours summed "
        "over the models' clocks."
    )


def _by_law(found: Sequence[Row]) -> str:
    """Return a row for each law, and each student, that it had not seen."""
    lines = []
    for row in found:
        where = [row["what"], str(row["law"]), short(row["student"]), short(row["tokens"])]
        if row["why_not"] is not None:
            lines.append([*where, f"not estimable: {row['why_not']}", "–", "–", "–"])
            continue
        error = "unknown" if row["regret_error"] is None else f"{row['regret_error']:.4f}"
        lines.append(
            [*where, short(row["named"]), short(row["taken"]), f"{row['regret']:.4f} ± {error}",
             f"{row['loss_error']:.4f}"]
        )  # fmt: skip
    header = ["student", "law", "size", "tokens", "names", "nearest", "regret, nats ± s.e.", "error of losses"]
    return table(header, lines)


def rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame, null for what is missing."""
    whole: pd.DataFrame = frame.astype(object)
    return [{str(name): None if pd.isna(v) else v for name, v in row.items()} for row in whole.to_dict("records")]
