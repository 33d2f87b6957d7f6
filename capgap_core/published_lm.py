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
    kept = pd.DataFrame([*others, *frame.to_dict("records")])
    order = [list(ARMS).index(role) for role in kept["role"]]
    return kept.assign(order=order).sort_values(["dataset", "order", "seed"], ignore_index=True).drop(columns="order")


def arms_table(frame: pd.DataFrame) -> str:
    """Return what each arm loses, and the paired difference to what was distilled, with 95% t intervals over seeds."""
    lines = []
    held = {role: frame[frame["role"] == role].sort_values("seed") for role in ARMS}
    ours = [float(x) for x in held[OURS]["nats"]]
    for role, name in ARMS.items():
        nats = [float(x) for x in held[role]["nats"]]
        apart = "–"
        if role != OURS:
            found = study.compare_seeds(ours, nats)
            apart = _with([found.value, found.low, found.high], signed=True)
        mean, low, high, _ = study.interval(np.asarray(nats))
        lines.append([name, _sizes(held[role]["non_embedding"]), _with([mean, low, high], signed=False), apart])
    header = ["model", "parameters", "nats for a token (95% interval)", "distilled minus it"]
    return markdown.table(header, lines)


def _sizes(sizes: pd.Series) -> str:
    low, high = int(sizes.min()), int(sizes.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _with(values: Sequence[float], *, signed: bool) -> str:
    mean, low, high = (markdown.signed(value, 3) if signed else f"{value:.3f}" for value in values)
    return f"{mean} ({low} to {high})"
