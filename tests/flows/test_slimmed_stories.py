"""The slimmed language model as a command: what it publishes, and what the README shows of it."""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from capgap_core import published_lm
from flows import results, slimmed_stories


def rows_of(seed: int, *, distilled: float = 1.7) -> list[dict[str, Any]]:
    nats = {"teacher": 1.4, "slimmed": 4.5, "trained": 1.8, "distilled": distilled}
    facts = {"dataset": "own", "seed": seed}
    return [
        {**facts, "role": role, "nats": value + seed / 100, "non_embedding": 200 if role == "teacher" else 100 + seed}
        for role, value in nats.items()
    ]


def test_a_seed_replaces_its_rows_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "slimmed_lm.parquet"
    monkeypatch.setattr(slimmed_stories, "PUBLISHED", file)
    for rows in (rows_of(2), rows_of(1), rows_of(2, distilled=1.6)):
        slimmed_stories.publish(pd.DataFrame(rows))
    held = pq.read_table(file).to_pandas()
    assert list(held["role"]) == [role for role in published_lm.ARMS for _ in range(2)]
    assert list(held[held["role"] == "distilled"]["nats"]) == pytest.approx([1.71, 1.62])


def test_the_table_has_each_arm_and_the_paired_difference() -> None:
    frame = pd.DataFrame([row for seed in (1, 2, 3) for row in rows_of(seed, distilled=1.7 + seed / 100)])
    lines = published_lm.arms_table(frame).splitlines()
    assert lines[2].startswith("| the whole model | 200 | 1.420 (1.395 to 1.445) | +0.320 (+0.295 to +0.345) |")
    assert lines[3].startswith("| slimmed | 101 to 103 | 4.520 ")
    assert lines[5].startswith("| slimmed, then distilled | 101 to 103 | 1.740 ")
    assert lines[5].endswith("| – |")


def test_the_readme_shows_what_is_published() -> None:
    held = published_lm.arms_table(pq.read_table(slimmed_stories.PUBLISHED).to_pandas())
    text = results.README.read_text(encoding="utf8")
    assert results.with_table(text, held, name="slimmed_stories") == text


def test_weights_that_are_not_there_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["run", "--weights", str(tmp_path), "--root", str(tmp_path / "art")]
    assert slimmed_stories.main(given) == 2
    assert "stories260K.bin" in capsys.readouterr().err
