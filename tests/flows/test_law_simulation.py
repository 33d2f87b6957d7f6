"""The simulation of the laws as a command: what it publishes, and what the README shows of it."""

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from capgap_core import published_law
from flows import law_simulation, results


def test_every_interval_is_a_row_and_other_sources_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "law_simulation.parquet"
    monkeypatch.setattr(law_simulation, "PUBLISHED", file)
    assert law_simulation.main(["run", "--grids", "3", "--sources", "straight", "power"]) == 0
    first = pq.read_table(file).to_pandas()
    assert set(first["source"]) == {"straight", "power"}
    assert len(first[first["source"] == "straight"]) == 3
    assert law_simulation.main(["run", "--grids", "2", "--sources", "straight"]) == 0
    again = pq.read_table(file).to_pandas()
    assert len(again[again["source"] == "straight"]) == 2
    pd.testing.assert_frame_equal(
        again[again["source"] == "power"].reset_index(drop=True),
        first[first["source"] == "power"].reset_index(drop=True),
    )


def test_the_table_counts_what_intervals_hold() -> None:
    rows = [
        {"source": "straight", "quantity": "slope", "grid": i, "truth": 2.0, "value": 2.0, "low": 1.9, "high": high}
        for i, high in enumerate([2.1, 2.1, 2.1, 1.95])
    ]
    table = published_law.coverage_table(pd.DataFrame(rows))
    assert "| straight | slope | 4 | 0.750 (0.301 to 0.954) | 10.0% | 100% |" in table
    open_ended = [{**row, "high": float("inf") if row["grid"] else 2.1} for row in rows]
    assert "| no end | 25% |" in published_law.coverage_table(pd.DataFrame(open_ended))
    wide = [{**row, "high": 50.0} for row in rows]
    assert "| over 10 times | 100% |" in published_law.coverage_table(pd.DataFrame(wide))


def test_the_readme_shows_what_is_published() -> None:
    held = published_law.coverage_table(pq.read_table(law_simulation.PUBLISHED).to_pandas())
    text = results.README.read_text(encoding="utf8")
    assert results.with_table(text, held, name="law_simulation") == text


@pytest.mark.parametrize("wrong", [["--sources", "moon"], ["--grids", "0"], ["--grids", "many"]])
def test_what_cannot_be_simulated_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        law_simulation.main(["run", *wrong])
    assert stopped.value.code == 2
    assert wrong[1] in capsys.readouterr().err
