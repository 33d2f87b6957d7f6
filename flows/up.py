"""Bring up the local page: a server, a process that serves every deployment, and a first run where asked."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flows import present, runs, servers

Say = Callable[[str], None]
SOON = 20.0
"""Seconds that a process has to live to be begun again."""
_RUN_ID = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")


def up(root: Path, *, run: str | None, keep: bool, say: Say) -> int:
    """Serve every deployment; return the exit status.

    Parameters
    ----------
    root
        The store; the server's own data lies below it.
    run
        The deployment to run first, if any; its result is printed to stdout.
    keep
        Whether to serve on until a signal comes.
    say
        Tells the user what is not the result.
    """
    status = 1
    try:
        with contextlib.ExitStack() as stack:
            children: list[Kept] = []
            environment = stack.enter_context(_serving(root, say, children))
            status = 0 if run is None else _run(root, run, environment, say)
            if keep:
                say("serving every deployment; Ctrl-C stops it")
                return _watch(children, say)
    except servers.Interrupted:
        if (run is not None and status == 1) or not keep:
            raise
        say("stopped; make up brings the page back")
        return status
    say("stopped what was started; make up brings the page back")
    return status


@dataclass
class Kept:
    """A process that runs until it is stopped, and how it begins again where it ends by itself."""

    child: servers.Child
    again: Callable[[], servers.Child | None] | None = None
    since: float = field(default_factory=time.monotonic)


@contextlib.contextmanager
def _serving(root: Path, say: Say, children: list[Kept]) -> Iterator[dict[str, str]]:
    """Have a server and a process that serves; yields the environment of who talks to them."""
    if servers.named(say, "; deployments are registered there"):
        with _served(root, {**os.environ, "CAPGAP_ARTIFACTS": str(root)}, children) as environment:
            yield environment
    elif url := servers.announced_server(root):
        say(f"already up: {url.removesuffix('/api')}")
        yield servers.environment(root, url)
    else:
        child, url = servers.start_server(root)
        server = Kept(child, lambda: servers.server_at(root, url))
        children.append(server)
        try:
            say(f"Prefect server: {url.removesuffix('/api')}")
            with _served(root, servers.environment(root, url), children) as environment, servers.announced(root, url):
                yield environment
        finally:
            server.child.stop()


@contextlib.contextmanager
def _served(root: Path, environment: dict[str, str], children: list[Kept]) -> Iterator[dict[str, str]]:
    servers.home(root).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready"
        command = [sys.executable, "-m", "flows.serve", "--ready", str(ready)]
        child = servers.Child(command, environment, servers.home(root) / "serve.log")
        children.append(Kept(child))
        try:
            servers.wait_for(ready.exists, child, "the process that serves the deployments")
            yield environment
        finally:
            child.stop()


def _run(root: Path, name: str, environment: dict[str, str], say: Say) -> int:
    """Run a deployment as a user would, pass on what it says, and print its result."""
    command = [sys.executable, "-m", "prefect", "deployment", "run", f"capgap/{name}", "--watch"]
    say("$ prefect " + " ".join(command[3:]))
    child = servers.Child(command, {**environment, "PYTHONUNBUFFERED": "1"}, None)
    run_id = ""
    try:
        assert child.process.stdout is not None
        for raw in child.process.stdout:
            line = raw.decode(errors="replace").rstrip()
            say(line)
            found = _RUN_ID.search(line)
            run_id = run_id or (found[0] if found else "")
        status = child.process.wait()
    finally:
        child.stop()
    path = runs.folder_of(root, run_id) / "result.json"
    if status != 0 or not path.is_file():
        say(f"the run did not complete; its log is above and in {servers.home(root) / 'serve.log'}")
        return 1
    result = json.loads(path.read_text(encoding="utf8"))
    print(present.table(result))
    print(f"\npage     {result['url']}", flush=True)
    return 0


def _watch(children: list[Kept], say: Say) -> int:
    """Wait for a signal; return where a process ends by itself and cannot be begun again."""
    while True:
        for kept in children:
            try:
                status = kept.child.process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                continue
            say(f"a served process ended by itself with status {status}:\n{kept.child.last_lines()}")
            if not _revived(kept):
                return 1
            say("it was started again; what trains was not touched")
        if not children:
            time.sleep(0.5)


def _revived(kept: Kept) -> bool:
    """Begin a process again, unless there is no way, or it ended soon after it had begun."""
    if kept.again is None or time.monotonic() - kept.since < SOON:
        return False
    kept.since = time.monotonic()
    child = kept.again()
    kept.child = child or kept.child
    return child is not None
