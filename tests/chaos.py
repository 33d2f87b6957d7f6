"""Kill real runs at random moments, resume them, and hold what they end with against a run that nobody disturbed.

``python tests/chaos.py 50`` starts a Prefect server and a process that serves the deployments, makes one undisturbed
run, and then, as often as it is told, takes one training stage out of a copy of that store, starts the run again,
kills the process that trains, the process that serves or the server, and resumes it through another door each time.
The digest of every stage has to be the undisturbed one's, and no finished stage may have been made twice.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from flows import servers  # noqa: E402

VICTIMS = ("teacher", "sandwich", "distil")
DOORS = ("deployment", "command", "retry")
MOMENTS = {"training": 0.66, "commit": 0.16, "cancel": 0.06, "worker": 0.06, "server": 0.06}
"""What is killed, and when: the training process after a checkpoint or while it commits, who serves, the server; or
the run is cancelled as the UI does it. The share of the trials that each gets."""
LONG: dict[str, Any] = {
    "dataset": "pydocs",
    "teacher_recipe": {"epochs": 8},
    "sandwich": {"grid": [0.5, 0.2], "epochs": 6},
    "student": {"scale": 0.1, "epochs": 12, "controls": False},
    "evaluate": {"latency": False},
}
"""Training stages of 20 seconds or more on two cores."""


@dataclass
class Trial:
    """One run that was killed, and what came of it."""

    number: int
    stage: str
    moment: str
    door: str
    lost: float = 0.0
    """Seconds of training between the last checkpoint and the kill."""
    resumed_from_steps: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Place:
    """A server and a process that serves, both started again where they were killed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.server, self.url = servers.start_server(root)
        self.worker = self._serve()

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables of whoever talks to the server."""
        own = {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "PREFECT_LOGGING_LEVEL": "WARNING"}
        return {**servers.environment(self.root, self.url), **own}

    def _serve(self) -> servers.Child:
        ready = self.root / "ready"
        ready.unlink(missing_ok=True)
        child = servers.Child(
            [sys.executable, "-m", "flows.serve", "--ready", str(ready)], self.environment, self.root / "serve.log"
        )
        servers.wait_for(ready.exists, child, "the process that serves")
        return child

    def kill_worker(self) -> None:
        """Kill who serves, and let another begin."""
        self.worker.process.kill()
        self.worker.process.wait()
        self.worker = self._serve()

    def kill_server(self) -> None:
        """Kill the server, and start it again after some seconds at the same address."""
        os.killpg(self.server.process.pid, signal.SIGKILL)
        self.server.process.wait()
        time.sleep(5)
        again = servers.server_at(self.root, self.url)
        assert again is not None, "its port was taken"
        self.server = again

    def stop(self) -> None:
        """End both."""
        self.worker.stop()
        self.server.stop()


class Chaos:
    """The undisturbed run, and what is done to its copies."""

    def __init__(self, place: Place, asked: dict[str, Any], *, seconds: float) -> None:
        self.place, self._asked, self._seconds = place, asked, seconds
        self.base = place.root / "base"
        self.undisturbed = self._through_command(self.base)

    def trial(self, number: int, draw: random.Random, *, stage: str = "", moment: str = "", door: str = "") -> Trial:
        """Kill one run, resume it, and compare; what is not given is drawn."""
        stage = stage or draw.choice(VICTIMS)
        made = Trial(number=number, stage=stage, moment=moment or "training", door=door or draw.choice(DOORS))
        if made.moment in ("worker", "server"):
            made.door = "none"
        root = self.place.root / f"trial-{number}"
        self._copy(root, stage)
        run = self._deployed(root)
        self._strike(root, run, made, draw)
        before = {path: path.stat().st_ino for path in (root / "store").glob("*/*/*")}
        if made.door == "none":
            result = self._result(root, run)  # the process that trains was not touched, and has to end well
        else:
            result = self._resumed(root, run, made.door)
        self._compare(root, result, before, made)
        shutil.rmtree(root)
        return made

    def _copy(self, root: Path, stage: str) -> None:
        """Copy the undisturbed store without one stage."""
        shutil.copytree(self.base / "store", root / "store", copy_function=os.link)
        shutil.rmtree(root / "store" / stage)

    def _parameters(self, root: Path) -> dict[str, Any]:
        run = {"root": str(root), "threads": 1, "device": "cpu", "checkpoint_seconds": self._seconds}
        return {**self._asked, "run": run}

    def _deployed(self, root: Path) -> str:
        """Start the deployment; return the id of the run."""
        name = f"chaos-{root.name}-{time.time_ns()}"
        command = [sys.executable, "-m", "prefect", "deployment", "run", "capgap/minidisc", "--flow-run-name", name]
        command += ["--params", json.dumps(self._parameters(root))]
        done = subprocess.run(command, env=self.place.environment, capture_output=True, text=True, check=True)
        return next(word for word in done.stdout.split() if word.count("-") == 4 and len(word) == 36)

    def _strike(self, root: Path, run: str, made: Trial, draw: random.Random) -> None:
        """Wait for the moment, and kill."""
        pid = self._wait(lambda: trainer(root, made.stage), "a process that trains")
        checkpoints = root / "work" / made.stage
        if made.moment == "commit":
            last = "metrics.parquet" if made.stage == "teacher" else "plan.parquet"
            self._wait(lambda: list(checkpoints.glob(f"*/*/out/{last}")), "a commit", pause=0.0005)
            time.sleep(draw.uniform(0, 0.06))
        else:
            self._wait(lambda: list(checkpoints.glob("*/*/checkpoints/step-*")), "a checkpoint")
            time.sleep(draw.uniform(0, 3 * self._seconds))
        if made.moment == "worker":
            self.place.kill_worker()
        elif made.moment == "server":
            self.place.kill_server()
        elif made.moment == "cancel":
            self._cancel(run, made)
        else:
            os.kill(pid, signal.SIGKILL)
            now = time.time()
            kept = sorted(path.stat().st_mtime for path in checkpoints.glob("*/*/checkpoints/step-*/state.json"))
            made.lost = now - kept[-1] if kept else 0.0
            if list(root.glob(f"store/{made.stage}/*/*")):
                inside = list(checkpoints.glob("*/*")) and made.moment == "commit"
                made.moment += ", after the rename" if inside else " (too late)"

    def _cancel(self, run: str, made: Trial) -> None:
        begun = time.monotonic()
        command = [sys.executable, "-m", "prefect", "flow-run", "cancel", run]
        subprocess.run(command, env=self.place.environment, capture_output=True, check=True)
        self._wait(lambda: self._state(run) in ("CANCELLED", "CRASHED", "FAILED"), "the run to end")
        if self._state(run) != "CANCELLED":
            made.problems.append(f"{self._state(run)} where it was cancelled")
        if time.monotonic() - begun > 30:  # 20, and what these commands take to start
            made.problems.append(f"it took {time.monotonic() - begun:.0f} seconds to cancel")

    def _resumed(self, root: Path, run: str, door: str) -> dict[str, Any]:
        if door == "command":
            return self._through_command(root)
        if door == "deployment":
            run = self._deployed(root)
        else:
            self._wait(lambda: self._state(run) in ("CRASHED", "CANCELLED"), "the run to be marked as crashed")
            command = [sys.executable, "-m", "prefect", "flow-run", "retry", run]
            subprocess.run(command, env=self.place.environment, capture_output=True, check=True)
        return self._result(root, run)

    def _result(self, root: Path, run: str) -> dict[str, Any]:
        path = root / "runs" / run / "result.json"
        self._wait(lambda: path.is_file() and json.loads(path.read_text())["status"] == "completed", "the result")
        self._wait(lambda: self._state(run) == "COMPLETED", "the end of the run", pause=0.5)  # it shows its report yet
        return json.loads(path.read_text())

    def _through_command(self, root: Path) -> dict[str, Any]:
        root.mkdir(exist_ok=True)
        (root / "params-given.json").write_text(json.dumps(self._parameters(root)))
        command = [sys.executable, "-m", "flows.cli", "run", "minidisc", "--json"]
        command += ["--params", str(root / "params-given.json")]
        environment = {**self.place.environment, "PREFECT_API_URL": self.place.url}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=REPO, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        return json.loads(done.stdout)

    def _state(self, run: str) -> str:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(f"{self.place.url}/flow_runs/{run}", timeout=10) as answer:
                return str(json.loads(answer.read())["state_type"] or "")
        except OSError:  # the server is just being started again
            return ""

    def _compare(self, root: Path, result: dict[str, Any], before: dict[Path, int], made: Trial) -> None:
        """Find the problems; ``before`` has the number of each folder that was finished when the kill came."""
        for ours, theirs in zip(result["stages"], self.undisturbed["stages"], strict=True):
            if ours["digest"] != theirs["digest"]:
                made.problems.append(f"{ours['stage']} {ours['role']}: other bytes")
        for path, number in before.items():
            if not path.is_dir() or path.stat().st_ino != number:
                made.problems.append(f"{path.relative_to(root)}: made twice")
        for path in (root / "store" / made.stage).glob("*/*/record.json"):
            made.resumed_from_steps += json.loads(path.read_text())["resumed_from_steps"]
        if made.moment in ("training", "cancel") and not any(made.resumed_from_steps):
            made.problems.append("did not go on from its checkpoint")
        if made.moment == "training" and made.lost > self._seconds + 5:
            made.problems.append(f"{made.lost:.1f} seconds of work lost")
        if list((root / "work").glob("*/*/*")):
            made.problems.append("work is left")

    @staticmethod
    def _wait(found: Any, what: str, *, pause: float = 0.05, patience: float = 300.0) -> Any:
        deadline = time.monotonic() + patience
        while not (it := found()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} did not come in {patience:.0f} seconds")
            time.sleep(pause)
        return it


def trainer(root: Path, stage: str) -> int:
    """Return the process that makes a stage, by what its lock says; 0 where there is none."""
    for path in (root / "locks").glob(f"{stage}-*.lock"):
        words = path.read_text(errors="replace").split()
        if len(words) == 2 and words[1].isdigit():
            return int(words[1])
    return 0


@contextmanager
def chaos(asked: dict[str, Any], *, seconds: float) -> Iterator[Chaos]:
    """Give an undisturbed run in a place of its own, which is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="capgap-chaos-") as folder:
        place = Place(Path(folder))
        try:
            yield Chaos(place, asked, seconds=seconds)
        finally:
            place.stop()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trials; print the table; return 1 where one of them ended with a problem."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trials", type=int)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(argv)
    draw, trials = random.Random(given.seed), list[Trial]()
    with chaos(LONG, seconds=2.0) as place:
        seconds = {s["stage"]: s["seconds"] for s in place.undisturbed["stages"] if s["stage"] in VICTIMS}
        print(
            "seconds of each stage, undisturbed: " + ", ".join(f"{name} {took:.0f}" for name, took in seconds.items())
        )
        print(f"{'':3}  {'stage':9} {'killed in':24} {'resumed by':11} {'lost':>6}  from steps", flush=True)
        for number, moment in enumerate(moments(given.trials, draw)):
            trials.append(place.trial(number, draw, moment=moment))
            print(line(trials[-1]), flush=True)
    resumed = [t for t in trials if t.moment == "training" and any(t.resumed_from_steps)]
    commits = [t for t in trials if t.moment in ("commit", "commit, after the rename")]
    bad = [t for t in trials if t.problems]
    worst = max((t.lost for t in trials if t.moment == "training"), default=0.0)
    print(
        f"{len(trials) - len(bad)} of {len(trials)} equal; {len(resumed)} killed in training and resumed from a "
        f"checkpoint, {len(commits)} killed in a commit; at most {worst:.2f} s lost in training"
    )
    return 1 if bad else 0


def moments(count: int, draw: random.Random) -> list[str]:
    """Return the moment of each trial in a drawn order, every moment with its share of them."""
    shares = {moment: round(share * count) for moment, share in MOMENTS.items() if moment != "training"}
    found = [moment for moment, number in shares.items() for _ in range(number)]
    found = (["training"] * (count - len(found)) + found)[:count]
    draw.shuffle(found)
    return found


def line(t: Trial) -> str:
    """Return a trial as a line of the table."""
    steps = ", ".join(map(str, t.resumed_from_steps)) or "-"
    end = "; ".join(t.problems) or "equal"
    return f"{t.number:3d}  {t.stage:9} {t.moment:24} {t.door:11} {t.lost:5.2f}s  {steps:12} {end}"


if __name__ == "__main__":
    sys.exit(main())
