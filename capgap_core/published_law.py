"""The published rows of the laws: how often intervals of simulated grids hold the truth, as the table of the README."""

import numpy as np
import pandas as pd
from scipy import stats

from capgap_core import markdown
from capgap_core.laws.simulate import LEVEL

WIDE = 10.0
"""Of its own value: an interval wider than that has no width that is worth a number."""


def joined(before: pd.DataFrame | None, frame: pd.DataFrame) -> pd.DataFrame:
    """Return published intervals with those of the sources in ``frame`` replaced."""
    new = set(frame["source"])
    others = [] if before is None else [row for row in before.to_dict("records") if row["source"] not in new]
    kept = pd.DataFrame([*others, *frame.to_dict("records")])
    return kept.sort_values(["source", "quantity", "grid"], ignore_index=True)


def coverage_table(frame: pd.DataFrame) -> str:
    """Return how often each interval holds the truth, with a 95% Wilson interval, how wide it is, and if it ends."""
    lines = []
    for source, quantity in sorted(set(zip(frame["source"], frame["quantity"], strict=True))):
        rows = frame[(frame["source"] == source) & (frame["quantity"] == quantity)]
        truth, value, low, high = (np.asarray(rows[name]) for name in ("truth", "value", "low", "high"))
        held = int(((low <= truth) & (truth <= high)).sum())
        share = stats.binomtest(held, len(rows)).proportion_ci(0.95, method="wilson")
        found = f"{held / len(rows):.3f} ({share.low:.3f} to {share.high:.3f})"
        width = float(np.median((high - low) / np.abs(value)))
        wide = f"{width:.1%}" if width < WIDE else "over 10 times" if np.isfinite(width) else "no end"
        ends = f"{np.mean((low > 0) & np.isfinite(high)):.0%}"
        lines.append([str(source), str(quantity), f"{len(rows):,}", found, wide, ends])
    held = f"held by the {LEVEL:.0%} interval"
    header = ["grids made from", "quantity", "grids", held, "median width", "with both ends"]
    return markdown.table(header, lines)
