"""Who makes the stages of a context, where others do: what workers are, whatever they run on."""

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Protocol, runtime_checkable

from pydantic import BaseModel

from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Reference
from capgap_core.store import Address


class Stopped(BaseException):
    """Ends what runs beside something that has failed; beside ``Exception``, so that nobody takes it for a failure."""


@runtime_checkable
class Workers(Protocol):
    """Make stages in other processes."""

    @property
    def places(self) -> int:
        """Return how many they make at once; 1 until they have been started, as nothing may want them."""
        ...

    def tend(self) -> None:
        """Start them where a stage waits for that; called again and again by the thread that asks for all."""
        ...

    def make(
        self, address: Address, recipe: BaseModel, inputs: Mapping[str, Input], execution: Execution, progress: Progress
    ) -> Reference:
        """Return a stage that a worker has made; raises ``Stopped`` once that is asked for."""
        ...

    def stop(self) -> None:
        """Have whatever is being made keep its state and end."""
        ...

    def close(self) -> None:
        """End them."""
        ...


_workers: ContextVar[Workers | None] = ContextVar("workers", default=None)


def give(held: Workers) -> None:
    """Have these make the stages of this context."""
    _workers.set(held)


def workers() -> Workers | None:
    """Return who makes the stages of this context, if others do."""
    return _workers.get()
