"""Looks at finished runs of minidisc that a law is to be fitted to: finds each, and reads what it is and comes from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from capgap_core import store as stores, tables
from capgap_core.errors import CapgapError, Fault, InputFaults, fault
from capgap_core.recipes_law import Law
from capgap_core.records import Record, Reference

TRAINS = ("dataset", "data", "ladder", "training", "objective")
"""Parameters of ``law`` that say what is trained, which is nothing where runs are given."""
READ = ("data", "teacher", "importance", "student")
"""Stages below a report whose recipes have to be alike; the sandwich is found below its candidates."""
RESULT, RECORD = "result.json", "record.json"


@dataclass(frozen=True, kw_only=True)
class GivenRun:
    """A finished run of minidisc, as its report and the records below it tell of it."""

    name: str
    """As the user has named it."""
    report: Reference
    dataset: str
    split: str
    """The part that is reported on, by its own name."""
    seed: int
    results: Mapping[str, Mapping[str, Any]]
    """Role → its row of the table ``results`` for the metric that decides."""
    made: Mapping[str, Record]
    """``READ`` and ``sandwich`` → the record of the stage."""
    codes: Mapping[str, str]
    """Stage that moves a score → the code that made it."""
    direct: str | None
    """The identity of the student that learned from the teacher itself; null where the run has none."""

    @property
    def student(self) -> float:
        """Return the nominal scale of its student."""
        return float(self.results["student"]["scale"])

    @property
    def assistant(self) -> float:
        """Return the nominal scale of its assistant."""
        return float(self.results["assistant"]["scale"])

    @property
    def metric(self) -> str:
        """Return the metric that decides."""
        return str(self.results["student"]["metric"])


@dataclass(frozen=True, kw_only=True)
class CheckedRuns:
    """The parameters of ``capgap/law`` where it is given runs, after every check, with what was read on the way."""

    flow: str
    parameters: Law
    runs: tuple[GivenRun, ...]


def across(p: Law, wrong: set[str]) -> list[Fault]:
    """Return a fault for each parameter that says what to train beside runs that are given."""
    rule, remedy = "references are given, and then nothing is trained", "Leave it out, or leave out the references."
    faults = []
    for part in TRAINS:
        held, default = getattr(p, part), Law.model_fields[part].default
        if not isinstance(held, BaseModel):
            faults += [] if held == default else [fault(part, held, rule, remedy)]
            continue
        faults += [
            fault(f"{part}.{name}", getattr(held, name), rule, remedy)
            for name in type(held).model_fields
            if getattr(held, name) != getattr(default, name) and not wrong & {part, f"{part}.{name}"}
        ]
    return faults


def read(p: Law) -> tuple[list[GivenRun], list[Fault]]:
    """Return the runs that can be read, and a fault for each name that stands for none, or for none of use."""
    runs, faults = [], []
    for name in p.references:
        try:
            runs.append(_run(name, _report_of(name, Path(p.run.root or "."))))
        except InputFaults as error:
            faults += error.faults
        except (CapgapError, OSError, KeyError) as error:  # the last: a record of another form
            faults.append(_fault(name, f"cannot be read: {error}", "Run it again: what is whole of it is reused."))
    return runs, faults


def _report_of(name: str, root: Path) -> Path:
    """Return the folder of the report that a name stands for.

    Parameters
    ----------
    name
        The folder of a run or of a report, ``report/identity``, or a run's id; of the two last the beginning does.
    root
        Of the store.
    """
    place = Path(name).expanduser().absolute()
    try:
        if (place / RECORD).is_file():
            return place
        if (place / RESULT).is_file():
            return _of_run(name, place)
        stage, _, identity = name.strip("/").partition("/")
        if stage == "report" and stores.NAME.fullmatch(identity):
            return _one(name, list((root / "store" / "report").glob(f"{identity}*/*")), root)
        return _of_run(
            name, _one(name, [path for path in (root / "runs").glob("*") if path.name.startswith(name)], root)
        )
    except (OSError, ValueError) as error:  # a name that no file can have, or a result that is no JSON
        raise InputFaults([_fault(name, f"cannot be read: {error}")]) from error


def _one(name: str, found: list[Path], root: Path) -> Path:
    if len(found) == 1:
        return found[0]
    if found:
        could = ", ".join(sorted(str(path.relative_to(root)) for path in found))
        raise InputFaults([_fault(name, f"could be any of {could}", "Give more of it.")])
    raise InputFaults([_fault(name, f"no run and no report of {root} is called so")])


def _of_run(name: str, folder: Path) -> Path:
    """Return the folder of a run's report, in the store that the run's folder lies in."""
    if not (folder / RESULT).is_file():
        raise InputFaults([_fault(name, "the run has not ended", "Let it end, or leave it out.")])
    held = json.loads((folder / RESULT).read_text(encoding="utf8"))
    try:
        flow, status, stages = held["flow"], held["status"], held["stages"]
        if flow != "minidisc":
            raise InputFaults([_fault(name, f"is a run of {flow}, and only minidisc has assistants")])
        if status != "completed":
            raise InputFaults([_fault(name, f"the run is {status}, not completed", "Resume it, or leave it out.")])
        (made,) = (stage for stage in stages if stage["stage"] == "report")
        return folder.parents[1].joinpath("store", "report", made["identity"], made["code"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / RESULT} is not what a run writes") from error


def _run(name: str, folder: Path) -> GivenRun:
    """Return what a report and the records below it say."""
    record = stores.verified_record(folder)
    if record.stage != "report":
        raise InputFaults([_fault(name, f"is a stage {record.stage}, not the report of a run")])
    made = {part: _below(record, part, folder) for part in (*READ, "candidates")}
    made["sandwich"] = _below(made.pop("candidates"), "sandwich", folder)
    asked, metric = record.recipe["given"], made["data"].summary["metric"]
    rows = {row["role"]: row for row in tables.read(folder / "results.parquet") if row["metric"] == metric}
    if missing := {"teacher", "assistant", "student"} - set(rows):
        raise InputFaults([_fault(name, f"its table has no {metric} of the {', '.join(sorted(missing))}")])
    codes = {part: made[part].code for part in ("teacher", "importance", "sandwich", "student")}
    return GivenRun(
        name=name, report=record.reference(folder, reused=True, why="given"), dataset=Path(asked["dataset"]).name,
        split=str(made["data"].summary["eval_name"]), seed=int(asked["seed"]), results=rows, made=made,
        codes={**codes, "evaluations": record.inputs["evaluate_student"]["code"]},
        direct=record.inputs["direct"]["identity"] if "direct" in record.inputs else None,
    )  # fmt: skip


def _below(record: Record, name: str, report: Path) -> Record:
    """Return the record of an input of a stage, in the store of a report."""
    item = record.inputs[name]
    return stores.read_record(report.parents[2].joinpath(item["stage"], item["identity"], item["code"]))


def _fault(name: str, rule: str, remedy: str = "") -> Fault:
    ways = "Give a run's id, its folder, report/identity, or the folder of a report; capgap show lists the runs."
    return fault("references", name, rule, remedy or ways)
