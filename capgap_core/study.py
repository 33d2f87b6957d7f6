"""What several models on the same examples, or the same recipe under several seeds, allow to be said.

Two intervals with two meanings. Over examples, within one run: would these two models still differ on other
examples? Over seeds: does the method differ? Only the second can say that an assistant was worth its cost.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from capgap_core.metrics import measure, resampled

Verdict = Literal["the TA was worth it", "the TA cost more than it gave", "not shown"]

ROLES = ("teacher", "assistant", "student", "direct", "direct_flops", "slimmed")
AGAINST = ("direct_flops", "direct")
"""What the student is held against; equal FLOPs first, since that is the fair comparison."""

FEWEST_SEEDS = 3
"""Fewer can show nothing; see ``verdict``."""
MOST_SEEDS = 1000
POWER = 0.8
_RESAMPLES = 2000
_MADE_AS = {"assistant": "candidate"}
"""The role of the stages that made a model, where it is another: all candidates are made and evaluated together."""
_SCORED = ("data", "teacher", "importance", "sandwich", "candidates", "tradeoff", "distil", "evaluate")
"""The stages whose code moves a published value."""
COUNTS = dict.fromkeys(("parameters", "non_embedding", "length"), "Int64")
"""Columns of published rows that stay whole numbers where a role has none."""
_SHOWN = {"assistant": "TA", "direct_flops": "direct, equal FLOPs", "direct": "direct, equal epochs"}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first's primary metric minus the second's, with a 95% interval."""

    value: float
    low: float
    high: float
    over: Literal["examples", "seeds"]
    """What the interval is over: examples (these two models), or seeds (the method)."""
    spread: float
    """Over examples: the paired standard error. Over seeds: the standard deviation of the differences."""
    n: int
    """How many examples, or how many seeds."""


def compare_models(
    metric: str, first: NDArray[Any], second: NDArray[Any], labels: NDArray[Any], *, seed: int = 0
) -> Difference:
    """Return the difference of two models on the same examples, with a paired bootstrap interval over examples.

    Percentile interval of 2000 seeded resamples (Efron 1979); both models see the same resample. It speaks of these
    two models, not of the methods that made them: another seed gives other models.

    Parameters
    ----------
    first, second
        Logits, (n, c) each.
    labels
        (n,).
    """
    a, b = resampled(metric, [first, second], labels, resamples=_RESAMPLES, seed=seed)
    drawn = a[metric] - b[metric]
    low, high = np.quantile(drawn, [0.025, 0.975])
    value = measure(metric, first, labels)[metric] - measure(metric, second, labels)[metric]
    spread = float(np.std(drawn, ddof=1))
    return Difference(value=value, low=float(low), high=float(high), over="examples", spread=spread, n=len(labels))


def compare_seeds(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Return the mean difference over seeds with its paired t interval; value i of both is from the same seed."""
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"{len(first)} and {len(second)} values: needs the same seeds for both, 2 or more")
    mean, low, high, sd = _interval(np.asarray(first, dtype=float) - np.asarray(second, dtype=float))
    return Difference(value=mean, low=low, high=high, over="seeds", spread=sd, n=len(first))


def seeds_needed(spread: float, effect: float) -> int | None:
    """Return how many seeds give an effect of this size a chance of 80% to be shown by the paired 95% t interval.

    The smallest n of ``FEWEST_SEEDS`` or more at which the noncentral t distribution gives that power; ``MOST_SEEDS``
    stands for "that many or more", None for an effect of zero, which no number of seeds can show. ``spread`` is the
    standard deviation of the difference between seeds. From a single run only the paired standard error over examples
    is known; it stands in for it, and whoever shows the number says so.
    """
    if not (math.isfinite(spread) and spread >= 0 and math.isfinite(effect)):
        raise ValueError(f"spread = {spread}, effect = {effect}: must be finite, the spread 0 or more")
    if effect == 0:
        return None
    if spread == 0:
        return FEWEST_SEEDS
    found = range(FEWEST_SEEDS, MOST_SEEDS)
    return next((n for n in found if _power(n, abs(effect) / spread) >= POWER), MOST_SEEDS)


def verdict(difference: Difference | None) -> Verdict:
    """Say what student - direct_flops shows; never anything for one run, whose interval is over examples.

    Nor for two seeds, or for differences that are all equal: metrics move in steps of one example, so that few
    differences are equal by chance, which leaves an interval without width (simulated with no effect, two seeds on 100
    examples gave a verdict in one study of ten).
    """
    if difference is None or difference.over != "seeds" or difference.n < FEWEST_SEEDS or difference.spread == 0:
        return "not shown"
    if difference.low > 0:
        return "the TA was worth it"
    return "the TA cost more than it gave" if difference.high < 0 else "not shown"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run: what ``capgap run --json`` printed, and what that line does not hold."""

    result: Mapping[str, Any]
    dataset: str
    seed: int
    n_train: int
    device: str
    target_scale: float


def published(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row for each seed, role and metric of runs that differ in nothing but the seed.

    Columns: flow, dataset, target_scale, role, metric, primary (whether the verdict rests on it), value (a fraction),
    seed, split, n (examples measured), n_train, chosen_scale, parameters, non_embedding, flops (of one example, at
    ``length`` tokens), length, seconds (of the role's stages when they were made; an assistant's are those of all
    candidates), device, identity and code (of the
    evaluation the value comes from). Sorted by data set, target, seed, role, metric.

    Raises
    ------
    ValueError
        There are no runs, those of one data set and target differ in more than the seed, a seed comes twice, or a
        value has no evaluation.
    """
    if not runs:
        raise ValueError("no runs: nothing to publish")
    _check_alike(runs)
    rows = [row for run in runs for role in run.result["scores"] for row in _rows(run, role)]
    frame = pd.DataFrame(rows)
    order = {role: i for i, role in enumerate(ROLES)}
    frame = frame.astype(COUNTS)
    frame["_role"] = frame["role"].map(lambda role: order.get(role, len(order)))
    keys = ["dataset", "target_scale", "seed", "_role", "metric"]
    return frame.sort_values(keys, ignore_index=True).drop(columns="_role")


def arms(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean, sd and 95% t interval over seeds of each role's primary metric; null interval for one seed."""
    rows = []
    for (dataset, target, metric, role), group in _groups(frame, "dataset", "target_scale", "metric", "role"):
        mean, low, high, sd = _interval(group["value"].to_numpy(dtype=float))
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
    lines = [
        "| data set | target | metric | student minus | mean | 95% interval | seeds | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for against in AGAINST:
        for row in _records(compared):
            if row["against"] != against:
                continue
            lines.append(
                f"| {row['dataset']} | {row['target_scale']:g} | {row['metric']} | {_SHOWN[against]} "
                f"| {row['mean']:+.4f} | {_span(row, '+.4f')} | {row['n_seeds']} | {_said(row)} |"
            )
    lines += ["", *_arm_lines(summary), ""]
    lines.append(
        "Intervals are t intervals over training seeds; the data parts are the same for every seed. Each holds at 95% "
        f"by itself: {len(compared)} comparisons, not corrected for their number."
    )
    return "\n".join(lines)


def _t(n: int) -> float:
    return float(stats.t.ppf(0.975, n - 1))


def _power(n: int, effect: float) -> float:
    """Return the chance that n seeds show an effect, in standard deviations, with the right sign."""
    return float(stats.nct.sf(_t(n), n - 1, effect * math.sqrt(n)))


def _interval(values: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Return mean, low, high and sd; all but the mean NaN for one value."""
    mean = float(values.mean())
    if len(values) < 2:
        return mean, math.nan, math.nan, math.nan
    sd = float(values.std(ddof=1))
    half = _t(len(values)) * sd / math.sqrt(len(values))
    return mean, mean - half, mean + half, sd


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


def _arm_lines(summary: pd.DataFrame) -> list[str]:
    lines = [
        "| data set | target | metric | model | mean | 95% interval | sd | seeds | examples |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in _records(summary):
        sd = "–" if math.isnan(row["sd"]) else f"{row['sd']:.4f}"
        lines.append(
            f"| {row['dataset']} | {row['target_scale']:g} | {row['metric']} | {_SHOWN.get(row['role'], row['role'])} "
            f"| {row['mean']:.4f} | {_span(row, '.4f')} | {sd} | {row['n_seeds']} | {row['n']} |"
        )
    return lines
