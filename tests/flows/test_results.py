"""The published file holds every finished run, and the README shows what the file holds."""

import importlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from capgap_core.outcome import Outcome
from capgap_core.published import rows
from capgap_core.recipes import Minidisc
from capgap_core.records import Reference
from flows import results

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
SCORES = {"teacher": 0.87, "assistant": 0.86, "student": 0.82, "direct": 0.81, "direct_flops": 0.80, "slimmed": 0.7}


def reference(stage: str, folder: Path, code: str, **summary: Any) -> Reference:
    return Reference(stage=stage, identity=f"{stage}1", code=code, digest="d", path=str(folder), summary=summary)


def outcome(p: Minidisc, folder: Path, *, code: str = "c") -> Outcome:
    """An outcome whose numbers go by the seed."""
    (folder / "report.md").write_text("# report\n", encoding="utf8")
    made = [("", reference("data", folder, code, rows={"train": 100}))]
    made += [("candidate" if role == "assistant" else role, reference("evaluate", folder, code)) for role in SCORES]
    made.append(("", reference("report", folder, code)))
    stages = [
        {**r.model_dump(include={"stage", "identity", "code", "seconds", "path"}), "role": role} for role, r in made
    ]
    scores = {role: {"accuracy": value + p.seed / 1000} for role, value in SCORES.items()}
    measured = [role for role in SCORES if role != "slimmed"]
    sizes = {role: {"parameters": 100, "non_embedding": 10, "flops": 10**6, "length": 128} for role in measured}
    result = {
        "metric": "accuracy", "split": "dev", "n": 872, "scores": scores, "chosen_scale": 0.3, "stages": stages,
        "sizes": sizes, "paths": {"student": str(folder), "report": str(folder)},
    }  # fmt: skip
    return Outcome(result=result, stages=tuple(made))


@pytest.fixture
def asked(tmp_path: Path) -> list[tuple[str, Minidisc]]:
    return results.asked_for(tmp_path / "d", tmp_path / "t", tmp_path / "art", sets=["sst-2", "mrpc"], seeds=[1, 2])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "published" / "minidisc.parquet"


def seen(file: Path) -> set[tuple[str, int]]:
    frame = pq.read_table(file).to_pandas()
    return set(zip(frame["dataset"], frame["seed"], strict=True))


def test_runs_alternate_between_the_sets_and_only_sst_2_is_cut(asked):
    assert [(name, p.seed) for name, p in asked] == [("sst-2", 1), ("mrpc", 1), ("sst-2", 2), ("mrpc", 2)]
    assert [p.data.train_rows for _, p in asked] == [10_000, None, 10_000, None]
    changed = asked[1][1].model_dump(exclude={"dataset", "teacher", "run"}, exclude_defaults=True)
    assert changed == {}, "everything else is at its default"


def test_hand_made_runs_reach_the_readme_and_a_changed_digit_is_seen(asked, file, tmp_path, capsys):
    results.make_all(asked, file, lambda p: outcome(p, tmp_path))
    frame = pq.read_table(file).to_pandas()
    assert len(frame) == len(asked) * len(SCORES)
    assert {"identity", "code"} <= set(frame.columns)
    assert set(frame["dataset"]) == {"sst-2", "mrpc"}
    assert str(tmp_path) not in frame.to_csv() + str(pq.read_schema(file).metadata)
    held = [json.loads((results._folder(*one) / "result.json").read_text()) for one in asked]
    pd.testing.assert_frame_equal(frame, rows([results.run_of(r) for r in held]), check_dtype=False)

    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nnothing\n{END}\nafter\n", encoding="utf8")
    assert results.show_table(file, readme, check=True) == 1
    assert results.show_table(file, readme, check=False) == 0
    assert results.show_table(file, readme, check=True) == 0
    text = readme.read_text(encoding="utf8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| sst-2 | 0.1 | accuracy | student | 0.8215 |" in text
    readme.write_text(text.replace("0.8215", "0.8216"), encoding="utf8")
    assert results.show_table(file, readme, check=True) == 1
    assert "does not show" in capsys.readouterr().err


def test_each_set_can_be_made_on_its_own(asked, file, tmp_path):
    results.make_all(asked[::2], file, lambda p: outcome(p, tmp_path))
    first = pq.read_table(file).to_pandas()
    results.make_all(asked[1::2], file, lambda p: outcome(p, tmp_path))
    both = pq.read_table(file).to_pandas()
    assert seen(file) == {("sst-2", 1), ("sst-2", 2), ("mrpc", 1), ("mrpc", 2)}
    pd.testing.assert_frame_equal(both[both["dataset"] == "sst-2"].reset_index(drop=True), first)
    results.make_all(asked[::2], file, lambda p: outcome(p, tmp_path))
    assert pq.read_schema(file).field("parameters").type == "int64"
    assert len(pq.read_table(file)) == len(both), "a set that is made again stands there once"


def test_the_whole_of_sst_2_is_a_set_of_its_own(tmp_path):
    names = ["sst-2", "sst-2-all"]
    few, every = results.asked_for(tmp_path / "d", tmp_path, tmp_path, sets=names, seeds=[1])
    assert few[1].dataset == every[1].dataset == str(tmp_path / "d" / "sst-2")
    assert (few[1].data.train_rows, every[1].data.train_rows) == (10_000, None)
    assert results._folder(*few) != results._folder(*every)


def test_an_interruption_loses_no_finished_run(asked, file, tmp_path):
    def until_mrpc_2(p: Minidisc) -> Outcome:
        if p.seed == 2 and p.dataset.endswith("mrpc"):
            raise KeyboardInterrupt
        return outcome(p, tmp_path)

    with pytest.raises(KeyboardInterrupt):
        results.make_all(asked, file, until_mrpc_2)
    three = {("sst-2", 1), ("mrpc", 1), ("sst-2", 2)}
    assert seen(file) == three
    results.make_all(asked[:1] + asked[2:], file, lambda p: outcome(p, tmp_path))
    assert seen(file) == {("sst-2", 1), ("sst-2", 2), ("mrpc", 2)}, "of seeds that were not asked for nothing is shown"
    sizes = []
    results.make_all(asked, file, lambda p: (sizes.append(len(seen(file))), outcome(p, tmp_path))[1])
    assert sizes == [3, 4, 4, 4]


def test_a_run_of_other_code_or_other_parameters_does_not_count(asked, file, tmp_path):
    results.make_all(asked, file, lambda p: outcome(p, tmp_path))
    results.make_all(asked[:1], file, lambda p: outcome(p, tmp_path, code="e"))
    assert seen(file) == {("sst-2", 1), ("mrpc", 1), ("mrpc", 2)}, "mrpc was not asked for"
    file.unlink()

    def stop_after_one(p: Minidisc) -> Outcome:
        if p.dataset.endswith("mrpc"):
            raise KeyboardInterrupt
        return outcome(p, tmp_path, code="e")

    with pytest.raises(KeyboardInterrupt):
        results.make_all(asked, file, stop_after_one)
    assert seen(file) == {("sst-2", 1)}
    other = [(name, p.model_copy(update={"teacher": "elsewhere"})) for name, p in asked]
    with pytest.raises(KeyboardInterrupt):
        results.make_all(other, file, stop_after_one)
    assert seen(file) == {("sst-2", 1)}


@pytest.mark.parametrize("text", ["none", f"{END} {BEGIN}", BEGIN * 2 + END])
def test_a_readme_without_its_markers_is_refused(text):
    with pytest.raises(ValueError, match="needs one"):
        results.with_table(text, "table")


def test_the_readme_has_a_place_for_the_table():
    results.with_table(results.README.read_text(encoding="utf8"), "table")


def test_the_readme_shows_what_is_published():
    if not results.PUBLISHED.is_file():
        pytest.skip("nothing is published yet: python -m flows.results run")
    assert results.show_table(results.PUBLISHED, results.README, check=True) == 0


@pytest.mark.parametrize(
    "name", ["checkpoints", "distillation", "quality", "stages", "loss_heads", "mixtures", "decoders"]
)
def test_the_readme_says_what_the_published_rows_say_of_speed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(__file__).resolve().parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    rows = pq.read_table(results.PROJECT / "artifacts" / "published" / "benchmarks.parquet").to_pandas()
    text, own = results.README.read_text(encoding="utf8"), rows[rows["benchmark"] == name]
    if own.empty:
        assert f"<!-- {name}:begin -->" not in text, "what is shown has no rows"
        return
    said = importlib.import_module(name).line(own)
    assert results.with_table(text, said, name=name) == text
