"""The control of the laws as a command: what is published, and what the README shows of it."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capgap_core import published_control
from capgap_core.laws.grid import NotEstimable
from flows import law_control, results


def test_the_readme_shows_what_is_published() -> None:
    frame = pq.read_table(law_control.PUBLISHED).to_pandas()
    text = results.README.read_text(encoding="utf8")
    assert results.with_table(text, published_control.control_table(frame), name="law_control") == text


def test_what_is_published_is_a_whole_grid_of_fresh_text_and_no_leak() -> None:
    frame = pq.read_table(law_control.PUBLISHED).to_pandas()
    assert len(frame) == len(frame.drop_duplicates(["parameters", "budget", "seed"])) >= 12
    assert (frame["epochs"] <= 1.0).all()
    assert frame["source_nats"].nunique() == 1
    assert published_control.below(frame) == 0
    again = published_control.irreducible(frame)
    assert not isinstance(again, NotEstimable)
    first = frame.iloc[0]
    for value, held in ((again.value, "fitted_e"), (again.low, "fitted_low"), (again.high, "fitted_high")):
        assert value == pytest.approx(first[held], abs=0.02)


def test_rows_are_published_when_all_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "law_control.parquet"
    monkeypatch.setattr(law_control, "PUBLISHED", file)
    made = pq.read_table(results.PROJECT / "artifacts" / "published" / "law_control.parquet").to_pandas()
    own = [name for name in made.columns if not name.startswith(("fitted_", "without_"))]
    rows = made[own].to_dict("records")
    fake = SimpleNamespace(rows=lambda *_, **__: iter(rows[::-1]))
    monkeypatch.setattr(law_control.importlib, "import_module", lambda _: fake)
    assert law_control.main(["run", "--root", str(tmp_path)]) == 0
    again = pq.read_table(file).to_pandas()
    pd.testing.assert_frame_equal(again[own], made[own])
    assert list(again.columns) == list(made.columns)
    pq.write_table(pa.Table.from_pandas(again.assign(fitted_e=9.0)), file)
    assert law_control.main(["fit"]) == 0
    pd.testing.assert_frame_equal(pq.read_table(file).to_pandas(), again)


def test_nothing_is_fitted_again_before_models_are_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(law_control, "PUBLISHED", tmp_path / "law_control.parquet")
    assert law_control.main(["fit"]) == 2
    assert "Run run first." in capsys.readouterr().err


def test_a_command_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        law_control.main(["run", "--sizes", "many"])
    assert stopped.value.code == 2
    assert "many" in capsys.readouterr().err
