"""What a run will take is told before it, from real steps, and leaves nothing but the data stage."""

from pathlib import Path
from typing import Any

import builders
import lms
import pytest
from texts import write_text

from capgap_core import chain, law, mixkd, preflight, preview as previews
from capgap_core.preview import Preview
from capgap_core.progress import Silent
from capgap_core.recipes import Minidisc


def asked(folder: Path, **changes: Any) -> dict[str, Any]:
    here = {"dataset": str(builders.single_csv(folder)), "run": {"root": str(folder / "art"), "threads": 1}}
    return {**builders.TINY, **here, **changes}


def preview(given: dict[str, Any]) -> Preview:
    return previews.preview(preflight.check(given), Silent())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("previewed")


@pytest.fixture(scope="module")
def told(folder: Path) -> Preview:
    """Return the preview of a run, with nothing else in its store."""
    found = preview(asked(folder))
    assert [path.name for path in (folder / "art" / "store").iterdir()] == ["data"]
    assert not list((folder / "art").glob(".preview-*"))
    assert not (folder / "art" / "targets").exists()
    return found


@pytest.fixture(scope="module")
def ran(folder: Path, told: Preview) -> dict[str, Any]:
    """Return the result of the run that was told of."""
    assert told
    p = Minidisc.model_validate(asked(folder))
    return chain.minidisc(**{name: getattr(p, name) for name in asked(folder)}).result


def test_every_stage_of_the_run_is_told(told: Preview, ran: dict[str, Any]) -> None:
    stages = [(e.stage, e.role) for e in told.estimates]
    assert stages == [(s["stage"], s["role"]) for s in ran["stages"] if s["stage"] != "report"]
    # The control of equal FLOPs has as many steps as the plan says, which rests on a teacher that is not trained yet.
    assert sum(e.steps for e in told.estimates) == pytest.approx(ran["steps_trained"], rel=0.1)
    assert all(e.seconds > 0 for e in told.estimates)
    assert all(e.step_seconds > 0 for e in told.estimates if e.steps)


def test_what_the_teachers_outputs_take_is_told_once_for_each_teacher(
    folder: Path, told: Preview, ran: dict[str, Any]
) -> None:
    assert ran
    assert {e.role for e in told.estimates if e.outputs_seconds} == {"candidate", "student"}
    assert told.outputs_seconds == pytest.approx(sum(e.outputs_seconds for e in told.estimates))
    kept = sum(path.stat().st_size for path in (folder / "art" / "targets").rglob("*") if path.is_file())
    assert told.outputs_bytes == pytest.approx(kept, rel=0.2)
    assert told.live_step_seconds is not None


def test_a_run_that_keeps_nothing_says_so(tmp_path: Path) -> None:
    live = {"sandwich": {**builders.TINY["sandwich"], "outputs": "live"}}
    live["student"] = {**builders.TINY["student"], "outputs": "live", "controls": False}
    found = preview(asked(tmp_path, **live))
    assert (found.outputs_bytes, found.outputs_seconds, found.live_step_seconds, found.break_even) == (
        0,
        0.0,
        None,
        None,
    )


def test_a_data_set_that_is_larger_than_what_is_tried_is_scaled(
    folder: Path, told: Preview, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outputs are told to be as large as those of all rows, whatever part of them is tried."""
    monkeypatch.setattr(previews, "ROWS", {**previews.ROWS, "train": 40, "selection": 8, "evaluation": 8})
    part = preview(asked(folder))
    assert part.outputs_bytes == pytest.approx(told.outputs_bytes, rel=0.35)
    assert [e.steps for e in part.estimates] == pytest.approx([e.steps for e in told.estimates], rel=0.2)


def test_another_flow_is_told_of_too_with_each_share_of_its_rows(tmp_path: Path) -> None:
    names = ("data", "teacher_recipe", "evaluate")
    given = {
        **{name: builders.TINY[name] for name in names}, "dataset": str(builders.single_csv(tmp_path, 400)),
        "arms": ["kd", "mixkd", "mixkd_unlabelled"], "matched": ["epochs"], "fractions": [1.0, 0.5],
        "student": {"epochs": 1}, "unlabelled": str(tmp_path / "more.txt"),
        "run": {"root": str(tmp_path / "art"), "threads": 1},
    }  # fmt: skip
    (tmp_path / "more.txt").write_text("warm sun\n" * 50, encoding="utf8")
    checked = preflight.check(given, flow="mixkd")
    told = previews.preview(checked, Silent())
    ran = mixkd.follow(checked, chain.in_this_process(Silent())).result
    stages = [(e.stage, e.role) for e in told.estimates]
    assert stages == [(s["stage"], s["role"]) for s in ran["stages"] if s["stage"] != "ablation"]
    assert sum(e.steps for e in told.estimates) == ran["steps_trained"]


@pytest.mark.parametrize("begin", ["scratch", "slimmed"])
def test_a_law_is_told_of_model_by_model(begin: str, tmp_path: Path) -> None:
    others = {"given": [str(lms.folder_of(tmp_path / "own", "gpt2"))], "begin": begin} if begin == "slimmed" else {}
    given = {
        "dataset": str(write_text(tmp_path, documents=400)),
        "ladder": {
            "teachers": [3e3, 1.2e4], "students": [3e3], "teacher_tokens": 2, "budgets": [3], "seeds": [1, 2], **others
        },
        "training": {"length": 16, "batch_size": 16, "held_out_rows": 20},
        "run": {"root": str(tmp_path / "art"), "threads": 1},
    }  # fmt: skip
    checked = preflight.check(given, flow="law")
    told = previews.preview(checked, Silent())
    ran = law.follow(checked, chain.in_this_process(Silent())).result
    stages = [(e.stage, e.role) for e in told.estimates]
    assert stages == [(s["stage"], s["role"]) for s in ran["stages"] if s["stage"] != "law"]
    assert sum(e.steps for e in told.estimates) == ran["steps_trained"]
    assert told.outputs_bytes > 0
