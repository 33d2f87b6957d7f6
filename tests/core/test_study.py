"""Holds the intervals against hand arithmetic and scipy, and the verdict against what may be said."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from capgap_core.published import Run, arms, comparisons, readme_table, rows
from capgap_core.study import Difference, compare_models, compare_seeds, seeds_needed, verdict


def one_hot(classes: np.ndarray) -> np.ndarray:
    return np.eye(2)[classes]


def test_models_are_compared_pair_by_pair() -> None:
    """The paired error of a difference of accuracies has a formula: sd of the per-example differences / sqrt(n)."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 1000)
    a = np.where(rng.random(1000) < 0.9, labels, 1 - labels)
    b = np.where(rng.random(1000) < 0.05, 1 - a, a)  # disagrees with a in one in twenty
    found = compare_models("accuracy", one_hot(a), one_hot(b), labels)
    each = (a == labels).astype(float) - (b == labels)
    assert found.value == pytest.approx(each.mean())
    assert found.spread == pytest.approx(each.std(ddof=1) / np.sqrt(1000), rel=0.08)
    assert found.high - found.low == pytest.approx(2 * 1.96 * found.spread, rel=0.1)
    assert found.low < found.value < found.high
    assert (found.over, found.n) == ("examples", 1000)
    assert found == compare_models("accuracy", one_hot(a), one_hot(b), labels)
    unpaired = np.sqrt(2 * 0.9 * 0.1 / 1000)
    assert found.spread < 0.7 * unpaired


def test_a_model_against_itself_differs_by_nothing() -> None:
    labels = np.array([0, 1, 1, 0])
    found = compare_models("accuracy_and_f1", one_hot(labels), one_hot(labels), labels)
    assert (found.value, found.low, found.high, found.spread) == (0, 0, 0, 0)


def test_seeds_are_compared_by_the_paired_t_interval() -> None:
    first, second = [0.82, 0.83, 0.81, 0.84, 0.80], [0.81, 0.80, 0.81, 0.82, 0.79]
    found = compare_seeds(first, second)
    library = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((library.low, library.high))
    assert found.value == pytest.approx(0.014)
    assert (found.over, found.n) == ("seeds", 5)


@pytest.mark.parametrize(("first", "second"), [([0.8], [0.7]), ([0.8, 0.9], [0.7])])
def test_one_seed_or_unpaired_seeds_give_no_interval(first: list[float], second: list[float]) -> None:
    with pytest.raises(ValueError, match="2 or more"):
        compare_seeds(first, second)


def test_seeds_needed_are_those_of_the_tables() -> None:
    # Pairs for a power of 80% at 5%, two-sided, in the tables of Cohen (1988) and of G*Power.
    assert [seeds_needed(1.0, effect) for effect in (0.2, 0.5, 0.8, 1.0)] == [199, 34, 15, 10]
    assert seeds_needed(0.01, -0.005) == 34
    assert seeds_needed(1.0, 9.0) == 3
    assert seeds_needed(1.0, 0.0001) == 1000
    assert seeds_needed(0.0, 0.1) == 3
    assert seeds_needed(1.0, 0.0) is None


def difference(low: float, high: float, over: Any = "seeds", n: int = 5) -> Difference:
    return Difference(value=(low + high) / 2, low=low, high=high, over=over, spread=0.01, n=n)


def test_the_verdict_needs_seeds_and_an_interval_without_zero() -> None:
    assert verdict(difference(0.001, 0.01)) == "the TA was worth it"
    assert verdict(difference(-0.01, -0.001)) == "the TA cost more than it gave"
    assert verdict(difference(-0.001, 0.01)) == "not shown"
    assert verdict(difference(0.0, 0.01)) == "not shown"
    assert verdict(None) == "not shown"


def test_one_run_never_shows_anything() -> None:
    assert verdict(difference(0.1, 0.2, over="examples", n=872)) == "not shown"


SCORES = {"teacher": 0.87, "assistant": 0.86, "student": 0.82, "direct": 0.81, "direct_flops": 0.80, "slimmed": 0.7}


def run(seed: int, *, shift: float = 0.0, dataset: str = "sst-2", **changes: Any) -> Run:
    """A run whose student scores 0.82 + shift."""
    scores = {r: {"accuracy": v + (shift if r == "student" else 0.0)} for r, v in SCORES.items()}
    stages = [{"stage": "data", "role": "", "identity": "d", "code": "c", "seconds": 1.0}]
    stages += [
        {"stage": s, "role": made_as, "identity": f"{s}-{made_as}-{seed}", "code": "c", "seconds": 2.0}
        for made_as in ("candidate" if r == "assistant" else r for r in SCORES)
        for s in ("distil", "evaluate")
    ]
    sizes = {"student": {"parameters": 100, "non_embedding": 10, "flops": 1e6, "length": 128}}
    result = {"flow": "minidisc", "metric": "accuracy", "split": "dev", "n": 872, "scores": scores, "chosen_scale": 0.3}
    return Run(
        result={**result, "stages": stages, "sizes": sizes, **changes}, dataset=dataset, seed=seed, n_train=10_000,
        device="cpu", target_scale=0.1,
    )  # fmt: skip


def test_published_rows_trace_to_their_evaluation() -> None:
    frame = rows([run(2), run(1)])
    assert len(frame) == 2 * len(SCORES)
    row = frame[(frame["role"] == "student") & (frame["seed"] == 2)].iloc[0]
    assert (row["value"], row["identity"], row["seconds"], row["n_train"]) == (0.82, "evaluate-student-2", 4.0, 10_000)
    assert (row["parameters"], row["chosen_scale"], row["target_scale"]) == (100, 0.3, 0.1)
    assistant = frame[(frame["role"] == "assistant") & (frame["seed"] == 2)].iloc[0]
    assert (assistant["identity"], assistant["seconds"]) == ("evaluate-candidate-2", 4.0)
    assert frame["role"].head(6).tolist() == list(SCORES)
    assert frame["seed"].tolist() == [1] * 6 + [2] * 6


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        ([], "no runs"),
        ([run(1), run(1)], "twice"),
        ([run(1), run(2, n=100)], "more than the seed"),
        ([run(1, stages=[{"stage": "data", "role": "", "identity": "d", "code": "c", "seconds": 0.0}])], "trace"),
    ],
)
def test_runs_that_cannot_be_put_together_are_refused(runs: list[Run], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        rows(runs)


def test_comparisons_pair_by_seed_and_lead_with_equal_flops() -> None:
    frame = rows([run(1, shift=0.001), run(2, shift=-0.001), run(3)])
    found = comparisons(frame)
    assert found["against"].tolist() == ["direct_flops", "direct"]
    lead = found.iloc[0]
    assert lead["mean"] == pytest.approx(0.02)
    assert lead["sd"] == pytest.approx(0.001)
    assert lead["low"] == pytest.approx(0.02 - 4.3027 * 0.001 / np.sqrt(3), abs=1e-6)
    assert (lead["n_seeds"], lead["verdict"]) == (3, "the TA was worth it")
    # At equal epochs the assistant cost more, so no verdict on its worth can rest on it.
    assert found.iloc[1]["verdict"] == ""


def test_a_seed_that_one_arm_lacks_is_left_out_of_the_pairs() -> None:
    short = {role: {"accuracy": value} for role, value in SCORES.items() if role != "direct_flops"}
    frame = rows([run(1), run(2), run(3, scores=short)])
    assert comparisons(frame)["n_seeds"].tolist() == [2, 3]


def test_arms_have_mean_and_interval() -> None:
    found = arms(rows([run(1, shift=0.01), run(2, shift=-0.01)])).set_index("role")
    assert found.loc["student", "mean"] == pytest.approx(0.82)
    assert found.loc["student", "high"] == pytest.approx(0.82 + 12.7062 * 0.01, abs=1e-5)
    assert found.loc["teacher", "sd"] == pytest.approx(0.0)


def test_readme_table_says_what_may_be_said() -> None:
    noisy = [run(1, shift=0.04), run(2, shift=-0.06), run(3), run(1, dataset="mrpc")]
    text = readme_table(rows(noisy))
    first = text.splitlines()[2]
    assert first.startswith("| mrpc | 0.1 | accuracy | direct, equal FLOPs | +0.0200 | – | 1 | not shown (it takes 3")
    assert "| sst-2 | 0.1 | accuracy | direct, equal FLOPs | +0.0133 |" in text
    # The mean is 1/3.775 of a standard deviation: by the normal approximation ((1.96 + 0.8416) * 3.775)^2 = 111.9, and
    # two more for the t distribution.
    assert "not shown (about 114 seeds would" in text
    assert "| sst-2 | 0.1 | accuracy | TA | 0.8600 | 0.8600 to 0.8600 | 0.0000 | 3 | 872 |" in text
    assert "not corrected" in text
    assert "nan" not in text.lower()


def test_two_seeds_or_equal_differences_never_show_anything() -> None:
    """With metrics in steps of one example both happen by chance, and leave an interval without width."""
    assert verdict(compare_seeds([0.80, 0.75], [0.75, 0.70])) == "not shown"
    assert verdict(compare_seeds([0.75, 0.5, 1.0], [0.5, 0.25, 0.75])) == "not shown"
    assert verdict(compare_seeds([0.80, 0.81, 0.83], [0.70, 0.72, 0.71])) == "the TA was worth it"
    assert verdict(compare_seeds([0.70, 0.72, 0.71], [0.80, 0.81, 0.83])) == "the TA cost more than it gave"
