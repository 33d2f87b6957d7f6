"""Finds the parts of a data set that lies in files or on the hub, and has them read."""

import difflib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from capgap_core import loading
from capgap_core.columns import Table
from capgap_core.errors import InputFaults, Problems, fault
from capgap_core.loading import COMPRESSIONS, FORMATS, format_of

NAMES = {
    "train": re.compile(r"train", re.IGNORECASE),
    "dev": re.compile(r"dev|val(?:id|(?![a-z]))", re.IGNORECASE),
    "test": re.compile(r"test", re.IGNORECASE),
}
"""What the name of a part's file, or of the hub's split, begins with."""

_HUB = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*(?:/[\w.-]+){0,2})(?:@(?P<revision>[\w./-]+))?")
_HUB_SECONDS = 4.0
_WHERE_FORMS = (
    "Give pydocs (pysource or hmm for a language model), a file, a folder, or a hub name: hub[/config][@revision]."
)

Splits = Mapping[Any, str] | None
"""The file, or the hub's split, of parts whose names do not tell: ``data.splits``."""
Found = tuple[list[str], dict[str, Table]]
"""The names that a metric may go by, the last one the data set's own, and the table of each part."""


def read(dataset: str, *, splits: Splits, split: str, cache: loading.Cache, problems: Problems) -> Found:
    """Return the parts of the data set that ``dataset`` names; faults that leave something to read go to ``problems``.

    Raises
    ------
    InputFaults
        Where there is nothing to read.
    """
    place = place_of(dataset)
    with loading.quiet():
        if not isinstance(place, Path):
            return read_hub(*place, splits, cache, problems)
        names = [place.name if place.is_dir() or NAMES["train"].match(place.name) is None else place.parent.name]
        return names, loading.read_local(parts_of(place, splits, split, problems), cache, problems)


def place_of(dataset: str) -> Path | tuple[str, str | None]:
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
    if hub is None or explicit or {*path.suffixes} & {*FORMATS, *COMPRESSIONS, ".txt"}:
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


def parts_of(
    place: Path, splits: Splits, split: str, problems: Problems, *, readable: Callable[[Path], object] = format_of
) -> dict[str, list[Path]]:
    """Return the files of each part: given by ``splits``, else by their names; a single file is train.

    Where files that are ``readable`` have the name of a part, others that have it are not meant.
    """
    folder = place if place.is_dir() else place.parent
    given = {str(part): folder / os.path.expanduser(name) for part, name in (splits or {}).items()}
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
        found = [path for path in found if readable(path)] or found
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


def read_hub(name: str, revision: str | None, splits: Splits, cache: loading.Cache, problems: Problems) -> Found:
    """Return the names a metric may go by, and the parts of a data set on the hub."""
    repository, config = _on_hub(name, revision)
    try:
        held = loading.library().load_dataset(repository, config, revision=revision, cache_dir=str(cache.kept / "hub"))
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        remedy = "Check the name, hub[/config][@revision], or download the data set and give its folder."
        raise InputFaults([fault("dataset", name, f"cannot be read from the hub: {said}", remedy)]) from error
    given: dict[str, str] = {str(part): value for part, value in (splits or {}).items()}
    chosen: dict[str, str] = {}
    tables: dict[str, Table] = {}
    for part in ("train", "eval", "dev", "test", "selection"):
        if part in given and given[part] not in held:
            path = Path(given[part]).expanduser()
            if path.is_file():
                tables |= loading.read_local({part: [path]}, cache, problems)
                continue
            remedy = f"Use one of {sorted(held)}, or the path of a file."
            problems.add(
                fault(f"data.splits.{part}", given[part], "is neither a split of the data set nor a file", remedy)
            )
        elif part in given:
            chosen[part] = given[part]
        elif part in NAMES and (part == "train" or "eval" not in given):
            found = [split for split in held if NAMES[part].match(split)]
            if len(found) > 1:
                remedy = f'Say which: data.splits={{"{part}": "{found[0]}"}}.'
                problems.add(fault(f"data.splits.{part}", None, f"{found} could each be the {part} part", remedy))
            elif found:
                chosen[part] = found[0]
    loading.unlike(chosen, problems)
    tables |= {part: loading.table_of(part, f"{name}:{split}", held[split]) for part, split in chosen.items()}
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
