"""A run of the command line, in a process of its own and against a server of its own, while it trains."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import builders

from flows import servers

REPO = Path(__file__).resolve().parents[1]
TRAINS: dict[str, Any] = {
    **builders.TINY,
    "teacher_recipe": {**builders.TINY["teacher_recipe"], "epochs": 200, "learning_rate": 1e-4},
    "student": {"scale": 0.2, "epochs": 0.5, "controls": False},
}
"""A teacher that trains for seconds, and little else."""


class Going:
    """A run of the command line against a server of its own, which trains its teacher now."""

    def __init__(self, root: Path, *, checkpoint_seconds: float = 0.5) -> None:
        self.root = root
        self.server, self.url = servers.start_server(root)
        own = {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
        self.environment = {**servers.environment(root, self.url), **own}
        where = {"root": str(root), "threads": 1, "device": "cpu", "checkpoint_seconds": checkpoint_seconds}
        asked = {**TRAINS, "dataset": str(builders.single_csv(root)), "run": where}
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

    def shown(self, path: str) -> list[str]:
        """Return the states that the server shows."""
        asked = urllib.request.Request(self.url + path, b"{}", {"Content-Type": "application/json"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=30) as answer:
            return [run["state_type"] for run in json.loads(answer.read())]

    def kill_server(self) -> None:
        os.killpg(self.server.process.pid, signal.SIGKILL)
        self.server.process.wait()

    def start_server_again(self) -> None:
        again = servers.server_at(self.root, self.url)
        assert again is not None, "its port was taken"
        self.server = again

    def close(self) -> None:
        """End whatever is left."""
        self.command.kill()
        self.server.stop()
