"""The published rows of the control: models on text of a known entropy, the law of them, and the README's table."""

from statistics import fmean

import numpy as np
import pandas as pd

from capgap_core import markdown
from capgap_core.laws import coefficients
from capgap_core.laws.apple_fit import fit_supervised
from capgap_core.laws.grid import Alone, Interval, NotEstimable

LEVEL = 0.90
LEFT_OUT = {"parameters": "parameters", "budget": "tokens"}
"""Column whose values are left out in turn → what they are."""
FOUND = ("fitted_", "without_")
"""How columns begin that are no measurements, but what the law finds."""


def irreducible(frame: pd.DataFrame) -> Interval | NotEstimable:
    """Return E of the law L(N, D) that is fitted to these models, in nats, or why they do not say."""
    alone = Alone(
        parameters=frame["parameters"].to_numpy(np.float64), tokens=frame["tokens"].to_numpy(np.float64),
        loss=frame["nats"].to_numpy(np.float64), teaches=np.zeros(len(frame), dtype=bool),
    )  # fmt: skip
    return coefficients.irreducible(alone, fit_supervised(alone), LEVEL)


def fitted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with what their law finds, the same in each: another scipy might end a little elsewhere.

    ``without_parameters_e`` and its like are what is found where all models of a row's size, or budget, are left out;
    a ``_why`` says why E is not estimable, and then there are no numbers; it is empty where E is.
    """
    # In one order, whichever they were made in: along a flat valley even the order of a sum counts.
    frame = frame.sort_values(["parameters", "tokens", "seed"], ignore_index=True)
    frame = frame.drop(columns=[name for name in frame if str(name).startswith(FOUND)])
    held = frame.assign(**_columns("fitted", irreducible(frame)))
    for column in LEFT_OUT:
        prefix = f"without_{column}"
        each = {one: _columns(prefix, irreducible(frame.query(f"{column} != {one}"))) for one in set(frame[column])}
        for name in each[frame[column].iloc[0]]:
            held[name] = [each[one][name] for one in frame[column]]
    return held


def _columns(prefix: str, found: Interval | NotEstimable) -> dict[str, float | str]:
    if isinstance(found, NotEstimable):
        return {f"{prefix}_e": np.nan, f"{prefix}_low": np.nan, f"{prefix}_high": np.nan, f"{prefix}_why": found.why}
    numbers = {"e": found.value, "low": found.low, "high": found.high}
    return {**{f"{prefix}_{name}": value for name, value in numbers.items()}, f"{prefix}_why": ""}


def below(frame: pd.DataFrame) -> int:
    """Return how many models lose less than the source, beyond two standard errors of what they lose."""
    least = frame["source_nats"].to_numpy() - 2 * frame["stderr"].to_numpy()
    return int(np.sum(frame["nats"].to_numpy() < least))


def control_table(frame: pd.DataFrame) -> str:
    """Return what each size loses on each number of tokens, how far above the source, and what the law finds."""
    losses: dict[tuple[int, int], list[float]] = {}
    for row in frame.to_dict("records"):
        losses.setdefault((row["parameters"], row["budget"]), []).append(row["nats"])
    source = float(frame["source_nats"].iloc[0])
    budgets = sorted({budget for _, budget in losses})
    lines = [
        [markdown.short(size), *(_cell(losses.get((size, budget)), source) for budget in budgets)]
        for size in sorted({size for size, _ in losses})
    ]
    table = markdown.table(["parameters", *(f"{markdown.short(budget)} tokens" for budget in budgets)], lines)
    return f"{table}\n\n{verdict(frame)}\n\n{_left_out(frame)}"


def _cell(losses: list[float] | None, source: float) -> str:
    return f"{fmean(losses):.4f} ({markdown.signed(fmean(losses) - source)})" if losses else "–"


def _left_out(frame: pd.DataFrame) -> str:
    """Return what the law finds without all models of a size, or on a number of tokens."""
    lines = []
    for column, unit in LEFT_OUT.items():
        for one, own in frame.groupby(column):
            row = own.iloc[0]
            left, models = f"{markdown.short(float(str(one)))} {unit}", f"{len(frame) - len(own)}"
            if row[f"without_{column}_why"]:
                lines.append([left, models, f"not estimable: {row[f'without_{column}_why']}", "–"])
                continue
            value, low, high = (float(row[f"without_{column}_{name}"]) for name in ("e", "low", "high"))
            holds = "held" if low <= row["source_nats"] <= high else "**not held**"
            lines.append([left, models, f"{value:.4g} ({low:.4g} to {high:.4g})", holds])
    return markdown.table(["left out", "models", f"E ({LEVEL:.0%} interval)", "what is known"], lines)


def verdict(frame: pd.DataFrame) -> str:
    """Return whether the law finds what is known, and whether any model is where none can be."""
    row = frame.iloc[0]
    holds = "holds" if row["fitted_low"] <= row["source_nats"] <= row["fitted_high"] else "does not hold"
    under = below(frame)
    leak = "no model is" if not under else f"**{under} models are, which only a leak explains,**"
    if row["fitted_why"]:
        finds = f"does not say E: {row['fitted_why']}"
    else:
        finds = (
            f"has E = {row['fitted_e']:.4f} ({row['fitted_low']:.4f} to {row['fitted_high']:.4f}): the {LEVEL:.0%} "
            f"interval {holds} it"
        )
    return (
        f"The source itself loses {row['source_nats']:.4f} on the same {row['measured']:,} tokens "
        f"({row['whole_nats']:.4f} where it reads documents from their beginning); {leak} below it by more than two "
        f"standard errors ({frame['stderr'].max():.4f} at most). L(N, D) of these {len(frame)} models {finds}."
    )
