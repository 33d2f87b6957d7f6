"""Finds the grid that a user names, finished or published, and what it says of laws."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from capgap_core import law_findings, store
from capgap_core.errors import CapgapError, InputFaults, fault
from capgap_core.laws.fits import Fits, fits_of
from flows import runs

COLUMNS = {"role", "parameters", "tokens", "teacher", "seed", "nats", "teacher_nats", "data_limited"}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A grid that was found."""

    name: str
    fits: Fits
    throughput: float | None
    """FLOPs a second of the training of its largest teacher that was trained there, 6 for each parameter and token;
    null where unknown."""


def find(what: str, root: Path) -> Grid:
    """Return the grid that a name stands for, fitted.

    Parameters
    ----------
    what
        ``last``, the start of a run's id, ``law/identity``, the folder of a stage, or published rows (.parquet).

    Raises
    ------
    InputFaults
        Where there is none, or several.
    """
    path = _published(what) or _table(what, root)
    try:
        if path.parent.joinpath("record.json").is_file():
            store.verified_record(path.parent)
        whole = pq.read_table(path)
    except (OSError, ValueError, CapgapError) as error:
        raise _fault(what, f"cannot be read: {error}") from error
    if (whole.schema.metadata or {}).get(b"schema", b"").startswith(b"capgap.assistant_cells/"):
        rule = "is a law of assistants, whose students all take the same steps: it knows nothing of tokens"
        told = f"Its report names the best assistant of each student: {path.with_name('report.md')}"
        raise InputFaults([fault("--from", what, rule, told)])
    lacking = COLUMNS - set(whole.column_names)
    if lacking:
        raise _fault(what, f"{path.name} has no column {', '.join(sorted(lacking))}")
    rows = [row for row in whole.to_pylist() if row.get("kind") in (None, "grid")]
    if wrong := unsound(rows):
        raise InputFaults([held for rule in wrong for held in _fault(what, f"{path.name}: {rule}").faults])
    cells, alone = law_findings.grid_of(rows)
    teachers = [row for row in rows if row["role"] == "teacher"]
    if not teachers:
        raise _fault(what, "holds no teacher")
    known = [row for row in teachers if row["tokens"] is not None]
    all_known = len(known) == len(teachers)
    tokens = float(np.median([row["tokens"] / row["parameters"] for row in known])) if all_known else None
    return Grid(
        name=what, fits=fits_of(cells, alone, teacher_tokens=tokens), throughput=_throughput(known, path.parent)
    )


def unsound(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return everything for which no law can be fitted to rows of models, a line for each rule that is broken."""
    taught = [row for row in rows if row["teacher"] is not None]
    asked = [(name, rows) for name in ("parameters", "nats")]
    # On how many tokens a teacher that was given has been trained nobody knows.
    asked += [("tokens", [row for row in rows if row["role"] != "teacher" or row["tokens"] is not None])]
    asked += [(name, taught) for name in ("teacher", "teacher_nats")]
    broken = []
    for name, of in asked:
        bad = [row[name] for row in of if not _positive(row[name])]
        if bad:
            broken.append(f"{name} is no finite number above 0 in {len(bad)} of {len(of)} rows, first {bad[0]!r}")
    if roles := sorted({str(row["role"]) for row in rows} - {"teacher", "student"}):
        broken.append(f"role is {', '.join(roles)}, and can be teacher or student")
    if seedless := [row["seed"] for row in taught if not (_positive(row["seed"]) or row["seed"] == 0)]:
        broken.append(f"seed is no number in {len(seedless)} rows of students with a teacher, first {seedless[0]!r}")
    if not broken and (twice := _twice(taught)):
        broken.append(f"{twice} students of one teacher, one seed and as many tokens stand there more than once")
    return broken


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _twice(taught: Sequence[Mapping[str, Any]]) -> int:
    """Return how many cells are there more than once: a fit would take the last of them in silence."""
    counts = Counter((row["parameters"], row["tokens"], row["teacher"], row["seed"]) for row in taught)
    return sum(count > 1 for count in counts.values())


def _published(what: str) -> Path | None:
    path = Path(what).expanduser()
    return path if path.suffix == ".parquet" and path.is_file() else None


def _table(what: str, root: Path) -> Path:
    """Return the table of cells of the one stage that a name stands for."""
    laws = [held for held in runs.results(root) if held["flow"] == "law" and held["status"] == "completed"]
    chosen = laws[:1] if what == "last" else [held for held in laws if what and held["run_id"].startswith(what)]
    folders = {Path(held["paths"]["law"]) for held in chosen}
    stage, _, identity = what.strip("/").partition("/")
    if not folders and stage == "law" and identity:
        folders = set((root / "store" / "law").glob(f"{identity}*/*"))
    if not folders and Path(what).is_dir():
        folders = {Path(what)}
    found = sorted(folder / "cells.parquet" for folder in folders if (folder / "cells.parquet").is_file())
    if len(found) == 1:
        return found[0]
    if found:
        raise _fault(what, "could be any of " + ", ".join(str(path.parent) for path in found))
    raise _fault(what, f"no finished law of {root} is called so")


def _throughput(teachers: Sequence[Mapping[str, Any]], folder: Path) -> float | None:
    """Return the FLOPs a second of the training of the largest teacher, from its own row or from its record."""
    if not teachers:
        return None
    largest = max(teachers, key=lambda row: row["parameters"])
    seconds = largest.get("seconds")
    if seconds is None and len(folder.parents) > 2:  # store/law/identity/code
        records = folder.parents[2].joinpath("pretrain", str(largest.get("identity"))).glob("*/record.json")
        seconds = next((store.read_record(path.parent).seconds for path in sorted(records)), None)
    return 6.0 * largest["parameters"] * largest["tokens"] / seconds if seconds else None


def _fault(what: str, rule: str) -> InputFaults:
    remedy = (
        "Give last, a run's id, law/identity, its folder, or published rows (.parquet); capgap show lists the runs."
    )
    return InputFaults([fault("--from", what, rule, remedy)])
