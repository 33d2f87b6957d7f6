"""Which finished stages a living process uses, so that nothing removes them under it.

Each process has one file below ``locks/`` that names the stages it has asked for, and holds a lock on it that the
kernel frees when the process ends. Whoever removes stages and whoever asks for one exclude each other for a moment,
so that a stage is either seen to be in use or gone before it is asked for.
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from capgap_core.locks import take

_PREFIX, _SUFFIX = "using-", ".lock"
_mine: dict[tuple[int, Path], tuple[int, set[str]]] = {}
"""(process, store) → the descriptor of this process's file, and what it holds already; never closed."""


def use(root: Path, name: str) -> None:
    """Say that this process uses a stage from now on, whether or not it is there."""
    with _moment(root, fcntl.LOCK_SH):
        descriptor, held = _mine.get((os.getpid(), root)) or _begun(root)
        if name not in held:
            line = f"\n{name}\n".encode()  # what was cut short before it ends here
            if os.write(descriptor, line) != len(line):  # the disk is full; half a name would protect nothing
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(root))
            held.add(name)


def in_use(root: Path) -> set[str]:
    """Return the stages that living processes use; only within ``removing`` does that stay true."""
    found: set[str] = set()
    for path in (root / "locks").glob(f"{_PREFIX}*{_SUFFIX}"):
        with path.open("r+", encoding="utf8") as file:
            if take(file.fileno()):
                path.unlink(missing_ok=True)  # its process has ended, and its name is never used again
            else:
                found |= set(file.read().split())
    return found


@contextmanager
def removing(root: Path) -> Iterator[set[str]]:
    """Let no process begin to use a stage for a moment; gives those that are in use."""
    with _moment(root, fcntl.LOCK_EX):
        yield in_use(root)


def _begun(root: Path) -> tuple[int, set[str]]:
    path = root / "locks" / f"{_PREFIX}{os.getpid()}-{time.time_ns()}{_SUFFIX}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return _mine.setdefault((os.getpid(), root), (descriptor, set()))


@contextmanager
def _moment(root: Path, kind: int) -> Iterator[None]:
    path = root / "locks" / "removing.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)
