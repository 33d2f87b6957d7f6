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

    # A handler that was not set from Python reads as None and could not be put back.
    before: dict[int, Any] = {n: signal.signal(n, note) for n in ENDING if signal.getsignal(n) is not None}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
