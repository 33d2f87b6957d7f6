"""Check what a run needs of this machine: versions, the store's file system, the server, and who serves."""

import fcntl
import re
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from json import dumps, loads
from pathlib import Path
from typing import Any

from flows import servers
from flows.places import named_api
from flows.upkeep import size

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
WATCHED = ("torch", "transformers", "datasets", "prefect", "fastapi", "pandas", "pyarrow", "pydantic")
SPACE = 5_000_000_000
"""Bytes that a run of a small encoder may need."""

Finding = tuple[str, bool, str]
"""What was looked at, whether it will do, and what was found or is to be done."""


def doctor(root: Path) -> int:
    """Print one line for each check; return 1 where one will not do."""
    findings = [*_python(), *_versions(), *_disk(root), *_server(root)]
    for name, good, said in findings:
        print(f"{'ok ' if good else 'NOT'}  {name}: {said}")
    return 0 if all(good for _, good, _ in findings) else 1


def _python() -> Iterator[Finding]:
    found = sys.version_info[:2]
    yield "Python", (3, 11) <= found <= (3, 13), f"{found[0]}.{found[1]} (3.11 to 3.13)"


def _versions() -> Iterator[Finding]:
    """Compare what is installed with what capgap is tested with; another version is told, and is no fault."""
    text = CONSTRAINTS.read_text(encoding="utf8") if CONSTRAINTS.is_file() else ""
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))
    for name in WATCHED:
        try:
            found = version(name)
        except PackageNotFoundError:
            yield name, False, f"not installed: pip install {name}=={pins.get(name, '')}"
            continue
        pinned = pins.get(name)
        same = pinned is None or found.partition("+")[0] == pinned
        yield name, True, found if same else f"{found}; tested with {pinned} (constraints.txt)"
    if "fastapi" in pins:
        try:
            late = tuple(map(int, version("fastapi").split(".")[:2])) >= (0, 151)
        except (PackageNotFoundError, ValueError):
            return
        if late:
            yield "fastapi", False, "Prefect 3.8 does not start with 0.151 or later: install the pinned one"


def _disk(root: Path) -> Iterator[Finding]:
    place = next(path for path in (root, *root.parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".capgap-doctor-") as folder:
            yield "store", True, f"{root} can be written"
            yield "locks", _locks(Path(folder) / "lock"), f"flock on {place}"
    except OSError as error:
        yield "store", False, f"{place} cannot be written ({error.strerror}): give another one, run.root"
        return
    split = {p.stat().st_dev for p in (root / "store", root / "work") if p.is_dir()}
    yield "file system", len(split) < 2, "store/ and work/ are on one" if len(split) < 2 else "store/ and work/ differ"
    free = shutil.disk_usage(place).free
    yield "space", free >= SPACE, f"{size(free)} free below {place}"


def _locks(path: Path) -> bool:
    """Return whether a second descriptor is kept out."""
    with path.open("w") as one, path.open("w") as other:
        fcntl.flock(one, fcntl.LOCK_EX)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _server(root: Path) -> Iterator[Finding]:
    named = named_api()
    url = named[0] if named else servers.announced_server(root)
    if url is None:
        yield "server", True, "none is up; capgap run starts its own, and capgap up one that stays"
        return
    where = f" (from {named[1]})" if named else " (of capgap up)"
    try:
        ask = _asking(url)
        deployments = ask("/deployments/filter", {"flows": {"name": {"any_": ["capgap"]}}})
        running = ask("/flow_runs/count", {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "CANCELLING"]}}}})
        limits = [*ask("/concurrency_limits/filter", {}), *ask("/v2/concurrency_limits/filter", {})]
    except (OSError, ValueError) as error:
        yield "server", False, f"{url}{where} does not answer ({error}): start it, or unset it"
        return
    yield "server", True, f"{url}{where}"
    ready = [d["name"] for d in deployments if d.get("status") == "READY"]
    yield "worker", bool(ready), f"serves {', '.join(sorted(ready))}" if ready else "nobody serves: capgap up"
    leaked = [_slot(limit) for limit in limits if limit.get("active_slots") and not running]
    yield "slots", not leaked, "none leaked" if not leaked else f"held though nothing runs: {', '.join(leaked)}"


def _slot(limit: dict[str, Any]) -> str:
    return str(limit.get("name") or limit.get("tag"))


def _asking(url: str) -> Callable[[str, dict[str, Any]], Any]:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({} if "127.0.0.1" in url else None))

    def ask(path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(url + path, dumps(body).encode(), {"Content-Type": "application/json"})
        with direct.open(request, timeout=10) as answer:
            return loads(answer.read())

    return ask
