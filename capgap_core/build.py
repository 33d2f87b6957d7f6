"""Make a stage, or find it made: the one door through which every result enters the store."""

import importlib
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from capgap_core import fingerprint, store as stores
from capgap_core.contents import content_digest
from capgap_core.errors import Damaged, StageFailed, StoreError
from capgap_core.fingerprint import code_of
from capgap_core.identity import canonical, digest_of_files, identity_of, sha256_text
from capgap_core.in_use import use
from capgap_core.locks import held
from capgap_core.progress import Progress
from capgap_core.provenance import peak_memory_bytes, provenance
from capgap_core.recipes import Execution
from capgap_core.records import WORDS, Input, Made, ModelInput, Record, Reference, StoredFile
from capgap_core.shortages import explained
from capgap_core.store import Address, Store
from capgap_core.workers import workers


def build(
    stage: str, recipe: BaseModel, inputs: Mapping[str, Input], *, execution: Execution, progress: Progress
) -> Reference:
    """Return the reference of a finished stage, making it where it is not in the store yet; or a worker makes it.

    Parameters
    ----------
    stage
        Name of a module in ``capgap_core.stages``.
    recipe
        Everything that moves the result, resolved; see the stage's module.
    inputs
        The finished stages it reads.
    execution
        Where it runs; ``execution.root`` must be set.
    progress
        Told how far it is.

    Raises
    ------
    StageFailed
        Where it cannot finish, with what to do; ``OutOfMemory`` where memory lacks.
    """
    try:
        return _found_or_made(stage, recipe, inputs, execution, progress)
    except Exception as error:
        told = explained(stage, error)
        if told is None:
            raise
        try:
            raise told from error
        finally:
            del told  # its traceback holds this frame: a circle would keep all that the stage had in memory


def _found_or_made(
    stage: str, recipe: BaseModel, inputs: Mapping[str, Input], execution: Execution, progress: Progress
) -> Reference:
    address, modules = address_of(stage, recipe, inputs)
    store = store_of(execution)
    found, _ = reusable(store, address, execution)
    if found is not None:
        store.sweep(address)
        return found
    others = workers()
    if others is not None:
        return others.make(address, recipe, inputs, execution, progress)
    with held(store.lock(address), progress):
        found, why = reusable(store, address, execution, progress)
        if found is not None:
            return found
        progress.message(why)
        return _make(store, address, modules, recipe, inputs, execution, progress, why)


def address_of(stage: str, recipe: BaseModel, inputs: Mapping[str, Input]) -> tuple[Address, dict[str, str]]:
    """Return where a stage's result is or will be, and the fingerprints of its code; imports no torch."""
    family = getattr(recipe, "family", None)
    code, modules = code_of(stage, [f"families.{family}"] if family else [])
    identity = identity_of(stage, recipe, {name: content_digest(item) for name, item in inputs.items()})
    return Address(stage=stage, identity=identity, code=code), modules


def store_of(execution: Execution) -> Store:
    """Return the store that an execution names."""
    if execution.root is None:
        raise StoreError("run.root is not set: give the folder of the store")
    return Store(execution.root, verify=execution.verify)


def reusable(
    store: Store, address: Address, execution: Execution, keeper: Progress | None = None
) -> tuple[Reference | None, str]:
    """Return a finished stage that may stand for this address, or why there is none.

    Parameters
    ----------
    keeper
        Told of what is damaged, which is then set aside. Null for whoever does not hold the stage's lock: two that
        find the same damage would set aside what one of them has already made again.
    """
    others = [other for other in store.codes(address.stage, address.identity) if other != address]
    why = "the code has changed since it was made" if others else "not made before"
    for choice in [address, *(others if execution.reuse == "any-code" else ())]:
        use(store.root, "-".join(choice.parts))
        try:
            record = store.find(choice)
        except Damaged as error:
            why = f"made again: {error}"
            if keeper is not None:
                store.set_aside(choice, str(error))
                keeper.message(f"set aside a damaged result: {error}")
            continue
        if record is not None:
            how = "finished before" if choice == address else f"made by other code ({choice.code})"
            return record.reference(store.folder(choice), reused=True, why=how), how
    return None, why


def _make(
    store: Store, address: Address, modules: dict[str, str], recipe: BaseModel, inputs: Mapping[str, Input],
    execution: Execution, progress: Progress, why: str,
) -> Reference:  # fmt: skip
    out, attempt = store.begin(address)
    started, clock = datetime.now(UTC), time.monotonic()
    module = _imported(address.stage, modules)
    made: Made = module.run(recipe, inputs, out, execution=execution, progress=progress)
    summary = json.loads(json.dumps(made.summary, sort_keys=True))  # as whoever finds the stage finished will read it
    files = stores.list_files(out)
    record = Record(
        stage=address.stage,
        identity=address.identity,
        code=address.code,
        code_modules=modules,
        digest=_digest(files, summary),
        recipe={"hashed": canonical(recipe), "given": recipe.model_dump(mode="json")},
        inputs={name: _described(item) for name, item in inputs.items()},
        data_digest=getattr(recipe, "content", None),
        provenance=_provenance(execution),
        seed=getattr(recipe, "seed", None),
        started=started.isoformat(),
        ended=datetime.now(UTC).isoformat(),
        seconds=round(time.monotonic() - clock, 3),
        steps_trained=made.steps_trained,
        tokens=made.tokens,
        peak_memory_bytes=peak_memory_bytes(),
        attempts=attempt,
        resumptions=len(made.resumed),
        resumed_from_steps=made.resumed,
        summary=summary,
        files=files,
    )
    return record.reference(store.commit(address, record), reused=False, why=why)


def _imported(stage: str, modules: Mapping[str, str]) -> ModuleType:
    """Return a stage's module, with its code loaded and alike the code that its address names."""
    module = importlib.import_module(f"capgap_core.stages.{stage}")
    for name in sorted(modules):
        if name.startswith("families."):  # loaded by name, when the stage runs
            importlib.import_module(f"capgap_core.{name}")
    edited = fingerprint.edited(modules)
    if edited:
        files = ", ".join(f"{name}.py" for name in edited)
        raise StageFailed(stage, f"{files} changed while this process was running", "Start the run again.")
    return module


def _provenance(execution: Execution) -> dict[str, Any]:
    """Return where and with what a stage was made: the device and threads that were used, not what was asked for."""
    from capgap_core.machine import device_of, threads_of  # noqa: PLC0415 - needs torch

    return provenance(device=str(device_of(execution)), threads=threads_of(execution))


def _digest(files: tuple[StoredFile, ...], summary: Mapping[str, Any]) -> str:
    """Return the digest of what later stages can read: the covered files, and the summary but for its words."""
    facts = {name: value for name, value in summary.items() if name not in WORDS}
    return sha256_text(digest_of_files(stores.covered(files)) + json.dumps(facts, sort_keys=True))


def _described(item: Input) -> dict[str, Any]:
    reference = item.reference if isinstance(item, ModelInput) else item
    scale = item.scale if isinstance(item, ModelInput) else None
    return {
        "stage": reference.stage, "identity": reference.identity, "code": reference.code,
        "digest": content_digest(item), "scale": scale,
    }  # fmt: skip
