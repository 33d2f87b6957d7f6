"""Show how far a running stage is: log lines, and a progress artifact that moves.

The artifact is moved from a thread of its own: while a server is away, Prefect's client waits and tries again for a
minute and more, for which no training should have to wait.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

EVERY = 5.0
"""Seconds between two updates of the artifact."""
PATIENCE = 2.0
"""Seconds that a finished stage waits for its last update to reach the server."""

Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]
Show = Callable[[float, str], None]


class TaskProgress:
    """Tells the Prefect run it is made in; see ``capgap_core.progress.Progress``."""

    def __init__(self, label: str, logger: Logger, show: Show) -> None:
        self._label, self._logger, self._show = label, logger, show
        self._last = -EVERY

    def message(self, text: str) -> None:
        """Log one line."""
        self._logger.info(text)

    def update(self, done: int, total: int, note: str = "") -> None:
        """Move the artifact and log a line, at most every ``EVERY`` seconds, and at the end."""
        now = time.monotonic()
        if now - self._last < EVERY and done < total:
            return
        self._last = now
        self._logger.info("%s: %d of %d %s", self._label, done, total, note)
        self._show(100.0 * done / total if total else 100.0, f"{self._label}: {done} of {total} {note}".rstrip())


@contextmanager
def shown(label: str, logger: Logger) -> Iterator[TaskProgress]:
    """Give what tells the Prefect run that is going on; what it was told last is waited for, but not for long."""
    newest = Newest(_artifact(label, logger))
    try:
        yield TaskProgress(label, logger, newest.put)
    finally:
        newest.close(PATIENCE)


class Newest:
    """Hands the newest of what it is given to a function that may take long, in a thread that holds nobody up."""

    def __init__(self, show: Show) -> None:
        self._show = show
        self._changed = threading.Condition()
        self._held: tuple[float, str] | None = None
        self._closed = False
        # A copy of the context, by which Prefect knows the run; a daemon, so that it keeps no process from ending.
        self._thread = threading.Thread(target=copy_context().run, args=(self._work,), daemon=True, name="progress")

    def put(self, percent: float, text: str) -> None:
        """Return at once; what was put before and is not shown yet never will be."""
        with self._changed:
            self._held = percent, text
            self._changed.notify()
        if self._thread.ident is None:
            self._thread.start()

    def close(self, patience: float) -> None:
        """Let the thread end once it has shown the newest; wait for that, but no longer than ``patience`` seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(patience)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._held is not None or self._closed)
                if self._held is None:
                    return
                newest, self._held = self._held, None
            self._show(*newest)


def _artifact(label: str, logger: Logger) -> Show:
    """Return what moves the artifact of one stage, made at its first call."""
    made: list[UUID] = []

    def show(percent: float, text: str) -> None:
        try:
            if made:
                update_progress_artifact(artifact_id=made[0], progress=percent, description=text)
                return
            key = "progress-" + re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
            artifact = create_progress_artifact(progress=percent, key=key, description=text)
            assert isinstance(artifact, UUID)
            made.append(artifact)
        except Exception as error:  # whatever a server that is away or a proxy before it says
            logger.warning("progress could not be shown: %s", error)

    return show
