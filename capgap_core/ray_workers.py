"""Workers on Ray: each makes one stage in a process of its own, with as many threads as asked and one GPU if any.

What travels is JSON, there and back: a stage's name, its recipe, the references of its inputs, where it runs; then the
reference or what failed. Ray itself pickles these texts, and a function by the name under which the worker imports it;
capgap reads and writes no pickle. Nothing is tried again by Ray. The worker writes into the store, under the stage's
lock like any process, so that the store has to be one folder on all machines.

``local`` starts Ray on this machine alone: all its servers listen on 127.0.0.1 only, ask for a token that this
process draws, and end with the run.
"""

import contextlib
import importlib
import json
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializeAsAny

from capgap_core import errors, signals
from capgap_core.at_once import Stopped
from capgap_core.build import address_of, build
from capgap_core.errors import StageFailed
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Reference
from capgap_core.store import Address

LOCAL = "local"
GRACE = 20.0
"""Seconds in which a worker has to keep the state of its training and end; then it is killed."""
LOOK = 0.3
"""Seconds between two looks at a stage that is being made."""
EVERY = 1.0
"""Seconds between two counts that a worker passes on."""
OBJECTS = 80 * 2**20
"""Bytes of Ray's shared memory, which holds but these texts: about the least that it takes."""
ENVIRONMENT: dict[str, str | None] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # by which Ray keeps to 127.0.0.1 on any system
    "RAY_worker_niceness": "0",  # by itself Ray lets whatever else runs go before
    "RAY_AUTH_MODE": None,  # left open, a Ray on one machine asks for a token, whenever ray was imported
}
"""What a Ray on this machine alone is started with; null: unset. Read when ray is imported, and by its servers."""
_KINDS = {kind.__name__: kind for kind in (errors.StageFailed, errors.NonFinite, errors.OutOfMemory)}


@dataclass(frozen=True, kw_only=True)
class Room:
    """What there is room for."""

    places: int
    """Stages at once."""
    threads: int
    """Of each."""
    cpus: int
    """That Ray sets aside for each: not more than a machine has, whatever was asked."""
    gpus: int
    """Of each: 1 or none."""


class _Asked(BaseModel):
    """What a worker is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    identity: str
    code: str
    recipe: SerializeAsAny[Any]
    inputs: dict[str, Input]
    execution: Execution


class RayWorkers:
    """See ``at_once.Workers``."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._wanted, self._ready, self._stopping = threading.Event(), threading.Event(), threading.Event()
        self._open = contextlib.ExitStack()
        self._room = Room(places=1, threads=1, cpus=1, gpus=0)
        self._job: Any = None
        self._board: Any = None

    @property
    def places(self) -> int:
        """Return how many stages are made at once."""
        return self._room.places

    def tend(self) -> None:
        """Start Ray where a stage waits for it."""
        if not self._wanted.is_set() or self._ready.is_set():
            return
        ray = self._open.enter_context(connected(self._execution))
        self._room = room(ray.nodes(), self._execution)
        self._job = ray.remote(max_retries=0, num_cpus=self._room.cpus, num_gpus=self._room.gpus)(made_there)
        self._board = ray.remote(num_cpus=0)(Board).remote()
        self._ready.set()

    def make(
        self, address: Address, recipe: BaseModel, inputs: Mapping[str, Input], execution: Execution, progress: Progress
    ) -> Reference:
        """Return a stage that a worker has made."""
        self._wanted.set()
        while not self._ready.wait(LOOK):
            self._heed()
        import ray  # noqa: PLC0415 - an extra

        there = execution.model_copy(update={"ray": None, "threads": self._room.threads})
        asked = _Asked(
            stage=address.stage, identity=address.identity, code=address.code, recipe=recipe, inputs=dict(inputs),
            execution=there,
        )  # fmt: skip
        key = "-".join(address.parts)
        job = self._job.remote(asked.model_dump_json(), self._board, key)
        try:
            while not ray.wait([job], timeout=LOOK)[0]:
                self._heed()
                _pass_on(ray.get(self._board.taken.remote(key)), progress)
            _pass_on(ray.get(self._board.taken.remote(key)), progress)
            return _read(ray.get(job))
        except ray.exceptions.RayError as error:
            raise _explained(ray, address.stage, error) from error
        except BaseException:
            _end(ray, job)
            raise

    def stop(self) -> None:
        """Have whatever is being made keep its state and end."""
        self._stopping.set()

    def close(self) -> None:
        """End Ray, where it was started here."""
        self._open.close()

    def _heed(self) -> None:
        if self._stopping.is_set():
            raise Stopped("told to end")


@contextlib.contextmanager
def connected(execution: Execution) -> Iterator[Any]:
    """Give ray, connected to where ``execution.ray`` says; what was started for that ends with the context.

    Signals wait while it starts, and their handlers are the caller's again afterwards: Ray sets one of its own.
    """
    with contextlib.ExitStack() as held:
        if execution.ray == LOCAL:
            folder = held.enter_context(_folder())
            held.enter_context(_environment({**ENVIRONMENT, "RAY_AUTH_TOKEN": _token()}))
            how: dict[str, Any] = {
                "address": LOCAL, "include_dashboard": False, "num_cpus": cores(), "object_store_memory": OBJECTS,
                "num_gpus": 0 if execution.device == "cpu" else None, "_temp_dir": folder,
            }  # fmt: skip
        else:
            how = {"address": execution.ray}
        import ray  # noqa: PLC0415 - an extra

        held.callback(ray.shutdown)
        with signals.deferred():
            ray.init(**how, configure_logging=False, log_to_driver=False)
        _refuse_open(ray, execution)
        yield ray


def _refuse_open(ray: Any, execution: Execution) -> None:
    """See that Ray did keep to this machine, by what it says itself."""
    seen = {node["NodeManagerAddress"] for node in ray.nodes()}
    if execution.ray == LOCAL and not all(address.startswith("127.") for address in seen):
        why = f"it listens on {', '.join(sorted(seen))}, not on 127.0.0.1 alone"
        raise StageFailed("ray", why, "Start the run in a process that has not imported ray before.")


@cache
def _token() -> str:
    """Return what Ray's servers ask for; Ray reads it once in the life of a process."""
    return secrets.token_hex(32)


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    """Give a folder for Ray's sockets, whose names may not be long, and its logs."""
    folder = tempfile.mkdtemp(prefix="capgap-ray-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        os.environ.pop(name, None)
        os.environ.update({name: value} if value is not None else {})


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def room(nodes: Sequence[Mapping[str, Any]], execution: Execution) -> Room:
    """Return what the machines of a cluster have room for.

    A stage has a GPU of its own where there are any and the device is not ``cpu``; its threads are what was asked for,
    or else its share of the cores beside a GPU, and 1 without: small models at once gain more than each by threads.
    """
    alive = [(int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0))) for node in nodes
             if node["Alive"]]  # fmt: skip
    gpus = int(execution.device != "cpu" and any(count for _, count in alive))
    fit = [(cpus, count) for cpus, count in alive if cpus and (count or not gpus)]
    share = min((cpus // count for cpus, count in fit), default=1) if gpus else 1
    threads = execution.threads or max(1, share)
    wanted = min(threads, max((cpus for cpus, _ in fit), default=1))
    places = sum(min(cpus // wanted, count) if gpus else cpus // wanted for cpus, count in fit)
    return Room(places=max(1, places), threads=threads, cpus=wanted, gpus=gpus)


class Board:
    """Where workers leave what they have to say, until whoever waits for their stage takes it."""

    def __init__(self) -> None:
        self._left: dict[str, list[str]] = {}

    def tell(self, key: str, line: str) -> None:
        """Leave a line."""
        self._left.setdefault(key, []).append(line)

    def taken(self, key: str) -> list[str]:
        """Return what was left, and forget it."""
        return self._left.pop(key, [])


class Telling:
    """Leaves on a board what a stage tells; see ``progress.Progress``."""

    def __init__(self, board: Any, key: str) -> None:
        self._board, self._key, self._last = board, key, 0.0
        self._sent: Any = None

    def message(self, text: str) -> None:
        """Leave one line."""
        self._sent = self._board.tell.remote(self._key, json.dumps([text]))

    def update(self, done: int, total: int, note: str = "") -> None:
        """Leave the count, at most every ``EVERY`` seconds, and at the end."""
        if time.monotonic() - self._last >= EVERY or done >= total:
            self._last = time.monotonic()
            self._sent = self._board.tell.remote(self._key, json.dumps([done, total, note]))

    def arrived(self) -> None:
        """Wait until the last of it lies there."""
        import ray  # noqa: PLC0415 - an extra

        if self._sent is not None:
            ray.wait([self._sent], timeout=GRACE)


def _pass_on(lines: Sequence[str], progress: Progress) -> None:
    for line in lines:
        told = json.loads(line)
        if len(told) == 1:
            progress.message(told[0])
        else:
            progress.update(*told)


def made_there(words: str, board: Any, key: str) -> str:
    """Make a stage in a worker, and return its reference or what failed, as JSON."""
    # Ray starts workers with it blocked: a signal that training lets wait would never come.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    asked, telling = _Asked.model_validate_json(words), Telling(board, key)
    try:
        said = {"made": _built(asked, telling).model_dump(mode="json")}
    except StageFailed as error:
        said = {"kind": type(error).__name__, "stage": error.stage, "why": error.why, "remedy": error.remedy}
    except Exception as error:
        telling.message(traceback.format_exc())
        said = {"kind": "StageFailed", "stage": asked.stage, "why": f"{type(error).__name__}: {error}", "remedy": ""}
    telling.arrived()
    return json.dumps(said)


def _built(asked: _Asked, telling: Telling) -> Reference:
    recipe = importlib.import_module(f"capgap_core.stages.{asked.stage}").Recipe.model_validate(asked.recipe)
    address, _ = address_of(asked.stage, recipe, asked.inputs)
    if (address.identity, address.code) != (asked.identity, asked.code):
        why = "the worker has other code of capgap than whoever asked it"
        raise StageFailed(asked.stage, why, "Have the same version on every machine, and start the run again.")
    return build(asked.stage, recipe, asked.inputs, execution=asked.execution, progress=telling)


def _read(said: str) -> Reference:
    held = json.loads(said)
    if "made" in held:
        return Reference.model_validate(held["made"])
    raise _KINDS[held["kind"]](held["stage"], held["why"], held["remedy"])


def _explained(ray: Any, stage: str, error: Exception) -> StageFailed:
    """Return what to tell of a stage whose worker did not answer."""
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return errors.OutOfMemory(stage, "its worker took more memory than the machine has", "Let fewer run at once.")
    if isinstance(error, ray.exceptions.WorkerCrashedError):
        return StageFailed(stage, "its worker was killed", "Training goes on from its last checkpoint.")
    said = str(error).strip().splitlines() or [""]
    return StageFailed(stage, f"its worker was lost ({type(error).__name__}: {said[-1]})", "")


def _end(ray: Any, job: Any) -> None:
    """Interrupt the main thread of a job's worker, as Ctrl-C would; kill it where it has not ended in time."""
    ray.cancel(job, force=False)
    if not ray.wait([job], timeout=GRACE)[0]:
        ray.cancel(job, force=True)
