"""Turn a stage of the core into a Prefect task: its key, the check of a hit, and its progress."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from prefect import task
from prefect.cache_policies import CacheKeyFnPolicy
from prefect.context import TaskRunContext
from prefect.logging import get_run_logger
from prefect.serializers import Serializer
from pydantic import BaseModel

from capgap_core import store
from capgap_core.build import address_of, build, store_of
from capgap_core.errors import Damaged
from capgap_core.in_use import use
from capgap_core.recipes import Execution
from capgap_core.records import Input, Reference
from capgap_core.store import Address
from tasks.progress import shown

OWN: Literal["capgap-reference"] = "capgap-reference"
"""The name of our serializer in a record of Prefect's."""
RESULTS = Path("prefect", "results")
"""Where Prefect keeps the references of finished tasks, below the store's root; it may be removed at any time."""


class StageTask(Protocol):
    """Make one stage as a task of the flow that is running."""

    def __call__(
        self, recipe: BaseModel, inputs: Mapping[str, Input], *, role: str = "", execution: Execution
    ) -> Reference:
        """Return the reference of the finished stage."""
        ...


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a cached reference has to stand for, to be a hit in the task that is being called."""

    folder: Path
    verify: store.Verify


_expected: ContextVar[Expected | None] = ContextVar("expected", default=None)


@contextmanager
def expecting(folder: Path, execution: Execution) -> Iterator[None]:
    """Let cached references be hits only where they stand for ``folder`` and pass the check asked for."""
    token = _expected.set(Expected(folder=folder, verify=execution.verify))
    try:
        yield
    finally:
        _expected.reset(token)


class ReferenceSerializer(Serializer):
    """Keeps a reference as JSON, and checks the stage it stands for when it is read back.

    Prefect takes any exception here for "not cached", so that a stage which is missing or damaged, which
    other code made, or which lies in another store, goes to the core, which repairs it and says so.
    """

    type: Literal["capgap-reference"] = OWN  # pyright: ignore[reportIncompatibleVariableOverride]

    def dumps(self, obj: Reference | BaseException) -> bytes:
        """Return the reference as JSON; or the error of a failed task, which is never read back."""
        if isinstance(obj, BaseException):
            return json.dumps({"failed": repr(obj)}).encode()
        return obj.model_dump_json().encode()

    def loads(self, blob: bytes) -> Reference:
        """Return the reference marked as reused, after the check."""
        reference = Reference.model_validate_json(blob)
        expected = _expected.get()
        if expected is None:
            return store.load(reference)
        if reference.folder != expected.folder:
            raise Damaged(f"{reference.path}: the task asks for {expected.folder}")
        return store.load(reference, verify=expected.verify)


def stage_task(stage: str, description: str) -> StageTask:
    """Return a function that makes ``stage`` as a Prefect task; see ``capgap_core.build``.

    The key of the task is the address of its result, computed in the flow before the task exists: an error
    in a key fails the run there, where inside Prefect it would mean a task that is never cached.
    """

    @task(
        name=stage,
        description=description,
        task_run_name="{label}",
        cache_policy=CacheKeyFnPolicy(cache_key_fn=_key),
        persist_result=True,
        result_serializer=ReferenceSerializer(),
        cache_result_in_memory=False,
    )
    def run(
        recipe: BaseModel, inputs: Mapping[str, Input], execution: Execution, address: Address, label: str
    ) -> Reference:
        with shown(label, get_run_logger()) as progress:
            return build(address.stage, recipe, inputs, execution=execution, progress=progress)

    def call(recipe: BaseModel, inputs: Mapping[str, Input], *, role: str = "", execution: Execution) -> Reference:
        address, _ = address_of(stage, recipe, inputs)
        made_in = store_of(execution)
        step = run.with_options(result_storage=made_in.root / RESULTS)
        forget_foreign(made_in.root / RESULTS / _name(address))
        use(made_in.root, _name(address))  # a hit does not reach the core
        with expecting(made_in.folder(address), execution):
            made = step(recipe, inputs, execution, address, f"{stage} {role}".strip())
        return cast("Reference", made)

    return call


def forget_foreign(record: Path) -> None:
    """Remove a record of Prefect's that asks to be read in another way than ours is written.

    Prefect reads a record with whatever serializer it names, and one that names pickle runs what is in it.
    """
    try:
        held = json.loads(record.read_bytes())
        ours = held.keys() == {"metadata", "result"} and held["metadata"]["serializer"] == {"type": OWN}
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        ours = False
    if not ours:  # a record of an older form may name its serializer elsewhere
        record.unlink(missing_ok=True)


def _key(_context: TaskRunContext, parameters: dict[str, Any]) -> str:
    return _name(parameters["address"])


def _name(address: Address) -> str:
    return "-".join(address.parts)
