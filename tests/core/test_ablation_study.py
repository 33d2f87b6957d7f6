"""The ablation over draws and seeds: every arm tuned alike, on the selection part alone, and what the rows show."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from capgap_core import ablation_study, preflight, published_mixkd
from capgap_core.chain import in_this_process
from capgap_core.errors import StageFailed
from capgap_core.progress import Silent
from capgap_core.records import Reference
from capgap_core.study import Difference

CELL = ablation_study.Cell(dataset="days", fraction=0.5, trials=3, draws=(1, 2), seeds=(1, 2))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, list[tuple[str, str, Any]]]:
    """The rows of a small study, and (stage, role, recipe) of everything it asked for, in order."""
    folder = tmp_path_factory.mktemp("study")
    asked = {
        **{name: builders.TINY[name] for name in ("data", "teacher_recipe")},
        "dataset": str(builders.single_csv(folder, 300)), "arms": ["kd", "mixkd"],
        "student": {"epochs": 1}, "run": {"root": str(folder / "art"), "threads": 1},
    }  # fmt: skip
    told: list[tuple[str, str, Any]] = []
    call = in_this_process(Silent())

    def telling(stage: str, recipe: Any, inputs: Any, *, role: str, execution: Any) -> Reference:
        told.append((stage, role, recipe))
        return call(stage, recipe, inputs, role=role, execution=execution)

    checked = preflight.check(asked, flow="mixkd")
    rows = [row for part in ablation_study.follow(checked, telling, CELL) for row in part]
    return pd.DataFrame(rows), told


def test_every_arm_is_tried_as_often_at_the_same_rates_and_the_best_is_taken(made: Any) -> None:
    frame, _ = made
    trials, students = (frame[frame["role"] == role] for role in ("trial", "student"))
    assert set(trials["arm"]) == {"kd", "mixkd"}
    assert set(trials["training"]) == set(students["training"])
    for name, tried in trials.groupby("training"):
        assert list(tried["trial"]) == [0, 1, 2]
        assert list(tried["learning_rate"]) == [s["learning_rate"] for s in ablation_study.settings(3)]
        (chosen,) = tried[tried["chosen"]].to_dict("records")
        assert chosen["value"] == tried["value"].max()
        own = students[students["training"] == name]
        for key in ablation_study.FIRST:
            assert set(own[key]) == {chosen[key]}
    assert set(trials["split"]) == {"selection"}
    assert not set(trials["draw"]) & set(students["draw"]), "results come from rows that nothing was tuned on"


def test_nothing_is_measured_on_the_evaluation_part_before_all_is_chosen(made: Any) -> None:
    _, told = made
    splits = [recipe.split for stage, _, recipe in told if stage == "evaluate"]
    last = max(i for i, split in enumerate(splits) if split == "selection")
    assert "evaluation" not in splits[:last]
    assert "evaluation" in splits[last:]


def test_draws_and_seeds_are_crossed_and_every_training_is_there(made: Any) -> None:
    frame, _ = made
    students = frame[frame["role"] == "student"]
    names = {"kd", "kd_tokens", "mixkd"}
    found = set(students[["training", "draw", "seed"]].itertuples(index=False, name=None))
    assert found == {(name, draw, seed) for name in names for draw in (1, 2) for seed in (1, 2)}
    assert len(set(students["identity"])) == len(students)
    assert {"seconds", "device", "code", "n", "n_train", "teacher_value", "loss_labels"} <= set(frame)


def test_settings_of_another_cell_are_taken_without_a_trial(tmp_path: Path) -> None:
    asked = {
        **{name: builders.TINY[name] for name in ("data", "teacher_recipe")}, "student": {"epochs": 1},
        "dataset": str(builders.single_csv(tmp_path, 300)), "arms": ["kd", "mixkd"], "matched": ["epochs"],
        "run": {"root": str(tmp_path / "art"), "threads": 1},
    }  # fmt: skip
    chosen = {name: {**ablation_study.FIRST, "learning_rate": rate} for name, rate in (("kd", 1e-4), ("mixkd", 3e-4))}
    cell = replace(CELL, fraction=1.0, draws=(1,), seeds=(1,), chosen=chosen, tuned_on="4 rows")
    checked = preflight.check(asked, flow="mixkd")
    (rows,) = ablation_study.follow(checked, in_this_process(Silent()), cell)
    assert {row["training"]: row["learning_rate"] for row in rows} == {"kd": 1e-4, "mixkd": 3e-4}
    assert {row["role"] for row in rows} == {"student"}
    assert "1 draw × 1 seed, settings found on 4 rows." in published_mixkd.readme_table(pd.DataFrame(rows))


def test_settings_lie_within_their_ranges_and_the_first_is_what_is_done_unasked() -> None:
    found = ablation_study.settings(50)
    assert found[0] == ablation_study.FIRST
    assert found[:8] == ablation_study.settings(8), "more trials begin with the same"
    for name, (low, high) in ablation_study.RANGES.items():
        values = np.array([setting[name] for setting in found[1:]])
        assert values.min() >= low
        assert values.max() <= high
        middle = np.median(np.log(values))
        assert abs(middle - np.log(low * high) / 2) < 0.2 * np.log(high / low)


def rows_of(values: dict[str, np.ndarray], **changes: Any) -> list[dict[str, Any]]:
    """Rows of students: training → (draws, seeds) values."""
    return [
        {
            "dataset": "days", "teacher_rows": "all", "fraction": 0.1, "n_train": 800, "role": "student", "n": 100,
            "training": name, "arm": name.removesuffix("_tokens"), "draw": i + 1, "seed": j + 1, "value": float(value),
            "gap": 0.1, "calibration_error": 0.05, "metric": "accuracy", "trial": None, "teacher_value": 0.9,
            "constant": 0.5, **changes,
        }
        for name, table in values.items() for (i, j), value in np.ndenumerate(table)
    ]  # fmt: skip


def test_the_interval_is_over_draws_with_seeds_averaged() -> None:
    draw = np.random.default_rng(0)
    values = {name: draw.normal(0.8, 0.02, (5, 2)) for name in ("kd_tokens", "mixkd")}
    found = {row["training"]: row for row in published_mixkd.compared(rows_of(values))}
    means = values["mixkd"].mean(1)
    low, high = stats.t.interval(0.95, 4, means.mean(), stats.sem(means))
    assert (found["mixkd"]["low"], found["mixkd"]["high"]) == pytest.approx((low, high))
    apart = found["kd_tokens"]["apart"]
    paired = stats.ttest_1samp(means - values["kd_tokens"].mean(1), 0.0).confidence_interval(0.95)
    assert (apart.low, apart.high) == pytest.approx((paired.low, paired.high))
    assert found["mixkd"]["apart"] is None


def test_all_rows_leave_an_interval_over_seeds_and_what_lacks_a_training_is_left_out() -> None:
    values = {name: np.array([[0.8, 0.82, 0.84]]) + i / 100 for i, name in enumerate(("kd_tokens", "mixkd"))}
    rows = rows_of(values, fraction=1.0)
    (first, _) = published_mixkd.compared(rows)
    assert (first["n"], first["apart"].n) == (3, 3)
    assert first["apart"].value == pytest.approx(0.01)
    (first, _) = published_mixkd.compared(rows[:-1])
    assert first["n"] == 2


def test_a_share_of_one_draw_shows_nothing_however_many_seeds() -> None:
    values = {
        name: np.array([[0.8, 0.82, 0.84]]) + i * np.array([[0.1, 0.11, 0.12]])
        for i, name in enumerate(("kd_tokens", "mixkd"))
    }
    text = published_mixkd.readme_table(pd.DataFrame(rows_of(values)))
    assert "not shown" in text
    assert "1 draw × 3 seeds" in text
    assert "(" not in text.split("| KD + SM + TMKD |")[1], "one draw has no interval"


@pytest.mark.parametrize(
    ("low", "high", "spread", "n", "rows", "said"),
    [
        (0.01, 0.03, 0.01, 5, 800, "mixtures helped"), (-0.03, -0.01, 0.01, 5, 800, "mixtures harmed"),
        (-0.01, 0.03, 0.01, 5, 800, "not shown"), (0.01, 0.03, 0.01, 5, 99, "not testable"),
        (0.01, 0.03, 0.01, 2, 800, "not shown"), (0.02, 0.02, 0.0, 5, 800, "not shown"),
    ],
)  # fmt: skip
def test_the_verdict(low: float, high: float, spread: float, n: int, rows: int, said: str) -> None:
    apart = Difference(value=(low + high) / 2, low=low, high=high, over="seeds", spread=spread, n=n)
    assert published_mixkd.verdict(apart, rows) == said
    assert published_mixkd.verdict(None, 800) == "not shown"


def test_rows_of_a_cell_take_the_place_of_its_own_and_of_no_other() -> None:
    first = pd.DataFrame(rows_of({"mixkd": np.array([[0.7]])}))
    other = pd.DataFrame(rows_of({"mixkd": np.array([[0.6]])}, fraction=0.01))
    again = pd.DataFrame(rows_of({"mixkd": np.array([[0.8]]), "kd": np.array([[0.75]])}))
    both = published_mixkd.joined(published_mixkd.joined(published_mixkd.joined(None, first), other), again)
    held = both[["fraction", "training", "value"]].itertuples(index=False, name=None)
    assert list(held) == [(0.01, "mixkd", 0.6), (0.1, "kd", 0.75), (0.1, "mixkd", 0.8)]


def test_rows_that_are_published_wait_for_a_study_that_has_them_all_again() -> None:
    whole = pd.DataFrame(rows_of({"kd": np.array([[0.7], [0.8]]), "mixkd": np.array([[0.7], [0.8]])}))
    assert published_mixkd.covers(None, whole[:1])
    assert not published_mixkd.covers(whole, whole[:3])
    assert published_mixkd.covers(whole[:3], whole)
    assert published_mixkd.covers(whole, pd.DataFrame(rows_of({"kd": np.array([[0.7]])}, fraction=0.01)))


def test_the_table_says_how_many_draws_seeds_and_trials_it_rests_on() -> None:
    draw = np.random.default_rng(1)
    values = {name: draw.normal(0.8, 0.02, (5, 2)) for name in ("kd", "kd_tokens", "mixkd")}
    trials = [{**row, "role": "trial", "trial": i} for i in range(8) for row in rows_of({"kd": np.array([[0.1]])})]
    few = rows_of(values, fraction=0.01, n_train=80)
    text = published_mixkd.readme_table(pd.DataFrame([*rows_of(values), *trials, *few, *trials]))
    assert "**days, 800 training rows, teacher of all rows: not shown.**" in text
    assert "**days, 80 training rows, teacher of all rows: not testable.**" in text
    assert text.index("800 training rows") < text.index("80 training rows, ")
    assert "5 draws × 2 seeds, 8 trials an arm" in text
    assert f"| KD, equal tokens | {values['kd_tokens'].mean():.3f} (" in text


def test_a_training_that_fails_is_not_hidden(tmp_path: Path) -> None:
    def broken(stage: str, recipe: Any, inputs: Any, *, role: str, execution: Any) -> Reference:
        raise StageFailed(stage, "no", "no")

    asked = {"dataset": str(builders.single_csv(tmp_path)), "run": {"root": str(tmp_path / "art")}}
    with pytest.raises(StageFailed):
        next(ablation_study.follow(preflight.check(asked, flow="mixkd"), broken, CELL))
