"""Show how far a running stage is: log lines, and a progress artifact that moves."""

import logging
import re
import time
from uuid import UUID

from httpx import HTTPError
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException

EVERY = 5.0
"""Seconds between two updates of the artifact."""


class TaskProgress:
    """Tells the Prefect run it is made in; see ``capgap_core.progress.Progress``."""

    def __init__(self, label: str, logger: "logging.Logger | logging.LoggerAdapter[logging.Logger]") -> None:
        self._label, self._logger = label, logger
        self._artifact: UUID | None = None
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
        try:
            self._show(100.0 * done / total if total else 100.0, f"{self._label}: {done} of {total} {note}".rstrip())
        except (HTTPError, PrefectException) as error:  # a server that is away must not stop the training
            self._logger.warning("progress could not be shown: %s", error)

    def _show(self, percent: float, text: str) -> None:
        if self._artifact is None:
            key = "progress-" + re.sub(r"[^a-z0-9]+", "-", self._label.lower()).strip("-")
            made = create_progress_artifact(progress=percent, key=key, description=text)
            assert isinstance(made, UUID)
            self._artifact = made
        else:
            update_progress_artifact(artifact_id=self._artifact, progress=percent, description=text)
