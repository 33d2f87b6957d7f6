"""Who is asked what in a whole run: each teacher once, whatever learns from it, and never where that is not wanted."""

from pathlib import Path
from typing import Any

import builders
import pytest

from capgap_core import chain, garbage, tables, targets
from capgap_core.batches import Batch
from capgap_core.outcome import Outcome
from capgap_core.recipes import Minidisc


def run(folder: Path, **changes: dict[str, Any]) -> Outcome:
    here = {"dataset": str(builders.single_csv(folder)), "run": {"root": str(folder / "art"), "threads": 1}}
    asked: dict[str, Any] = {**builders.TINY, **here}
    for name, fields in changes.items():
        asked[name] = {**asked[name], **fields}
    p = Minidisc.model_validate(asked)
    return chain.minidisc(**{name: getattr(p, name) for name in asked})


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which every batch that a teacher is asked about adds its examples."""
    seen: list[int] = []
    real = targets.live

    def live(*args: Any, **others: Any) -> targets.Ask:
        ask = real(*args, **others)

        def counted(batch: Batch) -> targets.Target:
            seen.append(len(batch.index))
            return ask(batch)

        return counted

    monkeypatch.setattr(targets, "live", live)
    return seen


def rows_of(outcome: Outcome) -> int:
    data = next(s for s in outcome.result["stages"] if s["stage"] == "data")
    return len(tables.read(Path(data["path"]) / "train.parquet"))


def test_each_teacher_is_asked_about_each_example_once(tmp_path: Path, asked_for: list[int]) -> None:
    """The teacher for the sandwich and both controls, the assistant for the student; another run asks nobody."""
    rows = rows_of(run(tmp_path))
    assert sum(asked_for) == 2 * rows
    assert len(list((tmp_path / "art" / "targets").iterdir())) == 2
    asked_for.clear()
    again = run(tmp_path, student={"learning_rate": 2e-3, "epochs": 3.0, "batch_size": 8})
    assert again.result["steps_trained"] > 0
    assert asked_for == []
    assert [item for item in garbage.find(tmp_path / "art") if item.kind == "outputs"] == []


def test_live_teachers_are_asked_at_every_step_and_nothing_is_kept(tmp_path: Path, asked_for: list[int]) -> None:
    live = {"outputs": "live"}
    rows = rows_of(run(tmp_path, sandwich=live, student=live))
    assert sum(asked_for) > 2 * rows
    assert not (tmp_path / "art" / "targets").exists()


def test_outputs_that_do_not_fit_are_not_kept(tmp_path: Path, asked_for: list[int]) -> None:
    small = {"outputs_gb": 1e-6}
    run(tmp_path, sandwich=small, student=small)
    assert not (tmp_path / "art" / "targets").exists()
    run(tmp_path, sandwich={**small, "outputs": "float32"}, student=small)
    assert len(list((tmp_path / "art" / "targets").iterdir())) == 1, "what was asked for by name is"
    assert asked_for


def test_a_student_that_sees_its_assistants_examples_once_asks_live(tmp_path: Path, asked_for: list[int]) -> None:
    run(tmp_path, student={"epochs": 0.5})
    assert len(list((tmp_path / "art" / "targets").iterdir())) == 1, "the teacher's own"
