"""Make a stage, or find it made: the one door through which every result enters the store."""

import importlib
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pydantic import BaseModel

from capgap_core import store as stores
from capgap_core.errors import Damaged, StoreError
from capgap_core.fingerprint import code_of
from capgap_core.identity import canonical, digest_of_files, identity_of, sha256_text
from capgap_core.locks import held
from capgap_core.progress import Progress
from capgap_core.provenance import peak_memory_bytes, provenance
from capgap_core.recipes import Execution
from capgap_core.records import Input, Made, ModelInput, Record, Reference
from capgap_core.store import Address, Store


def build(
    stage: str, recipe: BaseModel, inputs: Mapping[str, Input], *, execution: Execution, progress: Progress
) -> Reference:
    """Return the reference of a finished stage, making it where it is not in the store yet.

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
    """
    address, modules = address_of(stage, recipe, inputs)
    store = store_of(execution)
    found, why = reusable(store, address, execution, progress)
    if found is not None:
        return found
    with held(store.lock(address), progress):
        found, why = reusable(store, address, execution, progress, why)
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


def content_digest(item: Input) -> str:
    """Return what an input holds: a stage's digest, or for a model its weights and the plan of its slice."""
    if isinstance(item, Reference):
        return item.digest
    record = stores.verified_record(item.reference.folder, verify="sizes")
    model = {path: checksum for path, checksum in stores.covered(record.files).items() if path.startswith("model/")}
    plan = [] if item.scale is None else _plan_rows(item.reference.table("plan"), item.scale)
    return sha256_text(digest_of_files(model) + repr(plan))


def _plan_rows(path: Path, scale: float) -> list[tuple[Any, ...]]:
    rows = pq.read_table(path, filters=[("scale", "=", scale)]).to_pylist()
    return sorted((row["layer"], row["axis"], row["kept"]) for row in rows)


def reusable(
    store: Store, address: Address, execution: Execution, progress: Progress, why: str = "not made before"
) -> tuple[Reference | None, str]:
    """Return a finished stage that may stand for this address, or why there is none."""
    choices = [address]
    if execution.reuse == "any-code":
        choices += [other for other in store.codes(address.stage, address.identity) if other != address]
    elif why == "not made before" and store.codes(address.stage, address.identity):
        why = "the code has changed since it was made"
    for choice in choices:
        try:
            record = store.find(choice)
        except Damaged as error:
            store.set_aside(choice, str(error))
            why = f"made again: {error}"
            progress.message(f"set aside a damaged result: {error}")
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
    module = importlib.import_module(f"capgap_core.stages.{address.stage}")
    made: Made = module.run(recipe, inputs, out, execution=execution, progress=progress)
    files = stores.list_files(out)
    record = Record(
        stage=address.stage,
        identity=address.identity,
        code=address.code,
        code_modules=modules,
        digest=digest_of_files(stores.covered(files)),
        recipe={"hashed": canonical(recipe), "given": recipe.model_dump(mode="json")},
        inputs={name: _described(item) for name, item in inputs.items()},
        data_digest=getattr(recipe, "content", None),
        provenance=provenance(device=execution.device, threads=execution.threads),
        seed=getattr(recipe, "seed", None),
        started=started.isoformat(),
        ended=datetime.now(UTC).isoformat(),
        seconds=round(time.monotonic() - clock, 3),
        steps_trained=made.steps_trained,
        tokens=made.tokens,
        peak_memory_bytes=peak_memory_bytes(),
        attempts=attempt,
        resumptions=0,
        summary=made.summary,
        files=files,
    )
    return record.reference(store.commit(address, record), reused=False, why=why)


def _described(item: Input) -> dict[str, Any]:
    reference = item.reference if isinstance(item, ModelInput) else item
    scale = item.scale if isinstance(item, ModelInput) else None
    return {
        "stage": reference.stage, "identity": reference.identity, "code": reference.code,
        "digest": content_digest(item), "scale": scale,
    }  # fmt: skip
