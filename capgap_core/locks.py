"""A lock that dies with its owner: ``flock`` on a file that is never deleted."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from capgap_core.progress import Progress


@contextmanager
def held(path: Path, progress: Progress, *, poll: float = 0.2) -> Iterator[None]:
    """Hold the lock ``path``; say once that somebody else has it, and wait.

    The kernel frees the lock when its owner dies, so a lock is never stale.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        told = False
        while not take(descriptor):
            if not told:
                holder = os.pread(descriptor, 100, 0).decode(errors="replace").strip() or "another process"
                progress.message(f"waiting for {holder}, which is making the same result")
                told = True
            time.sleep(poll)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def take(descriptor: int) -> bool:
    """Lock an open file and return yes; no where somebody else has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
