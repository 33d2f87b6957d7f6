"""What may go from the store: finished stages that no report rests on, and what broken runs have left.

Nothing that a living process uses is ever removed (``capgap_core.in_use``), nor the work of a stage that is being
made. Unfinished work, from which a run would go on, goes only where it is asked for.
"""

import os
import stat
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from capgap_core import store as stores
from capgap_core.in_use import removing
from capgap_core.locks import take
from capgap_core.store import Address, Store

Kind = Literal["stage", "outputs", "trash", "leftover", "unfinished"]
OUTPUTS, BY = "targets", "by-"
"""Where teachers' outputs are kept, and what begins the names of the files that say whose; as ``kept_outputs`` has it,
which needs torch."""


ENDS = ("report", "ablation", "law", "assistants")
"""The stages that end a chain, each with the report of its flow."""


@dataclass(frozen=True, kw_only=True)
class Waste:
    """A folder or file that nothing needs."""

    kind: Kind
    path: Path
    bytes: int
    why: str


def find(root: Path, *, unfinished: bool = False, kept: Collection[str] = ()) -> list[Waste]:
    """Return what may go.

    Parameters
    ----------
    root
        Of the store.
    unfinished
        Whether the work of stages that did not finish may go, too: their runs then begin these stages again.
    kept
        Finished stages that stay, too, as ``stage/identity/code``: those of runs that have not completed.

    Raises
    ------
    StoreError
        Where the record of a report cannot be read, so that nobody knows what it rests on.
    """
    store = Store(root)
    reached = _reached(store) | {a for a in stores.addresses(root / "store") if "/".join(a.parts) in kept}
    found = [
        _waste("stage", store.folder(a), "no report rests on it")
        for a in stores.addresses(root / "store")
        if a not in reached
    ]
    found += [
        _waste("outputs", folder, "no report rests on the teacher")
        for folder in _outputs(root)
        if not _makers(folder) & reached
    ]
    for address in stores.addresses(root / "work"):
        if store.folder(address).is_dir():
            found.append(_waste("leftover", store.work(address), "its stage is finished"))
        elif unfinished:
            found.append(_waste("unfinished", store.work(address), "its stage did not finish"))
    trash = root / "trash"
    aside = sorted(trash.iterdir()) if trash.is_dir() else []
    return found + [_waste("trash", path, "set aside before") for path in aside]


def remove(root: Path, waste: Sequence[Waste]) -> list[Waste]:
    """Remove what may go, is not in use at this moment, and no report has come to rest on since; return what went."""
    targets: list[tuple[Waste, Path]] = [(item, item.path) for item in waste if item.kind == "trash"]
    trash = root / "trash"
    trash.mkdir(parents=True, exist_ok=True)
    with removing(root) as used:  # short: folders are only moved out of everybody's sight
        reached = _reached(Store(root))
        for number, item in enumerate(waste):
            if item.kind == "trash" or _name(root, item) in used or _needed(root, item, reached):
                continue
            target = trash / f"removed-{time.time_ns()}-{number}"
            if _moved(root, item, target):
                targets.append((item, target))
    for _, target in targets:
        stores.remove(target)
    return [item for item, target in targets if not os.path.lexists(target)]


def _name(root: Path, item: Waste) -> str:
    """Return the name under which a process uses it, which its lock has, too."""
    place, *parts = item.path.relative_to(root).parts
    return "-".join([place, *parts] if place == OUTPUTS else parts)


def _needed(root: Path, item: Waste, reached: set[Address]) -> bool:
    """Return whether a report has come to rest on it."""
    if item.kind == "outputs":
        return bool(_makers(item.path) & reached)
    stage, identity, code = item.path.relative_to(root).parts[1:]
    return item.kind == "stage" and Address(stage=stage, identity=identity, code=code) in reached


def _moved(root: Path, item: Waste, target: Path) -> bool:
    """Move a folder, unless somebody makes it just now."""
    lock = root / "locks" / f"{_name(root, item)}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as held:
        if not take(held.fileno()) or not item.path.is_dir():
            return False
        os.rename(item.path, target)
    return True


def _outputs(root: Path) -> list[Path]:
    """Return the folders of teachers' outputs; a link is not ours."""
    return [path for path in sorted((root / OUTPUTS).glob("*")) if path.is_dir() and not path.is_symlink()]


def _makers(folder: Path) -> set[Address]:
    """Return the stages whose models they are outputs of."""
    names = [path.name.removeprefix(BY).split("-") for path in folder.glob(f"{BY}*")]
    return {
        Address(stage=parts[0], identity=parts[1], code=parts[2])
        for parts in names
        if len(parts) == 3 and all(map(stores.NAME.fullmatch, parts))
    }


def _reached(store: Store) -> set[Address]:
    """Return every stage that a report rests on, the reports among them."""
    waiting = [a for a in stores.addresses(store.root / "store") if a.stage in ENDS]
    reached: set[Address] = set()
    while waiting:
        address = waiting.pop()
        if address in reached or not store.folder(address).is_dir():
            continue
        reached.add(address)
        record = stores.read_record(store.folder(address))
        for item in record.inputs.values():
            waiting.append(Address(stage=item["stage"], identity=item["identity"], code=item["code"]))
    return reached


def _waste(kind: Kind, path: Path, why: str) -> Waste:
    return Waste(kind=kind, path=path, bytes=sum(map(_size, [path, *path.rglob("*")])), why=why)


def _size(path: Path) -> int:
    try:
        held = path.lstat()
    except FileNotFoundError:  # somebody has just removed it
        return 0
    return held.st_size if stat.S_ISREG(held.st_mode) else 0
