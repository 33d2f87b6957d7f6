"""Heed the UI's Cancel in a run that no serving process has started: there nobody else would.

The run is interrupted as by Ctrl-C, so that it keeps the state of its training first.
"""

import _thread
import time
from collections.abc import Callable
from contextvars import copy_context
from threading import Thread
from uuid import UUID

from httpx import HTTPError
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import PrefectException
from prefect.states import Cancelled

EVERY = 3.0
"""Seconds between two looks at what the server says of the run."""

_asked: list[UUID] = []
"""The runs that were interrupted because somebody cancelled them."""


def heed(run_id: str) -> None:
    """Look from now on, until the run has ended, whether it is to be cancelled."""
    Thread(target=copy_context().run, args=(_watch, UUID(run_id)), daemon=True, name="cancel").start()


def settle(say: Callable[[str], None]) -> None:
    """Have the server call Cancelled what it was cancelled: Prefect calls an interrupted run Crashed."""
    while _asked:
        run = _asked.pop()
        try:
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(run, Cancelled(message="It can be resumed."), force=True)
        except Exception as error:  # whatever the server says: the run has ended, which is what was asked for
            say(f"the Prefect server could not be told that run {run} is cancelled: {error}")


def _watch(run: UUID) -> None:
    with get_client(sync_client=True) as client:
        while True:
            time.sleep(EVERY)
            try:
                state = client.read_flow_run(run).state
            except (HTTPError, PrefectException):  # the server is away, which others say: it is asked again
                continue
            if state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED):
                _asked.append(run)
                _thread.interrupt_main()
                return
            if state is not None and state.is_final():
                return
