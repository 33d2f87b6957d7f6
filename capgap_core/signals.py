"""Keeps a signal that would end the process waiting until what has begun is in a state that can be kept."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Asked:
    """Which signal has come, if any."""

    number: int | None = None


@contextmanager
def deferred() -> Iterator[Asked]:
    """Take note of a signal that asks to end, and deliver it to its own handler when the context is left.

    A second one is delivered at once, for whoever does not want to wait. Signals reach the main thread only, so in
    any other thread this does nothing.
    """
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before: dict[int, Any] = {}

    def restore() -> None:
        while before:
            signal.signal(*before.popitem())

    def note(number: int, _frame: FrameType | None) -> None:
        if asked.number is not None:
            restore()
            signal.raise_signal(number)
        asked.number = number

    # A handler that was not set from Python reads as None and could not be put back.
    before |= {number: signal.signal(number, note) for number in ENDING if signal.getsignal(number) is not None}
    try:
        yield asked
    finally:
        restore()
        if asked.number is not None:
            signal.raise_signal(asked.number)
