"""A grid on text of a known entropy: what its stages and its report say of the source, and of no other text."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from texts import text_recipe, write_text

from capgap_core import hmm, law, law_control, published_control, report_law, tables
from capgap_core.build import build
from capgap_core.ladder import Ladder
from capgap_core.laws.apple import Supervised
from capgap_core.laws.grid import NotEstimable
from capgap_core.lm_recipes import LmObjective
from capgap_core.progress import Silent
from capgap_core.recipes import Execution
from capgap_core.recipes_law import LmTraining
from capgap_core.records import Reference
from capgap_core.stages import text as text_stage

TRAINING = LmTraining(length=32, batch_size=32, held_out_rows=200)


@pytest.fixture(scope="module")
def execution(tmp_path_factory: pytest.TempPathFactory) -> Execution:
    return Execution(root=str(tmp_path_factory.mktemp("control")), threads=1)


def filled(recipe: text_stage.Recipe, execution: Execution) -> tuple[Reference, Reference]:
    """Return the stages ``law`` and ``text`` of a small grid."""
    made: list[Reference] = []

    def call(stage: str, recipe: Any, inputs: Any, *, role: str, execution: Execution) -> Reference:
        made.append(build(stage, recipe, inputs, execution=execution, progress=Silent()))
        return made[-1]

    ladder = Ladder(teachers=(3e3,), students=(3e3,), teacher_tokens=1.0, budgets=(1.0,), seeds=(1,))
    grid = law.Grid(
        text=recipe, ladder=ladder, training=TRAINING, objective=LmObjective(), execution=execution,
        dataset=recipe.source.dataset, command="capgap run law",
    )  # fmt: skip
    return law.fill(grid, call), made[0]


@pytest.fixture(scope="module")
def rows(execution: Execution) -> list[dict[str, object]]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(hmm, "HELD_OUT_BYTES", 12_000)
        asked = law_control.rows(
            (6e3, 3e3), (20_000, 10_000), (1,), training=TRAINING, execution=execution, progress=Silent()
        )
        return list(asked)


def test_every_model_has_its_row_beside_the_source(rows: list[dict[str, object]]) -> None:
    frame = pd.DataFrame(rows)
    assert list(zip(frame["parameters"], frame["budget"], strict=True)) == [
        (2992, 10_000), (2992, 20_000), (5968, 10_000), (5968, 20_000),
    ]  # fmt: skip
    assert frame["identity"].is_unique
    assert (frame["epochs"] <= 1.0).all(), "no token is seen twice"
    assert frame["source_nats"].nunique() == frame["measured"].nunique() == 1
    assert (frame["whole_nats"] < frame["source_nats"]).all()
    assert published_control.below(frame) == 0


def test_a_grid_says_what_is_known(
    execution: Execution, rows: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hmm, "HELD_OUT_BYTES", 12_000)
    fitted, text = filled(law_control.text_recipe(round(law_control.SPARE * 20_000), execution), execution)
    assert text.reused
    assert fitted.summary["source_nats"] == pytest.approx(rows[0]["source_nats"], rel=1e-12)
    assert fitted.summary["irreducible"] is None
    report = (fitted.folder / "report.md").read_text(encoding="utf8")
    assert f"Its source itself loses {fitted.summary['source_nats']:.4f} nats" in report
    teacher = tables.read(fitted.table("cells"))[0]
    assert f"| {teacher['nats'] - fitted.summary['source_nats']:+.4f} |" in report


def test_nothing_is_said_of_another_text(tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path, write_text(tmp_path))
    fitted, text = filled(recipe, Execution(root=str(tmp_path), threads=1))
    assert "source_nats" not in text.summary
    assert not {"source_nats", "irreducible"} & set(fitted.summary)
    report = (fitted.folder / "report.md").read_text(encoding="utf8")
    assert "source" not in report


SUMMARY = {"monotone": True, "powers": [], "apple": "estimable", "source_nats": 1.76, "source_stderr": 0.004}


@pytest.mark.parametrize(("low", "words"), [(1.6, "which holds it"), (1.77, "which does not hold it")])
def test_what_the_law_finds_stands_beside_what_is_known(low: float, words: str) -> None:
    said = report_law.verdicts([], {**SUMMARY, "irreducible": [1.8, low, 1.9]})[-1]
    assert f"Apple's law finds E = 1.8000 ({low:.4f} to 1.9000, 90%), {words}." in said


def test_what_the_law_does_not_say_is_told() -> None:
    said = report_law.verdicts([], {**SUMMARY, "irreducible": None, "irreducible_why": "any E below 2 fits"})[-1]
    assert said.endswith("Apple's law does not say E: any E below 2 fits.")
    (said,) = [one for one in report_law.verdicts([], {**SUMMARY, "irreducible": None, "apple_ended": ["B'", "c1"]})
               if one.startswith("Apple's law")]  # fmt: skip
    assert "does not tell B', c1 apart (the fit ends at a bound)" in said


def published(noise: float) -> pd.DataFrame:
    """Rows of models that follow a law with E = 1.76."""
    law_of = Supervised(e=1.76, a=28.0, b=9e3, alpha=0.5, beta=0.8, gamma=0.9)
    draw = np.random.default_rng(0)
    made = [
        {"parameters": n, "budget": d, "tokens": d, "seed": 1, "stderr": 0.004, "source_nats": 1.76, "measured": 1000,
         "source_stderr": 0.004, "whole_nats": 1.75,
         "nats": float(law_of.loss(n, d)[0]) * math.exp(noise * draw.standard_normal())}
        for n in (3000, 13_000, 30_000, 100_000) for d in (300_000, 1_000_000, 3_000_000)
    ]  # fmt: skip
    return pd.DataFrame(made)


def test_the_law_finds_the_loss_that_is_known() -> None:
    found = published_control.irreducible(published(1e-4))
    assert not isinstance(found, NotEstimable)
    assert found.value == pytest.approx(1.76, abs=0.02)
    assert found.low < 1.76 < found.high < found.low + 0.1


def test_the_table_says_what_is_found_and_what_only_a_leak_explains() -> None:
    frame = published_control.fitted(published(3e-3))
    text = published_control.control_table(frame)
    first = frame.iloc[0]
    assert f"| 3k | {first['nats']:.4f} (+{first['nats'] - 1.76:.4f}) |" in text
    assert "no model is below it" in text
    assert text.count("| 9 |") == 4
    assert text.count("| 8 |") == 3
    wrong = frame.assign(nats=frame["nats"].where(frame["parameters"] < 100_000, 1.74), fitted_low=1.8, fitted_why="")
    text = published_control.control_table(wrong)
    assert "3 models are, which only a leak explains," in text
    assert "does not hold it" in text
    assert "nan" not in text
    silent = frame.assign(fitted_why="any E below 2 fits", without_budget_why="any E fits")
    text = published_control.control_table(silent)
    assert "does not say E: any E below 2 fits." in text
    assert text.count("| 8 | not estimable: any E fits | – |") == 3
