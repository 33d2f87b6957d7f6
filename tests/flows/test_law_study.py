"""The published grid: its rows, what laws name before students are trained, and what came of it."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from texts import write_text

from capgap_core import law_study as study
from flows import law_study, results


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run every command on a grid of a few seconds; return the files that it has written."""
    folder = tmp_path_factory.mktemp("study")
    text = write_text(folder, documents=1500)
    readme = folder / "README.md"
    readme.write_text("<!-- law_study:begin -->\n<!-- law_study:end -->\n", encoding="utf8")
    files = {name: folder / f"{name}.parquet" for name in ("MODELS", "NAMED", "FINDINGS")}
    words = ["--data", str(text), "--root", str(folder / "art"), "--threads", "1"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("TEACHERS", (3e3, 6e3)), ("STUDENTS", (3e3,)), ("HELD_OUT", (6e3,)), ("BUDGETS", (2.0,)),
                            ("TEACHER_TOKENS", 12.0), ("SEEDS", (1, 2)), ("MEASURED", 20)):  # fmt: skip
            patch.setattr(study, name, value)
        for name, path in files.items():
            patch.setattr(law_study, name, path)
        patch.setattr(results, "README", readme)
        assert law_study.main(["test", *words]) == 2, "before a law has named anything"
        assert law_study.main(["name"]) == 2, "before there is a grid"
        assert law_study.main(["find"]) == 2, "before there is a grid"
        assert law_study.main(["run", *words]) == 0
        shutil.copy(files["MODELS"], folder / "before.parquet")
        assert law_study.main(["name"]) == 0
        assert law_study.main(["test", *words]) == 0
        found = files["FINDINGS"].read_bytes()
        files["FINDINGS"].unlink()
        assert law_study.main(["find"]) == 0
        assert files["FINDINGS"].read_bytes() == found, "nothing was trained again, and the same is found"
        assert law_study.main(["table"]) == 0
        assert law_study.main(["table", "--check"]) == 0
    return {**files, "before": folder / "before.parquet", "readme": readme}


def test_each_model_has_a_row_with_its_identity(made: dict[str, Path]) -> None:
    frame = pd.read_parquet(made["MODELS"])
    assert sorted(frame["kind"].value_counts().items()) == [("grid", 2 + 1 * 3 * 2), ("held out", 1 * 3 * 2)]
    assert frame["identity"].is_unique
    assert (frame["n"] > 0).all()
    assert frame[["nats", "seconds", "code", "tokens_per_parameter"]].notna().all().all()
    assert set(frame["dataset"]) == {"text.jsonl"}
    assert frame["nats_books"].isna().all(), "no source of this text is a book"
    assert frame["nats_others"].notna().all()
    before = pd.read_parquet(made["before"])
    pd.testing.assert_frame_equal(before, frame[frame["kind"] == "grid"].reset_index(drop=True), check_dtype=False)


def test_laws_name_teachers_before_students_are_trained(made: dict[str, Path]) -> None:
    named = pd.read_parquet(made["NAMED"])
    largest = named[named["law"] == "largest teacher"]
    assert list(largest["teacher"]) == [2992.0, 5968.0]
    assert list(largest["taken"]) == [False, True]
    assert largest["predicted"].notna().all()
    assert set(named["student"]) == {5968.0}
    assert named[named["law"] == "power"]["why_not"].notna().all()


def test_what_came_of_it_is_judged_against_what_was_named(made: dict[str, Path]) -> None:
    found = pd.read_parquet(made["FINDINGS"])
    judged = found[(found["what"] == "held out") & (found["law"] == "largest teacher")].iloc[0]
    named = pd.read_parquet(made["NAMED"])
    said: Any = named[(named["law"] == "largest teacher")].set_index("teacher")["predicted"]
    frame = pd.read_parquet(made["MODELS"])
    own = frame[(frame["kind"] == "held out") & frame["teacher"].notna()]
    missed = own["nats"] - own["teacher"].map(said)
    assert judged["loss_error"] == pytest.approx(float((missed**2).mean() ** 0.5))
    means = own.groupby("teacher")["nats"].mean()
    assert judged["regret"] == pytest.approx(means[5968] - means.min())
    shown = made["readme"].read_text(encoding="utf8")
    assert "Students that were trained after the laws had named their teachers" in shown
    assert f"| largest teacher | 1 of 1 | {judged['regret']:.4f} ± " in shown
    assert "too few teachers" in shown


def test_the_published_tables_are_what_the_readme_shows() -> None:
    if not law_study.MODELS.is_file():
        pytest.skip("no grid is published")
    assert law_study.main(["table", "--check"]) == 0
