"""Make several things at once where workers are given, else one after the other.

Each is asked for in a thread of its own, in a copy of the caller's context, so that an orchestrator knows whose run it
is in. The thread only waits: what is slow is made by a worker, ``build`` sees to that, and so an interruption reaches
the main thread of a process that can keep the state of its training. Only the calling thread starts and ends workers.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from capgap_core import signals
from capgap_core.ray_workers import RayWorkers
from capgap_core.recipes import Execution
from capgap_core.records import Reference
from capgap_core.workers import Workers, give

POLL = 0.1
"""Seconds between two looks at whether workers are wanted."""
PATIENCE = 25.0
"""Seconds in which what is running has to end once it was told to; Prefect kills after 30."""

Given = TypeVar("Given")
Together = Callable[[Sequence[Callable[[], Reference]]], list[Reference]]
"""Asks for all of them and returns what each gave, in the order of the asks."""


@contextmanager
def several(execution: Execution) -> Iterator[Together]:
    """Give what makes several stages: at once where ``execution.ray`` says where, else one after the other."""
    if execution.ray is None:
        yield lambda asks: [ask() for ask in asks]
        return
    held = RayWorkers(execution)
    try:
        yield lambda asks: together(asks, held)
    finally:
        with signals.deferred():
            held.close()


@dataclass(kw_only=True)
class _Ended(Generic[Given]):
    """What one of the asks came to."""

    place: int
    given: list[Given] = field(default_factory=list)
    """The one thing that it gave, or nothing."""
    error: BaseException | None = None


def together(asks: Sequence[Callable[[], Given]], held: Workers) -> list[Given]:
    """Ask for all, as many at once as there are places, and return what each gave in the order of the asks.

    Where one fails, or a signal ends the wait, those that run are told to end and waited for; then that is raised.
    """
    waiting, done = deque(enumerate(asks)), SimpleQueue[_Ended[Given]]()
    running: dict[int, threading.Thread] = {}
    made: dict[int, Given] = {}
    try:
        while waiting or running:
            while waiting and len(running) < held.places:
                place, ask = waiting.popleft()
                running[place] = _begun(place, ask, held, done)
            try:
                ended = done.get(timeout=POLL)
            except Empty:
                held.tend()
                continue
            running.pop(ended.place).join()
            if ended.error is not None:
                raise ended.error
            made[ended.place] = ended.given[0]
    except BaseException:
        with signals.deferred():
            held.stop()
            deadline = time.monotonic() + PATIENCE
            for thread in running.values():
                thread.join(max(0.0, deadline - time.monotonic()))
        raise
    return [made[place] for place in range(len(asks))]


def _begun(place: int, ask: Callable[[], Given], held: Workers, done: "SimpleQueue[_Ended[Given]]") -> threading.Thread:
    def work() -> None:
        give(held)
        try:
            done.put(_Ended(place=place, given=[ask()]))
        except BaseException as error:  # the thread that asked for all raises it
            done.put(_Ended(place=place, error=error))

    # A daemon: one that does not end in time must not keep the process from ending.
    thread = threading.Thread(target=copy_context().run, args=(work,), daemon=True, name=f"ask-{place}")
    thread.start()
    return thread
