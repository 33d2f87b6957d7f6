"""The published ablation: what it asks for, how rows get into the file, and what the README shows of it."""

import argparse
import threading
from pathlib import Path
from typing import Any

import builders
import pandas as pd
import pyarrow.parquet as pq
import pytest

from capgap_core import preflight, published_mixkd
from capgap_core.errors import InputFaults
from capgap_core.recipes_mixkd import Mixkd
from flows import ablation, results


def given(tmp_path: Path, *more: str) -> argparse.Namespace:
    words = ["run", "--data", str(tmp_path / "data"), "--teacher", str(tmp_path / "t"), "--root", str(tmp_path / "art")]
    return ablation._parser().parse_args([*words, *more])


def rows(dataset: str, value: float, draws: int = 3) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "dataset": dataset, "teacher_rows": "all", "fraction": 0.1, "n_train": 800, "role": "student", "n": 100,
                "training": name, "arm": name, "draw": draw, "seed": 1, "value": value + draw / 100 + i / 50,
                "gap": 0.1, "calibration_error": 0.05, "metric": "accuracy", "trial": None, "teacher_value": 0.9,
                "constant": 0.5, "steps": 10,
            }
            for i, name in enumerate(("kd", "mixkd")) for draw in range(1, draws + 1)
        ]
    )  # fmt: skip


def test_every_arm_of_a_share_is_asked_for_alike(tmp_path: Path) -> None:
    asked = {f: Mixkd.model_validate(ablation.asked_for("sst-2", f, given(tmp_path))) for f in (0.01, 0.1, 1.0)}
    assert [p.student.batch_size for p in asked.values()] == [16, 32, 32]
    assert [p.student.epochs for p in asked.values()] == [15.0, 5.0, 2.0]
    for p in asked.values():
        assert p.arms == Mixkd().arms
        assert p.matched == Mixkd().matched
        assert p.data.train_rows == 8000
        assert p.evaluate == Mixkd().evaluate
    mnli = ablation.asked_for("mnli-sample", 0.1, given(tmp_path, "--teacher-rows", "same"))
    assert mnli["dataset"] == str(tmp_path / "data" / "mnli")
    assert mnli["data"]["splits"]["eval"] == "train_sample_heldout.jsonl.xz"
    assert mnli["teacher_rows"] == "same"


def test_several_publish_into_one_file_and_none_is_lost(tmp_path: Path) -> None:
    file = tmp_path / "mixkd.parquet"
    names = [f"set-{i}" for i in range(6)]
    threads = [threading.Thread(target=ablation.publish, args=(rows(name, 0.7), file)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(pq.read_table(file).to_pandas()["dataset"]) == set(names)
    assert pq.read_schema(file).field("steps").type == "int64"


def test_rows_reach_the_readme(tmp_path: Path) -> None:
    file, readme = tmp_path / "mixkd.parquet", tmp_path / "README.md"
    ablation.publish(rows("days", 0.7), file)
    readme.write_text("before\n<!-- ablation:begin -->\n<!-- ablation:end -->\nafter\n", encoding="utf8")
    assert results.show_table(file, readme, check=False, table=published_mixkd.readme_table, name="ablation") == 0
    assert "| KD | 0.720 (0.695 to 0.745) |" in readme.read_text(encoding="utf8")


def test_rows_that_wait_are_published_when_they_are_whole(tmp_path: Path) -> None:
    file = tmp_path / "mixkd.parquet"
    assert "published" in ablation.publish(rows("days", 0.7), file)
    assert "when all are there" in ablation.publish(rows("days", 0.8, draws=1), file)
    assert pq.read_table(file).to_pandas()["value"].max() < 0.8
    ablation.publish(rows("days", 0.8, draws=1), file, whole=True)
    assert len(pq.read_table(file)) == 2


def test_the_readme_shows_what_is_published() -> None:
    held = published_mixkd.readme_table(pq.read_table(ablation.PUBLISHED).to_pandas())
    text = results.README.read_text(encoding="utf8")
    assert results.with_table(text, held, name="ablation") == text


def test_a_wrong_path_is_one_message_and_no_traceback(tmp_path: Path, capsys: Any) -> None:
    words = ["run", "--data", str(tmp_path / "data"), "--teacher", str(tmp_path / "t"), "--root", str(tmp_path / "art")]
    assert ablation.main(words) == 2
    said = capsys.readouterr().err
    assert "dataset" in said
    assert "teacher" in said


def test_settings_that_are_not_published_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mixkd.parquet"
    ablation.publish(rows("days", 0.7), file)
    monkeypatch.setattr(ablation, "PUBLISHED", file)
    asked = {"dataset": str(builders.single_csv(tmp_path, 300)), "run": {"root": str(tmp_path / "art")}}
    checked = preflight.check(asked, flow="mixkd")
    with pytest.raises(InputFaults, match=r"--settings-of = 0.1: no trials .* finetune, finetune_tokens"):
        ablation.settings_of(0.1, "days", checked, ["alpha"])


@pytest.mark.parametrize("wrong", [["--fractions", "2"], ["--trials", "0"], ["--draws", "0"], ["--seeds", "-1"]])
def test_numbers_that_cannot_be_are_refused(tmp_path: Path, wrong: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        given(tmp_path, *wrong)
    assert stopped.value.code == 2
    assert wrong[0] in capsys.readouterr().err
