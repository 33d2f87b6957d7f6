"""Two or more trainings in processes of their own, which take blocks of steps by turns, and the rows they end in.

A machine's speed drifts by more than what is to be measured, so that what is compared runs by turns: A B, then B A.
Each training has a process to itself, since torch keeps compiled products and memory of everything it has run.
"""

import argparse
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [path for path in (str(ROOT), str(Path(__file__).parent)) if path not in sys.path]

from flows.results import with_table, write  # noqa: E402

FILE, README = ROOT / "artifacts" / "published" / "benchmarks.parquet", ROOT / "README.md"


def parser_of(purpose: str | None, *, repeats: bool = True) -> argparse.ArgumentParser:
    """Return what benchmarks on a data set and a teacher are asked for, with their module's docstring as help."""
    parser = argparse.ArgumentParser(description=purpose, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a data set as capgap takes it; without it SST-2 below CAPGAP_SHARED")
    parser.add_argument("--teacher", help="an encoder, as capgap takes it; without it all-MiniLM-L6-v2 there")
    parser.add_argument("--rows", type=int, default=10_000, help="training rows (%(default)s)")
    if repeats:
        parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--root", help="a store to begin from and to keep; a temporary one without")
    parser.add_argument("--publish", action="store_true", help="write the rows, and the README's table of them")
    return parser


def shared(*parts: str) -> str:
    """Return a place of the real data and models, which ``CAPGAP_SHARED`` names; without it there is nothing to do."""
    root = os.environ.get("CAPGAP_SHARED")
    if not root:
        print("skipped: CAPGAP_SHARED does not name the folder of real data and models", file=sys.stderr)
        raise SystemExit(0)
    return str(Path(root).absolute().joinpath(*parts))


class Clock:
    """Seconds of this process's CPU time and of the wall, and on a GPU between two CUDA events, since it was made."""

    def __init__(self, device: str = "auto") -> None:
        self._gpu = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
        if self._gpu:
            torch.cuda.synchronize()
            self._begun = torch.cuda.Event(enable_timing=True)
            self._begun.record()
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def spent(self) -> dict[str, float]:
        """Return the seconds; a GPU is waited for."""
        device = {}
        if self._gpu:
            ended = torch.cuda.Event(enable_timing=True)
            ended.record()
            torch.cuda.synchronize()
            device = {"device_seconds": self._begun.elapsed_time(ended) / 1000}
        cpu, wall = time.process_time() - self._cpu, time.perf_counter() - self._wall
        return {"cpu_seconds": cpu, "wall_seconds": wall, **device}


def unit_of(frame: pd.DataFrame) -> str:
    """Return the column of seconds that is compared: a GPU's own where it was one, else the process's CPU time."""
    return "device_seconds" if "device_seconds" in frame and frame["device_seconds"].notna().any() else "cpu_seconds"


class Over(BaseException):
    """Ends a training that nobody asks for more steps."""


class Gate:
    """What a training tells of every step: it waits here where the block that was asked for is done."""

    keeper: Any = None
    """Takes the state of capgap's training, where it is looked at on the way."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._left = pipe, 0
        self.facts: dict[str, Any] = {}
        """What each block says of itself beside that: of its last step."""
        self._seen = {"steps": 0, "examples": 0, "tokens": 0, "places": 0}

    def ready(self, model: Any = None, **facts: Any) -> None:
        """Say that training of a model can begin, and wait for the first block."""
        self._pipe.send(facts)
        self._next()

    def step(self, *, examples: int, tokens: int, places: int) -> None:
        """Say that a step of so many examples, real tokens and places for tokens is done."""
        for name, count in {"steps": 1, "examples": examples, "tokens": tokens, "places": places}.items():
            self._seen[name] += count
        self._left -= 1
        if self._left == 0:
            self._pipe.send({**self._seen, **self._clock.spent(), **self.facts})
            self._next()

    def _next(self) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # the next process may need what this one has freed
        asked = self._pipe.recv()
        if asked is None:
            raise Over
        self._left = asked
        self._seen = dict.fromkeys(self._seen, 0)
        self._clock = Clock()


Training = Callable[[Gate, dict[str, Any]], None]


def _child(pipe: Connection, training: Training, given: dict[str, Any]) -> None:
    try:
        training(Gate(pipe), given)
    except Over:
        return
    except BaseException:
        pipe.send({"error": traceback.format_exc()})
        raise


class Runner:
    """A training in a process of its own."""

    def __init__(self, name: str, training: Training, given: dict[str, Any]) -> None:
        self.name = name
        context = multiprocessing.get_context("forkserver")  # which has computed nothing, and imports once for all
        ours, theirs = context.Pipe()
        self._pipe = ours
        self._process = context.Process(target=_child, args=(theirs, training, given))
        self._process.start()
        self.facts = self._answer()

    def block(self, steps: int) -> dict[str, Any]:
        """Return what a block of steps took."""
        self._pipe.send(steps)
        return self._answer()

    def end(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join(30)
        self._process.kill()

    def _answer(self) -> dict[str, Any]:
        while not self._pipe.poll(1.0):
            if not self._process.is_alive() and not self._pipe.poll():
                raise RuntimeError(f"{self.name} died")
        answer = self._pipe.recv()
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer


@contextmanager
def running(trainings: Sequence[tuple[str, Training, dict[str, Any]]]) -> Iterator[list[Runner]]:
    """Start trainings one after the other, and end them all."""
    runners: list[Runner] = []
    try:
        for training in trainings:
            runners.append(Runner(*training))
        yield runners
    finally:
        for runner in runners:
            runner.end()


def by_turns(
    runners: Sequence[Runner], *, steps: int | Callable[[str], int], repeats: int, warm: int
) -> list[dict[str, Any]]:
    """Return a row for each block: ``repeats`` of each runner, in one order and then in the other.

    Parameters
    ----------
    steps
        Of a block, for all or by the name of the runner.
    """
    for runner in runners:
        runner.block(warm)
    rows: list[dict[str, Any]] = []
    for repeat in range(repeats):
        for runner in runners if repeat % 2 == 0 else list(runners)[::-1]:
            count = steps(runner.name) if callable(steps) else steps
            rows.append({"variant": runner.name, "repeat": repeat, **runner.block(count)})
    return rows


def ratio(frame: pd.DataFrame, of: str, to: str, *, per: str = "tokens", unit: str | None = None) -> pd.Series:
    """Return, for each repeat, how many times as long one variant takes for the same work as another.

    For a token, not for an example: examples of one block may be twice as long as those of the next.
    """
    cost, unit = {}, unit or unit_of(frame)
    for variant in (of, to):
        own = frame[frame["variant"] == variant].set_index("repeat")
        cost[variant] = own[unit] / own[per]
    return pd.Series(cost[of] / cost[to]).dropna()


def told(values: pd.Series, digits: int = 2) -> str:
    """Return a median with its lowest and highest value."""
    return f"{values.median():.{digits}f} ({values.min():.{digits}f} to {values.max():.{digits}f})"


def publish(name: str, rows: Sequence[dict[str, Any]], line: Callable[[pd.DataFrame], str]) -> None:
    """Put the rows of a benchmark in place of its older ones, and what they show into the README."""
    held = [pq.read_table(FILE).to_pandas()] if FILE.is_file() else []
    new = pd.DataFrame([{"benchmark": name, **row} for row in rows])
    frame = pd.concat([*(old[old["benchmark"] != name] for old in held), new], ignore_index=True)
    text = with_table(README.read_text(encoding="utf8"), line(new), name=name)  # refuses before anything is written
    write(FILE, frame)
    README.write_text(text, encoding="utf8")
