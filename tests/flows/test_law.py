"""The flow of the law against a real Prefect server: its result, its report, and that nothing is made twice."""

import json
from pathlib import Path
from typing import Any

import pytest
from texts import write_text


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("law")
    return {
        "dataset": str(write_text(folder, documents=400)),
        "ladder": {"teachers": [3e3, 6e3, 1.26e4, 2.5e4], "students": [3e3, 6e3], "teacher_tokens": 0.3,
                   "budgets": [0.5], "seeds": [1]},
        "training": {"length": 16, "batch_size": 16, "held_out_rows": 20},
        "run": {"root": str(folder / "art"), "threads": 1},
    }  # fmt: skip


@pytest.fixture(scope="module")
def result(prefect_server: str, asked: dict[str, Any]) -> dict[str, Any]:
    from flows.law import law

    assert prefect_server
    return law(**asked)


def test_it_ends_with_the_result_that_scripts_read(
    result: dict[str, Any], first: dict[str, Any], asked: dict[str, Any]
) -> None:
    assert set(first) - {"constant", "differences"} <= set(result)
    assert (result["flow"], result["status"], result["error"]) == ("law", "completed", None)
    assert (result["metric"], result["split"]) == ("nats", "test")
    assert 0 < 320 - result["n"] <= 20, "the first token of a document is no target"
    teachers = {f"teacher {size}" for size in ("2.99k", "5.97k", "12.6k", "25.2k")}
    students = {
        f"{size} on {tokens} {whose}"
        for size, tokens in (("2.99k", "1.5k"), ("5.97k", "2.98k"))
        for whose in ("alone", *(name.replace("teacher", "of") for name in teachers))
    }
    assert set(result["scores"]) == teachers | students
    held = json.loads((Path(asked["run"]["root"]) / "runs" / result["run_id"] / "result.json").read_text())
    assert held["law"] == result["law"]


def test_its_report_says_that_such_a_grid_says_nothing(result: dict[str, Any]) -> None:
    report = Path(result["paths"]["report"]).read_text(encoding="utf8")
    assert report.startswith("# Which teacher a student wants: text.jsonl")
    assert "Limited by data, and in no fit" in report
    assert "No law of the best teacher can be estimated" in report
    assert "They are no law" not in report, "that is said of the embedded text"
    assert "capgap run law -p dataset=" in report
    assert result["says"][0].startswith("Larger teachers") or result["says"][0].startswith("Limited by data")


def test_again_nothing_is_made_and_a_student_more_makes_only_its_cells(
    result: dict[str, Any], asked: dict[str, Any]
) -> None:
    from flows.law import law
    from flows.present import table

    again = law(**asked)
    assert all(stage["reused"] for stage in again["stages"])
    shown = table(again)
    assert "5.97k on 2.98k of 25.2k" in shown
    assert f"{result['n']} tokens" in shown
    assert "parameters" not in shown.splitlines()[2], "columns in which nothing stands"
    more = law(**{**asked, "ladder": {**asked["ladder"], "students": [3e3, 6e3, 1.26e4]}})
    new = [stage["role"] for stage in more["stages"] if not stage["reused"] and stage["stage"] != "law"]
    assert len(new) == 1 + 4
    assert all(role.startswith("12.6k") for role in new)
    assert set(result["scores"]) < set(more["scores"])


def test_a_finished_grid_is_found_by_the_names_that_a_run_prints(result: dict[str, Any], asked: dict[str, Any]) -> None:
    from flows import grids

    root = Path(asked["run"]["root"])
    law = next(stage for stage in result["stages"] if stage["stage"] == "law")
    for what in (result["run_id"][:13], f"law/{law['identity'][:12]}", law["path"]):
        found = grids.find(what, root)
        assert len(found.fits.cells) == 0, "all its teachers are limited by their data"
        assert found.throughput is not None
        assert found.throughput > 0
