"""The flow of MixKD against a real Prefect server: its result, its report, and that nothing is made twice."""

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def asked(tiny: dict[str, Any], root: Path) -> dict[str, Any]:
    shared = {name: tiny[name] for name in ("dataset", "data", "teacher_recipe", "evaluate")}
    arms = {"arms": ["kd", "mixkd"], "fractions": [1.0, 0.8], "student": {"epochs": 0.2}}
    return {**shared, **arms, "run": {"root": str(root), "threads": 1}}


@pytest.fixture(scope="module")
def result(prefect_server: str, first: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    from flows.mixkd import mixkd

    assert prefect_server
    return mixkd(**asked)


def test_it_shares_its_first_stages_with_other_methods(result: dict[str, Any], first: dict[str, Any]) -> None:
    own, other = ({s["stage"]: s for s in run["stages"]} for run in (result, first))
    for stage in ("data", "teacher"):
        assert own[stage]["identity"] == other[stage]["identity"]
        assert own[stage]["reused"]


def test_it_ends_with_the_result_that_scripts_read(result: dict[str, Any], first: dict[str, Any], root: Path) -> None:
    assert set(first) <= set(result)
    assert (result["flow"], result["status"], result["error"]) == ("mixkd", "completed", None)
    assert set(result["scores"]) == {"teacher", *(n + s for n in ("kd", "kd_tokens", "mixkd") for s in ("", " 0.8"))}
    assert json.loads((root / "runs" / result["run_id"] / "result.json").read_text())["arms"] == result["arms"]
    report = Path(result["paths"]["report"]).read_text(encoding="utf8")
    assert report.startswith("# MixKD")
    assert "not shown" in report
    assert Path(result["paths"]["student"], "config.json").is_file()


def test_again_nothing_is_made(result: dict[str, Any], asked: dict[str, Any]) -> None:
    from flows.mixkd import mixkd
    from flows.present import table

    again = mixkd(**asked)
    assert all(stage["reused"] for stage in again["stages"])
    assert again["steps_trained"] == 0
    for role in result["scores"]:
        assert role in table(again)
