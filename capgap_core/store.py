"""Where results live: a folder is there if and only if its stage finished, and is checked on every use."""

import errno
import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from capgap_core.errors import Damaged, StoreError
from capgap_core.identity import sha256_file, sha256_text
from capgap_core.locks import take
from capgap_core.records import RECORD_SCHEMA, Record, Reference, StoredFile

Verify = Literal["checksum", "sizes"]
RECORD = "record.json"
UNCOVERED = frozenset({"timing.parquet"})
"""Files whose content a clock decides; no digest covers them."""
YOUNG = 1_000_000_000
"""Nanoseconds after which a file's time tells whether it has been changed since."""
NAME = re.compile(r"[a-z0-9_]{1,64}")
_verified: dict[tuple[str, str], tuple[tuple[str, int, int, int], ...]] = {}


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a stage's result is, known before the result exists."""

    stage: str
    identity: str
    code: str

    def __post_init__(self) -> None:
        for part in (self.stage, self.identity, self.code):
            if not NAME.fullmatch(part):
                raise StoreError(f"{part!r} cannot name a folder of the store: only a-z, 0-9 and _ can")

    @property
    def parts(self) -> tuple[str, str, str]:
        """Return the folder names below ``store`` and ``work``."""
        return self.stage, self.identity, self.code


class Store:
    """The folders ``store``, ``work``, ``locks`` and ``trash`` below one root, on one file system."""

    def __init__(self, root: Path | str, *, verify: Verify = "checksum") -> None:
        self.root = Path(root).absolute()
        self._verify: Verify = verify

    def folder(self, address: Address) -> Path:
        """Return the folder of a finished stage."""
        return self.root.joinpath("store", *address.parts)

    def work(self, address: Address) -> Path:
        """Return the folder in which a stage is being made."""
        return self.root.joinpath("work", *address.parts)

    def lock(self, address: Address) -> Path:
        """Return the lock that whoever makes this stage holds."""
        return self.root / "locks" / ("-".join(address.parts) + ".lock")

    def find(self, address: Address) -> Record | None:
        """Return the verified record of a finished stage, or nothing where there is none.

        Raises
        ------
        Damaged
            Where the folder is there and does not hold what its record says.
        """
        folder = self.folder(address)
        return verified_record(folder, verify=self._verify) if os.path.lexists(folder) else None

    def codes(self, stage: str, identity: str) -> list[Address]:
        """Return the addresses of one identity made by any code, newest first."""
        found = addresses(self.root / "store", f"{stage}/{identity}/*")
        return sorted(found, key=lambda a: changed(self.folder(a)), reverse=True)

    def set_aside(self, address: Address, why: str) -> Path:
        """Move a damaged result to ``trash`` with its reason beside it; return where it went."""
        target = self.root / "trash" / f"{'-'.join(address.parts)}-{time.time_ns()}"
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(self.folder(address), target)
        target.with_suffix(".why").write_text(why + "\n", encoding="utf8")
        return target

    def sweep(self, address: Address) -> None:
        """Remove the work of a finished stage whose process was killed between the commit and its end."""
        if self.work(address).exists():
            with self.lock(address).open("a") as lock:
                if take(lock.fileno()) and os.path.lexists(self.folder(address)):
                    remove(self.work(address))

    def begin(self, address: Address) -> tuple[Path, int]:
        """Return a fresh folder to write results into, and which attempt this is."""
        work = self.work(address)
        out = work / "out"
        remove(out)
        out.mkdir(parents=True)
        counter = work / "attempts"
        try:
            attempt = int(counter.read_text(encoding="utf8")) + 1
        except (FileNotFoundError, ValueError):  # none yet, or damaged: nothing rests on it
            attempt = 1
        write_atomically(counter, str(attempt))
        return out, attempt

    def commit(self, address: Address, record: Record) -> Path:
        """Make a finished result visible; return its folder.

        The files are on disk before the record is, and the record before the folder is renamed: the
        rename is the commit, so that no reader ever sees half of a result.
        """
        out = self.work(address) / "out"
        write_atomically(out / RECORD, sealed(record.model_dump(mode="json")))
        for folder in [*(p for p in out.rglob("*") if p.is_dir()), out]:
            fsync_folder(folder)
        target = self.folder(address)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(out, target)
        try:
            fsync_folder(target.parent)
        finally:  # the result is there, whatever becomes of the rest
            remove(self.work(address))
        return target


def addresses(folder: Path, pattern: str = "*/*/*") -> list[Address]:
    """Return what lies in ``store`` or ``work``; links and folders of other names are not ours, and left alone."""
    found = []
    for path in sorted(folder.glob(pattern)):
        stage, identity, code = parts = path.relative_to(folder).parts
        linked = any(link.is_symlink() for link in (path, *path.parents[:2]))
        if path.is_dir() and not linked and all(map(NAME.fullmatch, parts)):
            found.append(Address(stage=stage, identity=identity, code=code))
    return found


def list_files(folder: Path) -> tuple[StoredFile, ...]:
    """Return every file below ``folder`` with size and checksum, sorted, after an fsync of each."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        name = path.relative_to(folder).as_posix()
        found.append(StoredFile(path=name, bytes=path.stat().st_size, sha256=sha256_file(path)))
    return tuple(found)


def covered(files: tuple[StoredFile, ...]) -> dict[str, str]:
    """Return path → checksum of the files that a stage's digest covers: ``model/`` and the tables."""
    return {
        f.path: f.sha256
        for f in files
        if f.path.startswith("model/") or (f.path.endswith(".parquet") and f.path not in UNCOVERED)
    }


def verified_record(folder: Path, *, verify: Verify = "checksum") -> Record:
    """Return the record of a finished stage after checking the record itself and every file it names.

    A folder whose files have not been touched since this process last checked them is not read again.

    Raises
    ------
    Damaged
        Names the file that is missing, resized or changed.
    StoreError
        Where the record was written by a newer version.
    """
    record = read_record(folder)
    stats = tuple(_stat(folder, f.path) for f in record.files)
    for file, (_, size, *_rest) in zip(record.files, stats, strict=True):
        if size != file.bytes:
            raise Damaged(f"{folder / file.path}: {size} bytes where the record says {file.bytes}")
    key = (str(folder), verify)
    if verify == "checksum" and _verified.get(key) != stats:
        for file in record.files:
            if sha256_file(folder / file.path) != file.sha256:
                raise Damaged(f"{folder / file.path}: the content is not what the record says")
    # A file that is changed again within the clock's tick has the same time, so young ones are read every time.
    if time.time_ns() - max((when for _, _, when, _ in stats), default=0) > YOUNG:
        _verified[key] = stats
    return record


def load(reference: Reference, *, verify: Verify = "checksum") -> Reference:
    """Return a reference marked as reused, after checking that what it stands for is there and whole."""
    record = verified_record(reference.folder, verify=verify)
    if record.digest != reference.digest:
        raise Damaged(f"{reference.path}: digest {record.digest} where the reference says {reference.digest}")
    return record.reference(reference.folder, reused=True, why="finished before")


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError:  # where the disk is full, half a file only takes room
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def remove(path: Path) -> None:
    """Remove a folder with what is in it, or whatever else has its name; a link and not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sealed(held: dict[str, Any]) -> str:
    """Return facts as JSON that holds the checksum of the rest, so that a flipped byte in it is found."""
    return _render({**held, "seal": sha256_text(_render(held))})


def _render(held: dict[str, Any]) -> str:
    return json.dumps(held, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def unsealed(path: Path) -> dict[str, Any]:
    """Return the facts of a sealed file.

    Raises
    ------
    Damaged
        Where it cannot be read, or is not what was written.
    """
    try:
        text = path.read_text(encoding="utf8")
        held = json.loads(text)
        whole = _render(held)
        seal = held.pop("seal")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise Damaged(f"{path}: missing") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{path}: cannot be read ({type(error).__name__})") from error
    except OSError as error:
        if error.errno != errno.ELOOP:  # a link to itself
            raise
        raise Damaged(f"{path}: cannot be read ({error.strerror})") from error
    if whole != text or seal != sha256_text(_render(held)):
        raise Damaged(f"{path}: the content is not what was written")
    return held


def check_file(folder: Path, file: StoredFile) -> None:
    """Raise ``Damaged`` where a file is missing, resized or changed."""
    path, size, *_ = _stat(folder, file.path)
    if size != file.bytes:
        raise Damaged(f"{folder / path}: {size} bytes where the record says {file.bytes}")
    if sha256_file(folder / path) != file.sha256:
        raise Damaged(f"{folder / path}: the content is not what the record says")


def read_record(folder: Path) -> Record:
    """Return the record in a folder without a look at its files; raises as ``verified_record`` does."""
    path = folder / RECORD
    held = unsealed(path)
    if held.get("schema_") != RECORD_SCHEMA:
        raise StoreError(f"{path}: written by another version ({held.get('schema_')}); this one reads {RECORD_SCHEMA}")
    return Record.model_validate(held)


def changed(path: Path) -> int:
    """Return when a file or folder was changed last, in nanoseconds; 0 where it has just been removed."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _stat(folder: Path, path: str) -> tuple[str, int, int, int]:
    try:
        seen = (folder / path).stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Damaged(f"{folder / path}: missing") from error
    return path, seen.st_size, seen.st_mtime_ns, seen.st_ino
