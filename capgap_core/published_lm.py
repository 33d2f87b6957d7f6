"""The published rows of a language model that was slimmed and distilled from itself, as the table of the README."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from capgap_core import markdown, study

ARMS = {
    "teacher": "the whole model", "slimmed": "slimmed", "trained": "slimmed, then trained on the text",
    "distilled": "slimmed, then distilled",
}  # fmt: skip
"""Role → what the table calls it, in its order."""
OURS = "distilled"


def joined(before: pd.DataFrame | None, frame: pd.DataFrame) -> pd.DataFrame:
    """Return published rows with those of the seeds in ``frame`` replaced, in their order."""
    new = {(row["dataset"], row["seed"]) for row in frame.to_dict("records")}
    others = [] if before is None else before.to_dict("records")
    others = [row for row in others if (row["dataset"], row["seed"]) not in new]
    kept = pd.DataFrame([*others, *frame.to_dict("records")], columns=frame.columns)
    kept["order"] = [list(ARMS).index(role) for role in kept["role"]]
    return kept.sort_values(["dataset", "order", "seed"], ignore_index=True).drop(columns="order")


def arms_table(frame: pd.DataFrame) -> str:
    """Return what each arm loses, and the paired difference to what was distilled, with 95% t intervals over seeds."""
    rows = sorted(frame.to_dict("records"), key=lambda row: row["seed"])
    nats = {role: [float(row["nats"]) for row in rows if row["role"] == role] for role in ARMS}
    lines = []
    for role, name in ARMS.items():
        apart = "–"
        if role != OURS:
            found = study.compare_seeds(nats[OURS], nats[role])
            apart = _with([found.value, found.low, found.high], signed=True)
        mean, low, high, _ = study.interval(np.asarray(nats[role]))
        sizes = sorted({int(row["non_embedding"]) for row in rows if row["role"] == role})
        size = f"{sizes[0]:,}" + (f" to {sizes[-1]:,}" if len(sizes) > 1 else "")
        lines.append([name, size, _with([mean, low, high], signed=False), apart])
    header = ["model", "parameters", "nats for a token (95% interval)", "distilled minus it"]
    return markdown.table(header, lines)


def _with(values: Sequence[float], *, signed: bool) -> str:
    mean, low, high = (markdown.signed(value, 3) if signed else f"{value:.3f}" for value in values)
    return f"{mean} ({low} to {high})"
