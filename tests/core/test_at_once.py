"""Several asks at once: their order, how many run together, and what becomes of the others where one fails."""

import _thread
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest

from capgap_core.at_once import several, together
from capgap_core.recipes import Execution
from capgap_core.workers import Stopped, workers

WHO: ContextVar[str] = ContextVar("who", default="nobody")


class Here:
    """Workers that are threads of this process, and are there once they were wanted and tended."""

    def __init__(self, most: int) -> None:
        self.most, self.wanted, self.stopped = most, threading.Event(), threading.Event()
        self.places, self.running, self.peak = 1, 0, 0
        self.tended_by: set[int] = set()

    def tend(self) -> None:
        self.tended_by.add(threading.get_ident())
        self.places = self.most if self.wanted.is_set() else 1

    def make(self, *asked: Any) -> Any:
        raise NotImplementedError

    def wait(self, seconds: float) -> None:
        """Do as if something were made."""
        self.wanted.set()
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            if self.stopped.wait(seconds):
                raise Stopped("told to end")
        finally:
            self.running -= 1

    def stop(self) -> None:
        self.stopped.set()

    def close(self) -> None:
        self.stop()


def asks(held: Here, *seconds: float) -> list[Callable[[], Any]]:
    def ask(place: int, long: float) -> Callable[[], Any]:
        def made() -> Any:
            held.wait(long)
            return place, workers() is held, WHO.get()

        return made

    return [ask(place, long) for place, long in enumerate(seconds)]


def test_what_each_gave_comes_in_the_order_of_the_asks() -> None:
    held = Here(3)
    token = WHO.set("the caller")
    try:
        found: Any = together(asks(held, 0.6, 0.3, 0.01, 0.2, 0.01), held)
    finally:
        WHO.reset(token)
    assert found == [(place, True, "the caller") for place in range(5)]
    assert held.peak == 3
    assert held.tended_by == {threading.get_ident()}, "only the caller may start workers"
    assert workers() is None


def test_asks_that_want_no_workers_come_one_after_the_other() -> None:
    held, order = Here(9), []
    together([lambda place=place: order.append((place, len(order))) for place in range(4)], held)  # type: ignore[misc]
    assert order == [(place, place) for place in range(4)]


def fails() -> Any:
    raise ValueError("this one")


def interrupts() -> Any:
    _thread.interrupt_main()
    time.sleep(1.0)


@pytest.mark.parametrize(("ask", "error"), [(fails, ValueError), (interrupts, KeyboardInterrupt)])
def test_where_one_fails_those_that_run_are_ended_and_no_other_begins(ask: Any, error: type[BaseException]) -> None:
    held, begun = Here(2), time.monotonic()
    later: list[int] = []

    def bad() -> Any:
        while held.running < 1:
            time.sleep(0.01)
        return ask()

    with pytest.raises(error):
        together([*asks(held, 60.0), bad, lambda: later.append(1)], held)  # type: ignore[list-item, return-value]
    assert held.running == 0
    assert later == []
    assert time.monotonic() - begun < 20


def test_without_ray_they_are_asked_for_here() -> None:
    with several(Execution()) as ask_all:
        found = ask_all([threading.get_ident, workers])  # type: ignore[list-item, return-value]
    assert found == [threading.get_ident(), None]
