"""Start Ray on this machine or join a cluster, and say what its machines have room for.

``local`` starts Ray on this machine alone: all its servers listen on 127.0.0.1 only, ask for a token that this process
draws, and end with the context.
"""

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from capgap_core import signals
from capgap_core.errors import StageFailed
from capgap_core.recipes import Execution

LOCAL = "local"
OBJECTS = 80 * 2**20
"""Bytes of Ray's shared memory, which holds but these texts: about the least that it takes."""
ENVIRONMENT: dict[str, str | None] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # by which Ray keeps to 127.0.0.1 on any system
    "RAY_worker_niceness": "0",  # by itself Ray lets whatever else runs go before
    "RAY_AUTH_MODE": None,  # left open, a Ray on one machine asks for a token, whenever ray was imported
}
"""What a Ray on this machine alone is started with; null: unset. Read when ray is imported, and by its servers."""


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
