"""A Prefect server that goes away while a stage trains, for a while or for good: the training does not wait for it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos import LONG

from flows import servers
from tasks.progress import Newest

REPO = Path(__file__).resolve().parents[2]
AWAY = {**LONG, "teacher_recipe": {"epochs": 4}, "sandwich": {"grid": [0.5], "epochs": 0.3}}
AWAY["student"] = {"scale": 0.1, "epochs": 0.3, "controls": False}


class Going:
    """A run of the command line against a server of its own, which trains its teacher now."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.server, self.url = servers.start_server(root)
        own = {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
        self.environment = {**servers.environment(root, self.url), **own}
        asked = {**AWAY, "run": {"root": str(root), "threads": 1, "device": "cpu", "checkpoint_seconds": 0.5}}
        (root / "asked.json").write_text(json.dumps(asked), encoding="utf8")
        self.said = root / "said.txt"
        self.command = self.begin()
        self.until(lambda: list(root.glob("work/teacher/*/*/checkpoints/step-*")))

    def begin(self) -> "subprocess.Popen[str]":
        words = [sys.executable, "-m", "flows.cli", "run", "minidisc", "--json", "--params"]
        words.append(str(self.root / "asked.json"))
        with self.said.open("w") as said:
            return subprocess.Popen(
                words, env=self.environment, cwd=REPO, text=True, stdout=subprocess.PIPE, stderr=said
            )

    def until(self, found: Any, patience: float = 120.0) -> None:
        deadline = time.monotonic() + patience
        while not found():
            assert time.monotonic() < deadline, self.said.read_text()
            assert self.command.poll() is None, self.said.read_text()
            time.sleep(0.1)

    def result(self) -> dict[str, Any]:
        out, _ = self.command.communicate(timeout=600)
        assert self.command.returncode == 0, self.said.read_text()
        return json.loads(out)

    def kill_server(self) -> None:
        os.killpg(self.server.process.pid, signal.SIGKILL)
        self.server.process.wait()

    def start_server_again(self) -> None:
        again = servers.server_at(self.root, self.url)
        assert again is not None, "its port was taken"
        self.server = again


@pytest.fixture
def going(tmp_path: Path) -> Iterator[Going]:
    made = Going(tmp_path)
    yield made
    made.command.kill()
    made.server.stop()


def away(going: Going, seconds: float) -> None:
    """Have the server away for so long, and see that the run is whole and the server knows it."""
    going.kill_server()
    killed = time.monotonic()
    going.until(lambda: list(going.root.glob("store/teacher/*/*")), patience=min(seconds, 60.0) + 30)
    time.sleep(max(0.0, seconds - (time.monotonic() - killed)))
    going.start_server_again()
    result = going.result()
    assert result["status"] == "completed"
    shown = subprocess.run(
        [sys.executable, "-m", "prefect", "flow-run", "inspect", result["run_id"], "--output", "json"],
        env=going.environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(shown.stdout)["state_type"] == "COMPLETED"


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
