"""The grid of a law as a chain of stages: every model once, what is new alone, and what the losses allow to be said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from texts import WORDS, text_recipe, write_text

from capgap_core import law, law_findings, report_law, tables
from capgap_core.build import build
from capgap_core.errors import StageFailed
from capgap_core.ladder import Ladder
from capgap_core.laws import simulate
from capgap_core.laws.fits import fits_of
from capgap_core.lm_recipes import LmObjective
from capgap_core.progress import Silent
from capgap_core.recipes import Execution
from capgap_core.recipes_law import LmTraining
from capgap_core.records import Reference
from capgap_core.stages import law as law_stage

LADDER = Ladder(teachers=(1.3e4, 2.5e4), students=(3e3, 7e3), teacher_tokens=0.5, budgets=(0.5, 1.0), seeds=(1,))


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> law.Grid:
    root = tmp_path_factory.mktemp("grid")
    return law.Grid(
        text=text_recipe(root, write_text(root, documents=300)), ladder=LADDER,
        training=LmTraining(length=32, batch_size=32), objective=LmObjective(),
        execution=Execution(root=str(root), threads=1),
        dataset="text", command="capgap run law",
    )  # fmt: skip


class Calls:
    """Makes stages, and remembers what was made anew."""

    def __init__(self) -> None:
        self.made: list[tuple[str, str, Reference]] = []

    def __call__(self, stage: str, recipe: Any, inputs: Any, *, role: str, execution: Execution) -> Reference:
        made = build(stage, recipe, inputs, execution=execution, progress=Silent())
        self.made.append((stage, role, made))
        return made

    @property
    def new(self) -> list[str]:
        return [role or stage for stage, role, made in self.made if not made.reused]


@pytest.fixture(scope="module")
def first(grid: law.Grid) -> tuple[Reference, Calls]:
    calls = Calls()
    return law.fill(grid, calls), calls


def test_every_model_is_trained_once_and_has_its_row(first: tuple[Reference, Calls]) -> None:
    made, calls = first
    assert len(calls.new) == len(calls.made) == 1 + 2 + 2 * 2 * 3 + 1
    rows = tables.read(made.table("cells"))
    assert [row["role"] for row in rows].count("teacher") == 2
    students = [row for row in rows if row["role"] == "student"]
    assert len(students) == 12
    assert len({row["identity"] for row in rows}) == len(rows)
    assert {row["teacher"] for row in students} == {None, *(row["parameters"] for row in rows[:2])}
    held = {row["parameters"]: row["nats"] for row in rows[:2]}
    for row in students:
        assert row["teacher_nats"] == held.get(row["teacher"])
        assert row["tokens"] in {round(budget * row["parameters"]) for budget in LADDER.budgets}


def test_a_size_more_trains_only_its_own_cells(grid: law.Grid, first: tuple[Reference, Calls]) -> None:
    again, more = Calls(), Calls()
    assert law.fill(grid, again) == first[0].model_copy(update={"reused": True, "why": "finished before"})
    assert again.new == []
    wider = LADDER.model_copy(update={"students": (*LADDER.students, 3e4)})
    law.fill(law.Grid(**{**vars(grid), "ladder": wider}), more)
    new = [role for role in more.new if role != "law"]
    assert len(new) == 2 * 3
    assert all(role.startswith("27.8k") for role in new)


def test_teachers_that_are_limited_by_data_are_in_no_fit(first: tuple[Reference, Calls]) -> None:
    made, _ = first
    assert all(row["data_limited"] for row in tables.read(made.table("cells")) if row["role"] == "teacher")
    assert tables.read(made.table("optima")) == []
    report = (made.folder / "report.md").read_text(encoding="utf8")
    assert "Limited by data, and in no fit" in report
    assert "No law of the best teacher can be estimated" in report
    assert first[0].summary["powers"] == []


def rows_of(cells: Any, alone: Any) -> list[dict[str, Any]]:
    """Rows of the table ``cells`` for a simulated grid."""
    facts = {"stderr": 0.001, "bits_per_byte": None, "unique_tokens": 1, "epochs": 1.0, "data_limited": False}
    rows = [
        {
            **facts,
            "role": "student",
            "parameters": int(s),
            "tokens": int(d),
            "teacher": int(t),
            "seed": int(r),
            "nats": float(x),
            "teacher_nats": float(y),
            "tokens_per_parameter": d / s,
            "identity": f"{i}",
        }
        for i, (s, d, t, r, x, y) in enumerate(
            zip(cells.student, cells.tokens, cells.teacher, cells.seed, cells.loss, cells.teacher_loss, strict=True)
        )
    ]
    rows += [
        {
            **facts,
            "role": "teacher" if n in set(cells.teacher) else "student",
            "parameters": int(n),
            "tokens": int(d),
            "teacher": None,
            "seed": None,
            "nats": float(x),
            "teacher_nats": None,
            "tokens_per_parameter": d / n,
            "identity": f"alone {i}",
        }
        for i, (n, d, x) in enumerate(zip(alone.parameters, alone.tokens, alone.loss, strict=True))
    ]
    return rows


def test_a_teacher_is_limited_by_the_tokens_that_it_was_given(tmp_path: Path) -> None:
    text = tmp_path / "short.jsonl"
    words = [f"{first} {second}" for first in WORDS for second in WORDS]
    text.write_text("".join(json.dumps({"text": f"{one} {i}"}) + "\n" for i in range(5) for one in words))
    asked = law.Grid(
        text=text_recipe(tmp_path, text), ladder=Ladder(teachers=(3e3,), students=(3e3,), budgets=(0.1,), seeds=(1,)),
        training=LmTraining(length=64, batch_size=128), objective=LmObjective(),
        execution=Execution(root=str(tmp_path), threads=1), dataset="text", command="capgap run law",
    )  # fmt: skip
    teacher = tables.read(law.fill(asked, Calls()).table("cells"))[0]
    assert teacher["tokens"] == 10 * teacher["parameters"]
    assert teacher["tokens_per_parameter"] < 9.9, "the first token of each document is no target"
    assert not teacher["data_limited"]


def test_a_part_of_one_row_is_refused_since_it_has_no_error(tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path, write_text(tmp_path, documents=60), tokenizer="trained", vocabulary=400)
    asked = law.Grid(
        text=recipe, ladder=LADDER, training=LmTraining(length=64), objective=LmObjective(),
        execution=Execution(root=str(tmp_path), threads=1), dataset="text", command="capgap run law",
    )  # fmt: skip
    calls = Calls()
    with pytest.raises(StageFailed, match="tokens: not two rows of 64"):
        law.fill(asked, calls)
    assert calls.new == ["text"]


def test_rows_give_the_grid_back() -> None:
    cells, alone = simulate.apple_grid(simulate.SMALL, np.random.default_rng(0))
    rows = rows_of(cells, alone)
    again, free = law_findings.grid_of(rows)
    assert len(again) == len(cells)
    assert again.loss == pytest.approx(cells.loss)
    assert len(free) == len(alone)
    assert free.teaches.sum() == 6
    limited = [{**row, "data_limited": row["teacher"] == int(cells.teacher[0])} for row in rows]
    assert len(law_findings.grid_of(limited)[0]) == len(cells) * 5 // 6
    assert law_findings.monotone(rows)
    worse = [{**row, "nats": 9.0} if row["role"] == "teacher" and row["parameters"] > 5e9 else row for row in rows]
    assert not law_findings.monotone(worse)


def test_the_report_says_what_is_estimable_and_what_is_confounded() -> None:
    held = {
        "budget": 100.0,
        "power": "estimable",
        "exponent": [1.02, 0.9, 1.1],
        "ratio": [2.4, 2.0, 2.9],
        "students": 6,
    }
    summary = {"monotone": False, "bracketed": 6, "powers": [held], "apple": "1 of 2 token budgets"}
    optimum = {
        "student": 1e5,
        "tokens": 1e7,
        "found": "bracketed",
        "teacher": 2.4e5,
        "low": 2e5,
        "high": 3e5,
        "loss": 1.5,
    }
    row = {
        "role": "student",
        "parameters": 100000,
        "tokens": 10000000,
        "teacher": None,
        "seed": 1,
        "nats": 1.6,
        "stderr": 0.01,
        "teacher_nats": None,
        "data_limited": False,
        "epochs": 1.0,
        "tokens_per_parameter": 100.0,
    }
    judged = {"law": "power", "why_not": None, "regret": 0.01, "regret_error": 0.002, "loss_error": 0.03}
    facts = report_law.Facts(
        dataset="pysource",
        command="capgap run law",
        n=1000,
        rows=[row, {**row, "teacher": 240000, "nats": 1.5}],
        optima=[optimum],
        rivals=[judged, {**judged, "law": "apple", "why_not": "too few"}],
        summary=summary,
    )
    text = report_law.compose(facts, {})
    assert "Larger teachers do not always lose less" in text
    assert "Students on 100 tokens a parameter: **T* grows as S to the power 1.02 (0.90 to 1.10)" in text
    assert "T* = 2.40 (2.00 to 2.90) S" in text
    assert "| 100k | 10M | 1.6000 | 1.5000 | 240k (200k to 300k) |" in text
    assert "| power | 1 of 1 | 0.0100 ± 0.0020 | 0.0300 |" in text
    assert "not estimable: too few" in text
    unknown = {**facts, "rivals": [{**judged, "regret_error": None}]}
    assert "| power | 1 of 1 | 0.0100 ± unknown |" in report_law.compose(unknown, {})
    assert "over 4 epochs" not in text
    assert "Alone, without any teacher" not in text
    often = [{**one, "epochs": 4.5, "data_limited": True, "nats": 1.5} for one in facts["rows"]]
    said = report_law.compose({**facts, "rows": often, "rivals": []}, {})
    assert "in no fit: students of 100k on 10M (over 4 epochs)." in said
    assert "Alone, without any teacher, students lose no more than with the best one: 100k on 10M." in said
    assert "No student could be left out: no cell is in a fit." in said
    assert "They are no law" in text
    assert "They are no law" not in report_law.compose({**facts, "dataset": "books"}, {})


@pytest.mark.parametrize("grid", [simulate.SMALL])
def test_a_grid_is_drawn_with_what_it_allows(grid: Any, tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    cells, alone = simulate.apple_grid(grid, np.random.default_rng(0))
    fits = fits_of(cells, alone, teacher_tokens=20.0, bootstraps=5)
    figures = law_stage._figures(fits)
    assert set(figures) == {"losses", "teachers", "residuals", "surface"}
    few = cells.where(cells.teacher <= np.sort(np.unique(cells.teacher))[2])
    assert set(law_stage._figures(fits_of(few, alone, teacher_tokens=20.0))) == {"losses", "teachers"}
    nothing = cells.where(cells.teacher < 0)
    assert law_stage._figures(fits_of(nothing, alone, teacher_tokens=20.0)) == {}
    for name, png in figures.items():
        assert png.startswith(b"\x89PNG")
        assert len(png) < report_law.LARGEST
        (tmp_path / f"{name}.png").write_bytes(png)
