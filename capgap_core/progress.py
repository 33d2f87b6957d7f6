"""How a running stage tells whoever is watching how far it is."""

import sys
import time
from typing import Protocol, TextIO, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """What a stage needs of its watcher."""

    def message(self, text: str) -> None:
        """Say one line."""
        ...

    def update(self, done: int, total: int, note: str = "") -> None:
        """Say that ``done`` of ``total`` steps are done; may be called at every step."""
        ...


class Silent:
    """Tells nobody."""

    def message(self, text: str) -> None:
        """Drop the line."""

    def update(self, done: int, total: int, note: str = "") -> None:
        """Drop the count."""


class Labelled:
    """Puts a label before whatever another watcher is told."""

    def __init__(self, progress: Progress, label: str) -> None:
        self._progress, self._label = progress, label

    def message(self, text: str) -> None:
        """Pass the line on."""
        self._progress.message(f"{self._label}: {text}")

    def update(self, done: int, total: int, note: str = "") -> None:
        """Pass the count on."""
        self._progress.update(done, total, f"{self._label}: {note}")


class Lines:
    """Writes lines to a stream, at most one every ``every`` seconds for counts."""

    def __init__(self, *, stream: TextIO | None = None, every: float = 5.0) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._every = every
        self._last = time.monotonic()

    def message(self, text: str) -> None:
        """Write one line."""
        print(text, file=self._stream, flush=True)

    def update(self, done: int, total: int, note: str = "") -> None:
        """Write the count where the last one is ``every`` seconds old."""
        now = time.monotonic()
        if now - self._last >= self._every:
            self._last = now
            self.message(f"{done}/{total} {note}".rstrip())
