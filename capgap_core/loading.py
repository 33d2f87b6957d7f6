"""Reads the files of a part with ``datasets``, as a table of raw columns.

This is the only room that imports ``datasets``, and it does so only when something is read. What is read is kept
under ``cache`` by its content, so that an edited file is never taken from a copy of the old one.
"""

import csv
import hashlib
import importlib.util
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capgap_core import unreadable
from capgap_core.columns import Column, Kind, Table
from capgap_core.errors import Problems, fault


@dataclass(frozen=True)
class Cache:
    """Where what has been read is kept, by its content."""

    kept: Path
    fresh: Path | None = None
    """Where what is not kept yet goes, until it is known to be good; null: it is kept at once."""

    def folder(self, content: str) -> Path:
        """Return the folder of files with this content."""
        kept = self.kept / content[:32]
        return kept if self.fresh is None or kept.is_dir() else self.fresh / content[:32]

    def keep(self) -> None:
        """Keep what is fresh, but for what somebody else has kept meanwhile."""
        for path in self.fresh.iterdir() if self.fresh is not None else ():
            with suppress(OSError):
                path.rename(self.kept / path.name)


COMPRESSIONS = (".gz", ".xz", ".bz2", ".zst")
FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


def format_of(path: Path) -> str | None:
    """Return which builder of ``datasets`` reads a file, by its name."""
    name = path.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    builder = FORMATS.get(Path(name).suffix)
    return None if builder == "parquet" and name != path.name.lower() else builder


def library() -> Any:
    """Return the library ``datasets``, which takes long to import, told to report to nobody what is read."""
    import datasets.config  # noqa: PLC0415

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # it would, for a user's own file, too
    return datasets


@contextmanager
def quiet() -> Iterator[None]:
    """Keep ``datasets`` from writing progress bars and its own words about an error."""
    datasets = library()
    bars, verbosity = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()


def is_lines(path: Path) -> bool:
    """Return whether a file holds a text in each line and nothing else, by its name."""
    name = path.name.lower()
    return any(name.endswith(f".txt{compression}") for compression in ("", *COMPRESSIONS))


def read_local(
    parts: dict[str, list[Path]], cache: Cache, problems: Problems, *, lines: bool = False
) -> dict[str, Table]:
    """Return part → table of those that can be read; what is wrong with the others goes to ``problems``.

    With ``lines`` files hold a text in each line, which becomes the column ``text``.
    """
    tables = {part: _read_files(part, files, cache, problems, lines=lines) for part, files in parts.items()}
    unlike({part: table.content for part, table in tables.items() if table is not None}, problems)
    return {part: table for part, table in tables.items() if table is not None}


def unlike(contents: dict[str, str], problems: Problems) -> None:
    """Find a fault where two parts are of one split, or of files with the same bytes: nothing could be measured."""
    owners: dict[str, str] = {}
    for part, content in contents.items():
        first = owners.setdefault(content, part)
        field = f"data.splits.{part}"
        if content and first != part and all(known.field != field for known in problems.faults):
            rule = f"holds the same rows as {first}"
            problems.add(fault(field, part, rule, "Name another file or split for one of them."))


def _read_files(part: str, files: list[Path], cache: Cache, problems: Problems, *, lines: bool) -> Table | None:
    """Return the rows of a part's files, or None with a fault."""
    where = ", ".join(path.name for path in files[:3]) + (", ..." if len(files) > 3 else "")
    builder = "text" if lines else format_of(files[0])
    zst = files[0].name.lower().endswith(".zst") and importlib.util.find_spec("zstandard") is None
    if builder is None or zst:
        rule = "needs the Python package zstandard" if zst else f"is none of {', '.join(FORMATS)}"
        remedy = f"Give one of these, plain or compressed ({', '.join(COMPRESSIONS)}; Parquet plain)."
        problems.add(fault(f"dataset ({part})", str(files[0]), rule, remedy))
        return None
    options: dict[str, Any] = {}
    if builder == "csv":
        # A text may be the word NA or null: only an empty cell is missing.
        options = {"keep_default_na": False, "na_values": [""]}
        if ".tsv" in files[0].name.lower():
            options |= {"sep": "\t", "quoting": csv.QUOTE_NONE}
    try:
        content = _content(files)
        rows = library().load_dataset(
            builder, data_files={"train": [str(path) for path in files]}, split="train",
            cache_dir=str(cache.folder(content)), **options,
        )  # fmt: skip
        table = table_of(part, where, rows, files=tuple(map(str, files)), content=content)
        doubled = [name for name in table.columns if re.sub(r"\.[0-9]+$", "", name) in table.columns.keys() - {name}]
    except Exception as error:  # whatever the readers raise becomes a fault, with its cause
        if unreadable.is_empty(error):
            return Table(part, where, {}, 0, lambda _: [], tuple(map(str, files)))
        problems.add(unreadable.because(part, where, error), cause=error)
        return None
    if builder == "csv" and doubled:
        problems.add(unreadable.duplicate(part, where, doubled[0].rpartition(".")[0]))
        return None
    return table


def _content(files: Sequence[Path]) -> str:
    """Return the digest of the bytes of some files, in the order of their names."""
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def table_of(part: str, where: str, rows: Any, *, files: tuple[str, ...] = (), content: str = "") -> Table:
    """Return what was read as a table that this package understands."""
    found = {name: _column(feature) for name, feature in rows.features.items()}
    return Table(part, where, found, rows.num_rows, lambda name: rows.data.column(name).to_pylist(), files, content)


def _column(feature: Any) -> Column:
    """Return what a column holds, by the type that ``datasets`` gave it."""
    dtype = str(getattr(feature, "dtype", ""))
    if hasattr(feature, "names"):
        return "class", tuple(feature.names)
    if type(feature).__name__ != "Value":
        return "other", ()
    if dtype in ("string", "large_string"):
        return "text", ()
    kinds: dict[str, Kind] = {"int": "integer", "uint": "integer", "float": "float", "bool": "boolean"}
    return kinds.get(dtype.rstrip("0123456789"), "other"), ()
