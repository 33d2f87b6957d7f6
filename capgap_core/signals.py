"""Keeps signals that would end the process waiting while something is done that must not be cut in two."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def deferred() -> Iterator[None]:
    """Deliver the first of the signals that come meanwhile to its own handler when the context is left.

    For what takes a second or so. Signals reach the main thread only, so in any other thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    before: dict[int, Any] = {}
    try:
        for number in ENDING:
            handler = signal.getsignal(number)
            if handler is not None:  # one that was not set from Python reads as None and could not be put back
                before[number] = handler
                signal.signal(number, note)
        yield
    finally:
        _put_back(before)
        if came:
            signal.raise_signal(came[0])


def _put_back(handlers: dict[int, Any]) -> None:
    """Set every handler again, also where one of them raises on the way."""
    try:
        while handlers:
            number, handler = next(iter(handlers.items()))
            signal.signal(number, handler)
            del handlers[number]
    finally:
        if handlers:
            _put_back(handlers)
