"""Start and stop what a command needs beside itself: a Prefect server that keeps to itself, and child processes."""

import base64
import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from capgap_core.errors import CapgapError
from flows.places import named_api

PORT = 4200
"""Tried first; Prefect's own default."""
PORTS = 5
"""Ports tried one after the other, where each is taken by somebody else just before the server has it."""
PATIENCE = 120.0
"""Seconds a server may take: its first start on a slow machine makes its data base."""
GRACE = 30.0
"""Seconds a child may take to end after it was asked to."""
PATIENT_THREADS = {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "5000")}
"""How long OpenMP's threads spin before they sleep. By default so long that a training process which shares its cores
with a server or a second run gets several times slower; this value costs some per cent where it is alone."""
FOREIGN = ("PREFECT_PROFILE", "PREFECT_PROFILES_PATH")
"""Variables that name profiles of the user's own Prefect, which capgap's own has not."""
_PR_SET_PDEATHSIG = 1


class Interrupted(BaseException):
    """A signal asked the command to end; beside ``Exception`` so that nothing on the way takes it for a failure."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


class Unreachable(CapgapError):
    """The Prefect server that the user named does not answer."""


class Ended(CapgapError):
    """A process that was started ended, or was not ready in time."""


class Child:
    """A process in a group of its own, which ends with this one whatever happens."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path | None) -> None:
        self._log = log
        out = subprocess.PIPE if log is None else log.open("wb")
        try:
            self.process = subprocess.Popen(
                command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=_die_with_parent,  # noqa: PLW1509 - two system calls, no lock
            )  # fmt: skip
        finally:
            if log is not None:
                out.close()  # type: ignore[union-attr]

    def stop(self) -> None:
        """Ask the whole group to end, wait, and end what is left; signals are ignored while it takes."""
        with _undisturbed():
            self._stop()

    def _stop(self) -> None:
        for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 5.0)):
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                break
            deadline = time.monotonic() + patience
            while self._alive() and time.monotonic() < deadline:
                time.sleep(0.05)
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def lines(self) -> list[str]:
        """Return what the child has written to its log."""
        log = self._log
        return log.read_text(encoding="utf8", errors="replace").splitlines() if log and log.is_file() else []

    def last_lines(self) -> str:
        """Return the end of that."""
        return "\n".join(self.lines()[-15:])

    def _alive(self) -> bool:
        self.process.poll()
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True


def _die_with_parent() -> None:
    """Have Linux end this child where its parent is killed without a chance to do so."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the signals that end a process into ``Interrupted``, so that children are stopped on the way out."""

    def raise_it(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, raise_it) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore those signals while children are being stopped; it takes seconds at most."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def home(root: Path) -> Path:
    """Return the folder in which capgap's own Prefect server keeps its data base and logs."""
    return root / "prefect"


def environment(root: Path, url: str | None) -> dict[str, str]:
    """Return the variables of a process that talks to capgap's own server, and to nothing else."""
    kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    local = ",".join(filter(None, [os.environ.get("NO_PROXY", ""), "127.0.0.1"]))
    own = {
        "CAPGAP_ARTIFACTS": str(root),
        "PREFECT_HOME": str(home(root)),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "DO_NOT_TRACK": "1",
        **PATIENT_THREADS,
        "NO_PROXY": local,
        "no_proxy": local,
    }
    return kept | own | ({"PREFECT_API_URL": url} if url else {})


def start_server(root: Path) -> tuple[Child, str]:
    """Start a server of capgap's own on this machine only; return it and the address of its API."""
    home(root).mkdir(parents=True, exist_ok=True)
    with _locked(home(root) / "start.lock"):  # two that make one data base at once would fail
        for _ in range(PORTS):
            url = f"http://127.0.0.1:{free_port()}/api"
            child = server_at(root, url)
            if child is not None:
                return child, url
    raise Ended(f"of {PORTS} free ports on 127.0.0.1 each was taken by another process before the server had it")


def server_at(root: Path, url: str) -> Child | None:
    """Start a server at this address and wait until it answers; nothing where another process took its port first.

    Raises
    ------
    Ended
        Where it does not start.
    """
    port = url.rpartition(":")[2].partition("/")[0]
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port]
    child = Child(command, environment(root, url), home(root) / "server.log")
    try:
        wait_for(lambda: _home_of(url) == str(home(root)), child, "the Prefect server")
    except BaseException as error:
        child.stop()
        if isinstance(error, Ended) and any("already in use" in line for line in child.lines()):
            return None
        raise
    return child


def _home_of(url: str) -> str | None:
    """Return the folder of the server that answers at this address: that of another may have been quicker."""
    try:
        with _direct().open(f"{url}/admin/settings", timeout=5) as answer:
            return str(json.loads(answer.read()).get("home"))
    except (OSError, ValueError):
        return None


def free_port() -> int:
    """Return Prefect's own port where it is free, else any free one."""
    for port in (PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port on 127.0.0.1")


def healthy(url: str) -> bool:
    """Return whether a Prefect server answers at this address."""
    try:
        with _direct().open(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except (OSError, urllib.error.URLError):
        return False


def _direct() -> urllib.request.OpenerDirector:
    """Return what asks a server on this machine, past any proxy, with the password that a user has set for it."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    if words := os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        opener.addheaders.append(("Authorization", f"Basic {base64.b64encode(words.encode()).decode()}"))
    return opener


def named(say: Callable[[str], None], more: str = "") -> str | None:
    """Return the address of the server that the user named, after telling it and seeing that something answers there.

    Raises
    ------
    Unreachable
        Where nothing does.
    """
    if (found := named_api()) is None:
        return None
    url, where = found
    say(f"Prefect server: {url} (from {where}){more}")
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=10):
            return url
    except urllib.error.HTTPError:
        return url  # it answers, if only to those it knows
    except (OSError, ValueError) as error:
        why = f"the Prefect server at {url} (from {where}) does not answer"
        raise Unreachable(f"{why}. Start it, or unset it: capgap then starts one of its own.") from error


def wait_for(ready: Callable[[], bool], child: Child, name: str) -> None:
    """Wait until ``ready``; raise where the child ends before, with the last lines it wrote."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if child.process.poll() is not None:
            raise Ended(f"{name} ended with status {child.process.returncode}:\n{child.last_lines()}")
        if time.monotonic() > deadline:
            raise Ended(f"{name} was not ready after {PATIENCE:.0f} seconds:\n{child.last_lines()}")
        time.sleep(0.1)


@contextmanager
def announced(root: Path, url: str) -> Iterator[None]:
    """Let other commands find the server of ``capgap up``; a lock that the kernel frees says that it lives."""
    with _locked(home(root) / "up.lock"):
        path = home(root) / "up.json"
        path.write_text(json.dumps({"api": url}) + "\n", encoding="utf8")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def announced_server(root: Path) -> str | None:
    """Return the address of the API of a ``capgap up`` that serves this store now."""
    lock, path = home(root) / "up.lock", home(root) / "up.json"
    if not lock.is_file() or not path.is_file():
        return None
    with lock.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            try:
                url = str(json.loads(path.read_text(encoding="utf8"))["api"])
            except (OSError, ValueError):
                return None  # it is just going, or just coming
            return url if healthy(url) else None
    return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
