"""Tell runs that go on from runs whose process has died, which Prefect leaves Running for ever.

A flow's process holds a lock for as long as it lives. A run of this host that Prefect calls Running and whose lock is
free has died: it is marked as Crashed, with the command that resumes it.
"""

import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from httpx import HTTPError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import PrefectException
from prefect.states import Cancelled, Completed, Crashed

from capgap_core.errors import InputFaults, fault
from capgap_core.locks import take
from flows import runs
from flows.places import rooted

GOING = (StateType.RUNNING, StateType.CANCELLING)
_held: dict[str, int] = {}
"""Run → descriptor of its lock; closed by the kernel when the process ends, after Prefect has heard how it ended."""


def hold(root: Path, run_id: str, attempt: int) -> None:
    """Say that this process makes this attempt at the run, for as long as it lives."""
    if run_id not in _held:
        path = _lock(root, run_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        _held[run_id] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(_held[run_id], fcntl.LOCK_EX)
    os.ftruncate(_held[run_id], 0)
    os.pwrite(_held[run_id], _holder(attempt).encode(), 0)


@contextmanager
def holding(root: Path, run_id: str, attempt: int) -> Iterator[None]:
    """Hold the lock from here on, unless the input is refused meanwhile: then nothing of it is left."""
    try:
        hold(root, run_id, attempt)
    except OSError as error:
        said = f"the store cannot be written ({error.strerror})"
        raise InputFaults([fault("run.root", str(root), said, "Give a folder you may write to.")]) from error
    try:
        yield
    except InputFaults:
        path, descriptor = _lock(root, run_id), _held.pop(run_id)
        os.ftruncate(descriptor, 0)  # so that whoever looks at it just now finds no holder
        path.unlink(missing_ok=True)
        os.close(descriptor)
        with suppress(OSError):  # somebody else's locks stay
            path.parent.rmdir()
        raise


def mark_dead(say: Callable[[str], None]) -> None:
    """Mark as Crashed every run of this host that Prefect calls Running and whose process has ended, and say so.

    A run that cannot be looked at is told, and keeps none of the others from being looked at; a server that does not
    answer ends the look.
    """
    try:
        with get_client(sync_client=True) as client:
            for run in _going(client):
                try:
                    if told := _mark(client, run):
                        say(f"the process of run {run.id} has ended: {told}")
                except (HTTPError, PrefectException):
                    raise
                except Exception as error:  # of one run: a lock of somebody else, parameters of another version
                    say(f"whether run {run.id} is alive could not be seen: {type(error).__name__}: {error}")
    except Exception as error:  # whatever a server or a proxy before it says: no run may fail by this
        say(f"runs whose process has ended could not be looked for: {type(error).__name__}: {error}")


def _holder(attempt: int) -> str:
    return f"{socket.gethostname()} {attempt}"


def _going(client: SyncPrefectClient) -> list[FlowRun]:
    kinds = FlowRunFilterStateType(any_=list(GOING))
    return client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=["capgap"])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=kinds)),
    )


def _mark(client: SyncPrefectClient, run: FlowRun) -> str:
    """Return how a run was marked, or an empty text where it was left alone."""
    root = Path(rooted(dict(run.parameters))["run"]["root"])
    path = _lock(root, str(run.id))
    if str(run.id) in _held or not path.is_file():
        return ""  # this process's own, one that has not begun, or one of another host or store
    with path.open("r+", encoding="utf8") as file:
        if not take(file.fileno()):
            return ""
        now = client.read_flow_run(run.id)  # with the lock in hand: it may have ended, or begun again, just before
        if now.state is None or now.state.type not in GOING or file.read().strip() != _holder(now.run_count):
            return ""  # the lock may be that of an earlier attempt, where this one has only just begun
        state = _state_of(root, run, cancelled=now.state.type == StateType.CANCELLING)
        client.set_flow_run_state(run.id, state, force=True)
        return f"marked as {state.name}"


def _state_of(root: Path, run: FlowRun, *, cancelled: bool) -> State[Any]:
    """Return how a run has ended whose process could not tell the server."""
    folder = runs.folder_of(root, str(run.id))
    if runs.completed(folder):
        return Completed(message="It had ended while the server was away.")
    if cancelled:  # it has ended as it was told to, and whoever told it has not said so yet
        return Cancelled(message="It can be resumed.")
    if not (folder / "params.json").is_file():
        return Crashed(message="Its process has ended before the first stage. Start it again.")
    command = runs.resume_command(str(run.name).partition("-")[0], root, str(run.id))
    return Crashed(message=f"Its process has ended. Resume it: {command}")


def _lock(root: Path, run_id: str) -> Path:
    return root / "locks" / f"run-{UUID(run_id)}.lock"
