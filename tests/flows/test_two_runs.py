"""Two commands that ask for the same run at once, each with a server of its own, in one store."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import builders
import pytest

REPO = Path(__file__).resolve().parents[2]
ASKED: dict[str, Any] = {**builders.TINY, "student": {"scale": 0.2, "epochs": 1, "controls": False}}


def both(root: Path, asked: Path) -> list[dict[str, Any]]:
    """Start two commands together; return what they print, after seeing that both end well."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    words = [sys.executable, "-m", "flows.cli", "run", "minidisc", "--params", str(asked), "--json"]
    words += ["-p", f"run.root={root}"]
    begun = [subprocess.Popen(words, cwd=REPO, env=own, stdout=-1, stderr=-1, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300) for process in begun]
    assert [process.returncode for process in begun] == [0, 0], said
    return [json.loads(out) for out, _ in said]


@pytest.mark.slow
def test_each_stage_is_made_once_and_both_end_with_it_ten_times(tmp_path: Path) -> None:
    asked = tmp_path / "asked.json"
    asked.write_text(json.dumps({**ASKED, "dataset": str(builders.single_csv(tmp_path)), "run": {"threads": 1}}))
    for number in range(10):
        one, other = both(tmp_path / f"store {number}", asked)
        assert one["scores"] == other["scores"]
        for ours, theirs in zip(one["stages"], other["stages"], strict=True):
            assert [ours["reused"], theirs["reused"]].count(False) == 1
            assert (ours["path"], ours["digest"]) == (theirs["path"], theirs["digest"])
            assert json.loads(Path(ours["path"], "record.json").read_text())["attempts"] == 1
