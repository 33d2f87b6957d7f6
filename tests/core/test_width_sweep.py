"""The sweep over widths and rates: its rows, and what its table says."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from texts import write_text

from capgap_core import preflight, width_sweep
from capgap_core.chain import in_this_process
from capgap_core.progress import Silent
from flows import width_sweep as command


def test_every_width_learns_at_every_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WIDTHS", (16, 32)), ("RATES", (0.02, 0.01)), ("STEPS", 3), ("SEEDS", (1,))):
        monkeypatch.setattr(width_sweep, name, value)
    asked: dict[str, Any] = {
        "dataset": str(write_text(tmp_path)), "training": {"length": 16, "batch_size": 8, "held_out_rows": 4},
        "run": {"root": str(tmp_path / "art"), "threads": 1},
    }  # fmt: skip
    rows = list(width_sweep.follow(preflight.check(asked, flow="law"), in_this_process(Silent())))
    assert [(row["width"], row["learning_rate"]) for row in rows] == [(16, 0.02), (16, 0.01), (32, 0.02), (32, 0.01)]
    assert len({row["identity"] for row in rows}) == 4
    for row in rows:
        assert row["parameters"] == width_sweep.shape_of(row["width"]).parameters()


def test_a_rule_is_judged_at_its_best_number() -> None:
    """Widths whose best rate is 0.32 / width, each double or half of it losing 0.1."""
    rows = [
        {"width": w, "learning_rate": r, "seed": s, "steps": 250, "nats": 2 + 0.1 * abs(i - j) + 0.002 * s}
        for i, w in enumerate((16, 32, 64))
        for j, r in enumerate((0.02, 0.01, 0.005))
        for s in (0, 1)
    ]
    said = width_sweep.readme_table(pd.DataFrame(rows))
    assert "| 16 | 2.201 | 2.101 | **2.001** | 0.02 |" in said
    assert "| 64 | **2.001** | 2.101 | 2.201 | 0.005 |" in said
    assert "One rate for all widths, 0.01: 0.067 nats beyond each width's own best on average, 0.100 at most." in said
    assert "0.005 x 64 / width: 0.000 nats beyond each width's own best on average, 0.000 at most." in said


def test_the_published_table_is_what_the_readme_shows() -> None:
    if not command.PUBLISHED.is_file():
        pytest.skip("no sweep is published")
    assert command.main(["table", "--check"]) == 0
