"""A Prefect server that goes away while a stage trains, for a while or for good: the training does not wait for it."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from going import Going

from tasks.progress import Newest


@pytest.fixture
def going(tmp_path: Path) -> Iterator[Going]:
    made = Going(tmp_path)
    yield made
    made.close()


def away(going: Going, seconds: float) -> None:
    """Have the server away for so long, and see that the run is whole and the server knows it."""
    going.kill_server()
    killed = time.monotonic()
    going.until(lambda: list(going.root.glob("store/teacher/*/*")), patience=min(seconds, 60.0) + 30)
    time.sleep(max(0.0, seconds - (time.monotonic() - killed)))
    going.start_server_again()
    result = going.result()
    assert result["status"] == "completed"
    assert going.shown("/flow_runs/filter") == ["COMPLETED"]
    deadline = time.monotonic() + 60
    while going.shown("/task_runs/filter") != ["COMPLETED"] * len(result["stages"]):
        assert time.monotonic() < deadline, "the UI did not catch up"
        time.sleep(0.5)


def test_the_server_is_away_while_a_stage_trains(going: Going) -> None:
    away(going, 0.0)


@pytest.mark.slow
def test_the_server_is_away_for_two_minutes(going: Going) -> None:
    away(going, 120.0)


@pytest.mark.slow
def test_the_server_stands_still_for_two_minutes(going: Going) -> None:
    """It takes connections and answers nothing."""
    os.killpg(going.server.process.pid, signal.SIGSTOP)
    going.until(lambda: list(going.root.glob("store/teacher/*/*")))
    time.sleep(120)
    os.killpg(going.server.process.pid, signal.SIGCONT)
    assert going.result()["status"] == "completed"


@pytest.mark.slow
def test_the_server_is_gone_for_good(going: Going) -> None:
    """The run ends well, from the store alone, and the next one uses what it has made."""
    going.kill_server()
    result = going.result()
    assert result["status"] == "completed"
    assert "could not be told" in going.said.read_text()
    going.start_server_again()
    going.command = going.begin()
    assert going.result()["steps_trained"] == 0


def test_what_is_shown_holds_nobody_up_and_is_the_newest() -> None:
    seen: list[float] = []
    hold = threading.Event()

    def show(percent: float, _text: str) -> None:
        hold.wait(30)
        seen.append(percent)

    newest = Newest(show)
    for percent in range(100):
        newest.put(float(percent), "")
    newest.close(0.05)  # it does not wait for long either
    hold.set()
    newest._thread.join(30)
    assert seen[-1] == 99.0
    assert len(seen) <= 2


def test_what_is_never_used_needs_no_thread() -> None:
    newest = Newest(lambda *_: None)
    newest.close(5.0)
    assert newest._thread.ident is None
