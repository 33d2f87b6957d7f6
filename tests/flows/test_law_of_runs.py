"""The flow of the law on a finished run of minidisc: nothing is trained, and a run's id is name enough."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def result(first: dict[str, Any], root: Path) -> dict[str, Any]:
    from flows.law import law

    return law(references=(first["run_id"][:13],), run={"root": str(root), "threads": 1})


def test_a_run_is_named_by_its_id_and_gives_its_cell(result: dict[str, Any], first: dict[str, Any]) -> None:
    assert (result["flow"], result["status"], result["steps_trained"]) == ("law", "completed", 0)
    assert set(first) - {"constant", "differences", "best_scale"} <= set(result)
    assert [stage["stage"] for stage in result["stages"]] == ["assistants"]
    whose = f"0.2 of {first['chosen_scale']:g}"
    metric = first["metric"]
    assert result["scores"] == {
        whose: {metric: first["scores"]["student"][metric]},
        "0.2 of the teacher": {metric: first["scores"]["direct"][metric]},
    }
    assert "No law of the best assistant can be estimated" in " ".join(result["says"])


def test_its_page_and_its_table_say_the_same(result: dict[str, Any], first: dict[str, Any]) -> None:
    from flows.present import table

    page = Path(result["paths"]["report"]).read_text(encoding="utf8")
    assert page.startswith("# Which assistant a student wants: tiny.csv")
    assert first["run_id"][:13] in page, "the command that asks again"
    shown = table(result)
    assert f"0.2 of {first['chosen_scale']:g}" in shown
    assert "No law of the best assistant" in shown


def test_recommend_says_that_such_a_law_knows_no_tokens(
    result: dict[str, Any], root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import cli

    monkeypatch.setenv("CAPGAP_ARTIFACTS", str(root))
    for name in (result["run_id"], result["paths"]["law"]):
        assert cli.main(["recommend", "--student", "10k", "--tokens", "1M", "--from", name]) == 2
        said = capsys.readouterr().err
        assert "is a law of assistants" in said
        assert f"{result['paths']['law']}/report.md" in said
