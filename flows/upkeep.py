"""Look after the store: check every finished stage, and remove what no report rests on."""

from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from capgap_core import garbage, store as stores
from capgap_core.errors import StoreError
from flows import present, runs

Say = Callable[[str], None]


def verify(root: Path, say: Say) -> int:
    """Check size and checksum of every file of every finished stage; return 1 where one is not whole."""
    store = stores.Store(root)
    folders = [store.folder(address) for address in stores.addresses(root / "store")]
    faults = []
    for folder in folders:
        try:
            record = stores.verified_record(folder)
        except (StoreError, OSError, ValidationError) as error:
            faults.append(str(error) if isinstance(error, StoreError) else f"{folder}: {error}")
            continue
        if (record.stage, record.identity, record.code) != folder.parts[-3:]:
            faults.append(f"{folder}: holds the result of another address")
    odd = runs.unreadable(root)
    for fault in [*faults, *(f"{path}: cannot be read" for path in odd)]:
        say(fault)
    print(f"{len(folders)} finished stages, {len(folders) - len(faults)} whole, {len(faults)} not")
    if faults:
        say("a run that needs one of these sets it aside and makes it again")
    return 1 if faults or odd else 0


def collect(root: Path, *, apply: bool, unfinished: bool, say: Say) -> int:
    """List what may go from the store, or remove it; return the exit status."""
    try:
        waste = garbage.find(root, unfinished=unfinished, kept=() if unfinished else runs.unfinished(root))
        gone = garbage.remove(root, waste) if apply else waste
    except StoreError as error:
        say(f"{error}\nwhat this report rests on is not known, so nothing is removed: make it again, or remove it")
        return 1
    if gone:
        rows = [[item.kind, str(item.path), size(item.bytes), item.why] for item in gone]
        print(present.grid(["what", "where", "size", "why"], rows))
    kept = len(waste) - len(gone)
    if kept:
        say(f"{kept} kept: in use now, or not to be removed")
    total = size(sum(item.bytes for item in gone))
    print(f"{total} freed" if apply else f"{total} would be freed by --apply")
    return 0


def size(count: int) -> str:
    """Return bytes in the unit that suits them, of 1000."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"
