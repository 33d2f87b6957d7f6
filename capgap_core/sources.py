"""Finds and reads the parts of a data set that lies in files or on the hub, as tables of raw columns.

This is the only room that imports ``datasets``, and it does so only when something is read. What is read is kept
under ``cache`` by its content, so that an edited file is never taken from a copy of the old one.
"""

import csv
import difflib
import hashlib
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from capgap_core import columns
from capgap_core.columns import Column, Kind, Table
from capgap_core.errors import Fault, InputFaults, fault
from capgap_core.recipes import DataRecipe

COMPRESSIONS = (".gz", ".xz", ".bz2", ".zst")
FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
NAMES = {
    "train": re.compile(r"train", re.IGNORECASE),
    "dev": re.compile(r"dev|val(?:id|(?![a-z]))", re.IGNORECASE),
    "test": re.compile(r"test", re.IGNORECASE),
}
"""What the name of a part's file, or of the hub's split, begins with."""

_HUB = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*(?:/[\w.-]+){0,2})(?:@(?P<revision>[\w./-]+))?")
_HUB_SECONDS = 4.0
_WHERE_FORMS = "Give pydocs, a file, a folder, or a hub name: hub[/config][@revision]."

Found = tuple[list[str], dict[str, Table]]
"""The names that a metric may go by, the last one the data set's own, and the table of each part."""


class Problems:
    """The faults found so far, and the first error behind one."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.cause: Exception | None = None

    def add(self, *faults: Fault, cause: Exception | None = None) -> None:
        """Keep the faults, and the error where it is the first."""
        self.faults += faults
        self.cause = self.cause or cause

    def error(self) -> InputFaults:
        """Return the error to raise."""
        error = InputFaults(self.faults)
        error.__cause__ = self.cause
        return error


def read(dataset: str, *, data: DataRecipe, split: str, cache: Path, problems: Problems) -> Found:
    """Return the parts of the data set that ``dataset`` names; faults that leave something to read go to ``problems``.

    Raises
    ------
    InputFaults
        Where there is nothing to read.
    """
    place = _place(dataset)
    with _quiet():
        if not isinstance(place, Path):
            return _read_hub(*place, data, cache, problems)
        names = [place.name if place.is_dir() or NAMES["train"].match(place.name) is None else place.parent.name]
        return names, _read_local(_parts_of(place, data, split, problems), cache, problems)


# Where the parts lie


def _place(dataset: str) -> Path | tuple[str, str | None]:
    """Return the path, or the hub's name and revision, that the user means."""
    # os.path answers "no" where pathlib raises: for a name that is too long, holds NUL or names no user.
    path = Path(os.path.expanduser(dataset))
    hub = _HUB.fullmatch(dataset)
    explicit = dataset.startswith((".", "~")) or path.is_absolute()
    if dataset.strip() and os.path.exists(path):
        if not os.access(path, os.R_OK):
            raise InputFaults([fault("dataset", dataset, "may not be read by this user", "Allow it: chmod -R u+rX.")])
        if hub and path.is_dir() and not explicit:
            remedy = f"Write ./{dataset} for the folder, or {dataset}@main for the hub."
            raise InputFaults([fault("dataset", dataset, "is a folder here and could be a name on the hub", remedy)])
        return path.absolute()
    if hub is None or explicit or {*path.suffixes} & {*FORMATS, *COMPRESSIONS}:
        near = _near(path)
        raise InputFaults([fault("dataset", dataset, "is not there", f"{near}{_WHERE_FORMS}")])
    return hub["name"], hub["revision"]


def listed(dataset: str) -> str:
    """Return the first names in a folder, or nothing where it is none."""
    folder = Path(os.path.expanduser(dataset))
    names = sorted(path.name for path in folder.iterdir()) if os.path.isdir(folder) else []
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _near(path: Path) -> str:
    """Return the nearest name beside a path that is not there, as a question."""
    beside = [p.name for p in path.parent.iterdir()] if os.path.isdir(path.parent) else []
    near = difflib.get_close_matches(path.name, beside, n=1)
    return f"Did you mean {path.parent / near[0]}? " if near else ""


def _parts_of(place: Path, data: DataRecipe, split: str, problems: Problems) -> dict[str, list[Path]]:
    """Return the files of each part: given by ``data.splits``, else by their names; a single file is train."""
    folder = place if place.is_dir() else place.parent
    given = {str(part): folder / os.path.expanduser(name) for part, name in (data.splits or {}).items()}
    parts = {part: [path] for part, path in given.items() if os.path.isfile(path)}
    for part, path in given.items():
        if not os.path.isfile(path):
            problems.add(
                fault(f"data.splits.{part}", str(path), "is not there", f"{_near(path)}Name a file in {folder}.")
            )
    if place.is_file():
        return _apart({"train": [place], **parts}, problems)
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    for part, name in NAMES.items():
        if part in given or ("eval" in given and part != "train"):
            continue
        found = [path for path in files if name.match(path.name)]
        found = [path for path in found if _format(path)] or found
        if len({re.sub(r"[0-9]+", "#", path.name) for path in found}) > 1:
            listed = ", ".join(path.name for path in found)
            remedy = f'Say which: data.splits={{"{part}": "{found[0].name}", ...}}.'
            if part != "test" or split == "test":
                problems.add(fault(f"data.splits.{part}", None, f"{listed} could each be the {part} part", remedy))
        elif found:
            parts[part] = found
    return _apart(_needed(parts, split), problems)


def _apart(parts: dict[str, list[Path]], problems: Problems) -> dict[str, list[Path]]:
    """Return the parts; a file that is in two of them is a fault, since nothing could be measured on it."""
    owners: dict[Path, str] = {}
    for part, files in parts.items():
        for path in files:
            first = owners.setdefault(path.resolve(), part)
            if first != part:
                rule = f"is the file of {first} and of {part}"
                problems.add(fault(f"data.splits.{part}", path.name, rule, "Name another file for one of them."))
    return parts


def _needed(parts: dict[str, list[Path]], split: str) -> dict[str, list[Path]]:
    """Return the parts without the one that is not reported on, which is not even read."""
    unread = {"dev", "test"} if "eval" in parts else {"test"} if split == "dev" and "dev" in parts else set[str]()
    return {part: files for part, files in parts.items() if part not in unread}


def _format(path: Path) -> str | None:
    """Return which builder of ``datasets`` reads a file, by its name."""
    name = path.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    builder = FORMATS.get(Path(name).suffix)
    return None if builder == "parquet" and name != path.name.lower() else builder


# Reading


def _datasets() -> Any:
    """Return the library ``datasets``, which takes long to import."""
    import datasets  # noqa: PLC0415

    return datasets


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep ``datasets`` from writing progress bars and its own words about an error."""
    datasets = _datasets()
    bars, verbosity = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()


def _read_local(parts: dict[str, list[Path]], cache: Path, problems: Problems) -> dict[str, Table]:
    tables = {part: _read_files(part, files, cache, problems) for part, files in parts.items()}
    _unlike({part: table.content for part, table in tables.items() if table is not None}, problems)
    return {part: table for part, table in tables.items() if table is not None}


def _unlike(contents: dict[str, str], problems: Problems) -> None:
    """Find a fault where two parts are of one split, or of files with the same bytes: nothing could be measured."""
    owners: dict[str, str] = {}
    for part, content in contents.items():
        first = owners.setdefault(content, part)
        field = f"data.splits.{part}"
        if content and first != part and all(known.field != field for known in problems.faults):
            rule = f"holds the same rows as {first}"
            problems.add(fault(field, part, rule, "Name another file or split for one of them."))


def _read_files(part: str, files: list[Path], cache: Path, problems: Problems) -> Table | None:
    """Return the rows of a part's files, or None with a fault."""
    where = ", ".join(path.name for path in files[:3]) + (", ..." if len(files) > 3 else "")
    builder = _format(files[0])
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
        rows = _datasets().load_dataset(
            builder, data_files={"train": [str(path) for path in files]}, split="train",
            cache_dir=str(cache / content[:32]), **options,
        )  # fmt: skip
        table = _table(part, where, rows, files=tuple(map(str, files)), content=content)
        doubled = [name for name in table.columns if re.sub(r"\.[0-9]+$", "", name) in table.columns.keys() - {name}]
    except Exception as error:  # whatever the readers raise becomes a fault, with its cause
        if columns.is_empty(error):
            return Table(part, where, {}, 0, lambda _: [], tuple(map(str, files)))
        problems.add(columns.unreadable(part, where, error), cause=error)
        return None
    if builder == "csv" and doubled:
        problems.add(columns.duplicate(part, where, doubled[0].rpartition(".")[0]))
        return None
    return table


def _content(files: Sequence[Path]) -> str:
    """Return the digest of the bytes of some files, in the order of their names."""
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def _table(part: str, where: str, rows: Any, *, files: tuple[str, ...] = (), content: str = "") -> Table:
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


def _read_hub(name: str, revision: str | None, data: DataRecipe, cache: Path, problems: Problems) -> Found:
    """Return the names a metric may go by, and the parts of a data set on the hub."""
    repository, config = _on_hub(name, revision)
    try:
        splits = _datasets().load_dataset(repository, config, revision=revision, cache_dir=str(cache / "hub"))
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        remedy = "Check the name, hub[/config][@revision], or download the data set and give its folder."
        raise InputFaults([fault("dataset", name, f"cannot be read from the hub: {said}", remedy)]) from error
    given: dict[str, str] = {str(part): value for part, value in (data.splits or {}).items()}
    chosen: dict[str, str] = {}
    tables: dict[str, Table] = {}
    for part in ("train", "eval", "dev", "test", "selection"):
        if part in given and given[part] not in splits:
            path = Path(given[part]).expanduser()
            if path.is_file():
                tables |= _read_local({part: [path]}, cache, problems)
                continue
            remedy = f"Use one of {sorted(splits)}, or the path of a file."
            problems.add(
                fault(f"data.splits.{part}", given[part], "is neither a split of the data set nor a file", remedy)
            )
        elif part in given:
            chosen[part] = given[part]
        elif part in NAMES and (part == "train" or "eval" not in given):
            found = [split for split in splits if NAMES[part].match(split)]
            if len(found) > 1:
                remedy = f'Say which: data.splits={{"{part}": "{found[0]}"}}.'
                problems.add(fault(f"data.splits.{part}", None, f"{found} could each be the {part} part", remedy))
            elif found:
                chosen[part] = found[0]
    _unlike(chosen, problems)
    tables |= {part: _table(part, f"{name}:{split}", splits[split]) for part, split in chosen.items()}
    return [part for part in (config, repository.rpartition("/")[2]) if part], tables


def _on_hub(name: str, revision: str | None) -> tuple[str, str | None]:
    """Return the repository and the configuration that a name means; asks the hub, briefly, unless it is offline."""
    import huggingface_hub  # noqa: PLC0415
    from huggingface_hub import errors  # noqa: PLC0415

    words = name.split("/")
    meanings = [(name, None)] if len(words) < 3 else []
    meanings += [("/".join(words[:-1]), words[-1])] if len(words) > 1 else []
    for repository, config in meanings:
        try:
            huggingface_hub.HfApi().dataset_info(repository, revision=revision, timeout=_HUB_SECONDS)
        except errors.OfflineModeIsEnabled:
            return meanings[-1] if len(words) != 2 else meanings[0]
        except errors.RepositoryNotFoundError:
            continue
        except Exception as error:
            said = " ".join(str(error).split())[:200]
            rule = f"is no path here, and the hub cannot be asked: {said}"
            raise InputFaults(
                [fault("dataset", name, rule, f"Check the path, or the network. {_WHERE_FORMS}")]
            ) from error
        return repository, config
    raise InputFaults([fault("dataset", name, "is no path here and no data set on the hub", _WHERE_FORMS)])
