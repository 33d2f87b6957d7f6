"""What several models on the same examples, or the same recipe under several seeds, allow to be said.

Two intervals with two meanings. Over examples, within one run: would these two models still differ on other
examples? Over seeds: does the method differ? Only the second can say that an assistant was worth its cost.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from capgap_core.metrics import measure, resampled

Verdict = Literal["the TA was worth it", "the TA cost more than it gave", "not shown"]

AGAINST = ("direct_flops", "direct")
"""What the student is held against; equal FLOPs first, since that is the fair comparison."""

FEWEST_SEEDS = 3
"""Fewer can show nothing; see ``verdict``."""
MOST_SEEDS = 1000
POWER = 0.8
_RESAMPLES = 2000


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
    mean, low, high, sd = interval(np.asarray(first, dtype=float) - np.asarray(second, dtype=float))
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


def _t(n: int) -> float:
    return float(stats.t.ppf(0.975, n - 1))


def _power(n: int, effect: float) -> float:
    """Return the chance that n seeds show an effect, in standard deviations, with the right sign."""
    return float(stats.nct.sf(_t(n), n - 1, effect * math.sqrt(n)))


def interval(values: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Return mean, the ends of its 95% t interval, and sd; all but the mean NaN for one value."""
    mean = float(values.mean())
    if len(values) < 2:
        return mean, math.nan, math.nan, math.nan
    sd = float(values.std(ddof=1))
    half = _t(len(values)) * sd / math.sqrt(len(values))
    return mean, mean - half, mean + half, sd
