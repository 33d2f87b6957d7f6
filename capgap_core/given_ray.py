"""Looks at the Ray that a run is to use: whether it is there, has what is asked of it, and sees the same store."""

import contextlib
import importlib.util
import json
import secrets
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from capgap_core.errors import Fault, fault
from capgap_core.fingerprint import code_of
from capgap_core.recipes import Execution

PATIENCE = 5.0
"""Seconds in which an address has to answer."""
PROBE_PATIENCE = 60.0
"""Seconds in which a machine of a cluster has to say what it sees; its first process takes some to start."""
AT_ONCE = ("law",)
"""The flows with stages that do not wait for one another."""


def faults_of(flow: str, run: Execution, wrong: set[str], root: str | None) -> list[Fault]:
    """Return every fault of ``run.ray``, but for what is ``wrong`` already or needs a ``root`` that cannot be used."""
    if wrong & {"run", "run.ray", "run.device"}:
        return []
    return across(flow, run) or (look(run) if root else [])


def across(flow: str, run: Execution) -> list[Fault]:
    """Return the faults of what is asked for, without a look at any machine."""
    if run.ray is None:
        return []
    faults = []
    if flow not in AT_ONCE:
        rule = f"the stages of {flow} follow one from the other: only {', '.join(AT_ONCE)} has some to make at once"
        faults.append(fault("run.ray", run.ray, rule, "Leave it out."))
    if run.device.startswith("cuda:"):
        rule = "run.ray is given, and Ray gives each stage a GPU of its own"
        faults.append(fault("run.device", run.device, rule, "Use auto, cuda or cpu."))
    if importlib.util.find_spec("ray") is None:
        faults.append(fault("run.ray", run.ray, "ray is not installed", "pip install 'capgap[ray]', or leave it out."))
    return faults


def look(run: Execution) -> list[Fault]:
    """Return the faults of a cluster: one that does not answer, lacks GPUs, or has machines that cannot take part.

    ``run.root`` is there and may be written; ``local`` is nothing to look at, as it is started only when it is wanted.
    """
    if run.ray in (None, "local"):
        return []
    host, _, port = run.ray.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
    except (OSError, ValueError, OverflowError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        return [_unanswered(run, reason)]
    from capgap_core import ray_start  # noqa: PLC0415 - needs ray, an extra

    try:
        with ray_start.connected(run) as ray:
            nodes = [node for node in ray.nodes() if node["Alive"]]
            return _gpus(run, nodes) + _machines(ray, run, nodes)
    except (RuntimeError, ConnectionError, ValueError) as error:  # other versions, or no Ray at all
        return [_unanswered(run, " ".join(str(error).split()))]


def _unanswered(run: Execution, reason: str) -> Fault:
    remedy = "Start a cluster (ray start --head), have this machine be part of it, or give run.ray=local."
    return fault("run.ray", run.ray, f"no Ray answers there ({reason})", remedy)


def _gpus(run: Execution, nodes: list[Mapping[str, Any]]) -> list[Fault]:
    if not run.device.startswith("cuda") or any(node["Resources"].get("GPU") for node in nodes):
        return []
    return [fault("run.device", run.device, "the cluster of run.ray has no GPU", "Use auto or cpu.")]


def _machines(ray: Any, run: Execution, nodes: list[Mapping[str, Any]]) -> list[Fault]:
    """Return a fault for each machine that does not see the store, or has no capgap or another."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415 - an extra

    assert run.root is not None
    faults = []
    with _probe(Path(run.root)) as (path, words):
        asked = {}
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(max_retries=0, num_cpus=0, scheduling_strategy=there)(seen)
            asked[node["NodeManagerAddress"]] = task.remote(str(path), words)
        for address, job in asked.items():
            try:
                held = json.loads(ray.get(job, timeout=PROBE_PATIENCE))
            except ray.exceptions.RayError as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                rule = f"{address} cannot run capgap ({reason})"
                faults.append(fault("run.ray", run.ray, rule, "Install capgap there, too."))
                continue
            if not held["sees"]:
                rule = f"{address} does not see this folder"
                faults.append(fault("run.root", run.root, rule, "Give one that every machine of the cluster shares."))
            if held["code"] != _code():
                rule = f"{address} has other code of capgap"
                faults.append(fault("run.ray", run.ray, rule, "Have the same version on every machine."))
    return faults


@contextlib.contextmanager
def _probe(root: Path) -> Iterator[tuple[Path, str]]:
    """Give a file in the store, and what is in it, for as long as machines are asked about it."""
    words = secrets.token_hex(16)
    path = root / f".seen-{words}"
    path.write_text(words, encoding="utf8")
    try:
        yield path, words
    finally:
        path.unlink(missing_ok=True)


def seen(path: str, words: str) -> str:
    """Return, on a machine of the cluster, whether it sees the probe and which code it has, as JSON."""
    probe = Path(path)
    return json.dumps({"sees": probe.is_file() and probe.read_text(encoding="utf8") == words, "code": _code()})


def _code() -> str:
    code, _ = code_of("pretrain")
    return code
