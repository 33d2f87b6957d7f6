"""Runs of several seeds as published rows, and what the rows allow to be said, as the table of the README."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd

from capgap_core import markdown
from capgap_core.study import AGAINST, FEWEST_SEEDS, MOST_SEEDS, compare_seeds, interval, seeds_needed, verdict

ROLES = ("teacher", "assistant", "student", "direct", "direct_flops", "slimmed")
_MADE_AS = {"assistant": "candidate"}
"""The role of the stages that made a model, where it is another: all candidates are made and evaluated together."""
_SCORED = ("data", "teacher", "importance", "sandwich", "candidates", "tradeoff", "distil", "evaluate")
"""The stages whose code moves a published value."""
COUNTS = dict.fromkeys(("parameters", "non_embedding", "length"), "Int64")
"""Columns of published rows that stay whole numbers where a role has none."""
_SHOWN = {"assistant": "TA", "direct_flops": "direct, equal FLOPs", "direct": "direct, equal epochs"}


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run: what ``capgap run --json`` printed, and what that line does not hold."""

    result: Mapping[str, Any]
    dataset: str
    seed: int
    n_train: int
    device: str
    target_scale: float


def rows(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row for each seed, role and metric of runs that differ in nothing but the seed.

    Columns: flow, dataset, target_scale, role, metric, primary (whether the verdict rests on it), value (a fraction),
    seed, split, n (examples measured), n_train, chosen_scale, parameters, non_embedding, flops (of one example, at
    ``length`` tokens), length, seconds (of the role's stages when they were made; an assistant's are those of all
    candidates), device, identity and code (of the evaluation the value comes from). Sorted by data set, target, seed,
    role, metric.

    Raises
    ------
    ValueError
        There are no runs, those of one data set and target differ in more than the seed, a seed comes twice, or a
        value has no evaluation.
    """
    if not runs:
        raise ValueError("no runs: nothing to publish")
    _check_alike(runs)
    frame = pd.DataFrame([row for run in runs for role in run.result["scores"] for row in _rows(run, role)])
    order = {role: i for i, role in enumerate(ROLES)}
    frame = frame.astype(COUNTS)
    frame["_role"] = frame["role"].map(lambda role: order.get(role, len(order)))
    keys = ["dataset", "target_scale", "seed", "_role", "metric"]
    return frame.sort_values(keys, ignore_index=True).drop(columns="_role")


def arms(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean, sd and 95% t interval over seeds of each role's primary metric; null interval for one seed."""
    rows = []
    for (dataset, target, metric, role), group in _groups(frame, "dataset", "target_scale", "metric", "role"):
        mean, low, high, sd = interval(group["value"].to_numpy(dtype=float))
        rows.append(
            {
                "dataset": dataset, "target_scale": target, "metric": metric, "role": role,
                "mean": mean, "sd": sd, "low": low, "high": high, "n_seeds": len(group), "n": int(group["n"].iloc[0]),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def comparisons(frame: pd.DataFrame) -> pd.DataFrame:
    """Return student minus each control, paired by seed, with interval and verdict; equal FLOPs first."""
    rows = []
    for (dataset, target, metric), group in _groups(frame, "dataset", "target_scale", "metric"):
        table = group.pivot(index="seed", columns="role", values="value")
        for against in AGAINST:
            if not {"student", against} <= set(table.columns):
                continue
            pairs = table[["student", against]].dropna()
            rows.append(
                {"dataset": dataset, "target_scale": target, "metric": metric, "against": against}
                | _compared(pairs["student"].tolist(), pairs[against].tolist(), against)
            )
    return pd.DataFrame(rows)


def readme_table(frame: pd.DataFrame) -> str:
    """Return the rows as markdown: the comparisons, led by equal FLOPs, then mean and interval of each arm."""
    compared, summary = comparisons(frame), arms(frame)
    rows = [
        [
            row["dataset"], f"{row['target_scale']:g}", row["metric"], _SHOWN[against], f"{row['mean']:+.4f}",
            _span(row, "+.4f"), str(row["n_seeds"]), _said(row),
        ]
        for against in AGAINST
        for row in _records(compared)
        if row["against"] == against
    ]  # fmt: skip
    header = ["data set", "target", "metric", "student minus", "mean", "95% interval", "seeds", "verdict"]
    notes = (
        "Intervals are t intervals over training seeds; the data parts are the same for every seed. Each holds at 95% "
        f"by itself: {len(compared)} comparisons, not corrected for their number."
    )
    return "\n\n".join([markdown.table(header, rows), _arm_table(summary), notes])


def _check_alike(runs: Sequence[Run]) -> None:
    first: dict[tuple[str, float], tuple[object, ...]] = {}
    seen: set[tuple[str, float, int]] = set()
    for run in runs:
        place, result = (run.dataset, run.target_scale), run.result
        if (*place, run.seed) in seen:
            raise ValueError(f"{run.dataset}: seed {run.seed} comes twice")
        seen.add((*place, run.seed))
        data = _stage(result, "data", "")["identity"]
        codes = tuple(sorted((s["stage"], s["role"], s["code"]) for s in result["stages"] if s["stage"] in _SCORED))
        facts = (result["flow"], result["metric"], result["split"], result["n"], run.n_train, run.device, data, codes)
        if first.setdefault(place, facts) != facts:
            raise ValueError(f"{run.dataset}: runs differ in more than the seed: {first[place]} and {facts}")


def _stage(result: Mapping[str, Any], stage: str, role: str) -> Mapping[str, Any]:
    found = [s for s in result["stages"] if s["stage"] == stage and (not role or s["role"] == role)]
    if not found:
        raise ValueError(f"the result has no stage {stage} {role}".rstrip() + ": nothing to trace its numbers to")
    return found[-1]


def _rows(run: Run, role: str) -> list[dict[str, Any]]:
    result, made_as = run.result, _MADE_AS.get(role, role)
    evaluated = _stage(result, "evaluate", made_as)
    sizes = result.get("sizes", {}).get(role, {})
    shared = {
        "seed": run.seed, "split": result["split"], "n": result["n"], "n_train": run.n_train,
        "chosen_scale": result["chosen_scale"],
        **{name: sizes.get(name) for name in ("parameters", "non_embedding", "flops", "length")},
        "seconds": sum(s["seconds"] for s in result["stages"] if s["role"] == made_as), "device": run.device,
        "identity": evaluated["identity"], "code": evaluated["code"],
    }  # fmt: skip
    place = {"flow": result["flow"], "dataset": run.dataset, "target_scale": run.target_scale, "role": role}
    return [
        {**place, "metric": metric, "primary": metric == result["metric"], "value": float(value), **shared}
        for metric, value in result["scores"][role].items()
    ]


def _groups(frame: pd.DataFrame, *columns: str) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Return the rows of the primary metric that agree in the columns, in the order they come."""
    primary = frame.loc[frame["primary"]]
    return [(cast("tuple[Any, ...]", key), group) for key, group in primary.groupby([*columns], sort=False)]


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [dict(zip(frame.columns, row, strict=True)) for row in frame.itertuples(index=False)]


def _compared(student: list[float], control: list[float], against: str) -> dict[str, Any]:
    if len(student) < 2:
        only = student[0] - control[0] if student else math.nan
        empty = {"sd": math.nan, "low": math.nan, "high": math.nan, "seeds_needed": None}
        return {"mean": only, **empty, "n_seeds": len(student), "verdict": "not shown"}
    found = compare_seeds(student, control)
    # Only equal FLOPs is a fair price: at equal epochs the way through the assistant has cost more.
    said = verdict(found) if against == "direct_flops" else ""
    return {
        "mean": found.value, "sd": found.spread, "low": found.low, "high": found.high,
        "seeds_needed": seeds_needed(found.spread, found.value), "n_seeds": found.n, "verdict": said,
    }  # fmt: skip


def _span(row: Mapping[str, Any], style: str) -> str:
    return "–" if math.isnan(row["low"]) else f"{row['low']:{style}} to {row['high']:{style}}"


def _said(row: Mapping[str, Any]) -> str:
    if row["against"] != "direct_flops":
        return "–"
    if row["n_seeds"] < FEWEST_SEEDS:
        return f"not shown (it takes {FEWEST_SEEDS} seeds or more)"
    if row["verdict"] != "not shown":
        return str(row["verdict"])
    needed = row["seeds_needed"]
    if pd.isna(needed):
        return "not shown"
    many = f"{int(needed)} or more" if needed >= MOST_SEEDS else f"about {int(needed)}"
    return f"not shown ({many} seeds would do with a chance of 80%, if the mean stays)"


def _arm_table(summary: pd.DataFrame) -> str:
    rows = [
        [
            row["dataset"], f"{row['target_scale']:g}", row["metric"], _SHOWN.get(row["role"], row["role"]),
            f"{row['mean']:.4f}", _span(row, ".4f"), "–" if math.isnan(row["sd"]) else f"{row['sd']:.4f}",
            str(row["n_seeds"]), str(row["n"]),
        ]
        for row in _records(summary)
    ]  # fmt: skip
    header = ["data set", "target", "metric", "model", "mean", "95% interval", "sd", "seeds", "examples"]
    return markdown.table(header, rows)
