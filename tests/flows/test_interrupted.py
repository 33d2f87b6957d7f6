"""A run that is asked to end while it trains keeps its state first, ends soon, and goes on from there."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from going import Going


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_keeps_the_state_and_ends_the_run(tmp_path: Path, number: signal.Signals) -> None:
    going = Going(tmp_path, checkpoint_seconds=1.0)
    try:
        before = {path.name for path in tmp_path.glob("work/teacher/*/*/checkpoints/step-*")}
        time.sleep(0.4)  # so that there are steps after the checkpoint, which the signal has to keep
        begun = time.monotonic()
        going.command.send_signal(number)
        going.command.communicate(timeout=60)
        took = time.monotonic() - begun
        after = {path.name for path in tmp_path.glob("work/teacher/*/*/checkpoints/step-*")}
        assert going.command.returncode == 128 + number
        assert took < 20
        assert max(after) > max(before)
        (ended,) = (json.loads(path.read_text()) for path in tmp_path.glob("runs/*/result.json"))
        assert ended["status"] == "interrupted"
        going.command = going.begin()
        assert going.result()["status"] == "completed"
        (record,) = tmp_path.glob("store/teacher/*/*/record.json")
        assert json.loads(record.read_text())["resumed_from_steps"] == [int(max(after).removeprefix("step-"))]
    finally:
        going.close()


def test_the_cancel_of_the_ui_keeps_the_state_too(tmp_path: Path) -> None:
    """Of a run that was started by the command, which no serving process looks after."""
    going = Going(tmp_path, checkpoint_seconds=1.0)
    try:
        (run,) = (path.name for path in (tmp_path / "runs").iterdir())
        begun = time.monotonic()
        words = [sys.executable, "-m", "prefect", "flow-run", "cancel", run]
        subprocess.run(words, env=going.environment, capture_output=True, check=True)
        going.command.communicate(timeout=60)
        assert going.command.returncode == 128 + signal.SIGINT
        assert time.monotonic() - begun < 30  # 20, and what the command that cancels takes to start
        assert going.shown("/flow_runs/filter") == ["CANCELLED"]
        assert list(tmp_path.glob("work/teacher/*/*/checkpoints/step-*"))
    finally:
        going.close()
