"""What a user is told where the machine has not enough: disk, memory, or the right to write."""

import errno
import os
import re

from capgap_core.errors import CapgapError, OutOfMemory, StageFailed

_DISK = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some space, or have the quota raised",
    errno.EROFS: "Make the disk writable, or give another store: run.root",
    errno.EACCES: "Allow it, or give another store: run.root",
    errno.EPERM: "Allow it, or give another store: run.root",
    errno.EMFILE: "Raise the limit of open files (ulimit -n)",
    errno.EIO: "See to the disk",
}
_AGAIN = "and give the same command again: what has finished stays, and training goes on from its last checkpoint"
_KNOBS = {"teacher": "teacher_recipe", "sandwich": "sandwich", "distil": "student"}
"""Stage → the part of the parameters that says how it trains."""
_MEMORY = (
    "can't allocate memory", "cannot allocate memory", "out of memory", "not enough memory", "alloc_failed",
    f"(os error {errno.ENOMEM})",
)  # fmt: skip
"""What torch says in a plain RuntimeError, of whatever device."""


def explained(stage: str, error: Exception) -> StageFailed | None:
    """Return what to tell a user of an error that only a lack explains, or nothing where it is another."""
    if isinstance(error, CapgapError):
        return None
    if isinstance(error, OSError) and error.errno in _DISK:
        where = f" ({error.filename})" if error.filename else ""
        return StageFailed(stage, f"{error.strerror}{where}", f"{_DISK[error.errno]}, {_AGAIN}.")
    said = str(error).casefold()
    told = re.search(r"\(os error (\d+)\)", said)  # as safetensors says it
    if told and int(told[1]) in _DISK:
        return StageFailed(stage, os.strerror(int(told[1])), f"{_DISK[int(told[1])]}, {_AGAIN}.")
    lacks = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if lacks or isinstance(error, MemoryError) or any(words in said for words in _MEMORY):
        return OutOfMemory(stage, "there is not enough memory", _room(stage))
    return None


def _room(stage: str) -> str:
    if stage not in _KNOBS:
        return "Give it more memory: end what else runs, or use another device (run.device)."
    part = _KNOBS[stage]
    return (
        f"Halve {part}.micro_batch (its batch stays as large), or let capgap find one that fits: run.auto_batch=true."
    )
