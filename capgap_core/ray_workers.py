"""Workers on Ray: each makes one stage in a process of its own, with as many threads as asked and one GPU if any.

What travels is JSON, there and back: a stage's name, its recipe, the references of its inputs, where it runs; then the
reference or what failed. Ray itself pickles these texts, and a function by the name under which the worker imports it;
capgap reads and writes no pickle. Nothing is tried again by Ray. The worker writes into the store, under the stage's
lock like any process, so that the store has to be one folder on all machines.
"""

import contextlib
import importlib
import json
import signal
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializeAsAny

from capgap_core import errors
from capgap_core.build import address_of, build
from capgap_core.errors import StageFailed
from capgap_core.progress import Progress
from capgap_core.ray_start import Room, connected, room
from capgap_core.recipes import Execution
from capgap_core.records import Input, Reference
from capgap_core.store import Address
from capgap_core.workers import Stopped

GRACE = 20.0
"""Seconds in which a worker has to keep the state of its training and end; then it is killed."""
LOOK = 0.3
"""Seconds between two looks at a stage that is being made."""
EVERY = 1.0
"""Seconds between two counts that a worker passes on."""
_KINDS = {kind.__name__: kind for kind in (errors.StageFailed, errors.NonFinite, errors.OutOfMemory)}


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
    """See ``workers.Workers``."""

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
        from ray import exceptions  # noqa: PLC0415

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
        except exceptions.RayError as error:
            if not ray.wait([job], timeout=0)[0]:  # it was not the worker that was lost
                _end(ray, job)
            raise _explained(exceptions, address.stage, error) from error
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


def _explained(exceptions: Any, stage: str, error: Exception) -> StageFailed:
    """Return what to tell of a stage whose worker did not answer."""
    if isinstance(error, exceptions.OutOfMemoryError):
        # Not ``OutOfMemory``, after which a smaller micro-batch would be tried: it is the others that take the room.
        why = "the workers took more memory than the machine has"
        return StageFailed(stage, why, "Give a larger run.threads: as many fewer are made at once.")
    if isinstance(error, exceptions.WorkerCrashedError):
        return StageFailed(stage, "its worker was killed", "Training goes on from its last checkpoint.")
    said = str(error).strip().splitlines() or [""]
    return StageFailed(stage, f"its worker was lost ({type(error).__name__}: {said[-1]})", "")


def _end(ray: Any, job: Any) -> None:
    """Interrupt the main thread of a job's worker, as Ctrl-C would; kill it where it has not ended in time."""
    ray.cancel(job, force=False)
    if not ray.wait([job], timeout=GRACE)[0]:
        ray.cancel(job, force=True)
