"""A run's own folder below the store: its parameters, its result and its report."""

import json
import shlex
import shutil
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from capgap_core.errors import CapgapError, InputFaults, StageFailed
from capgap_core.recipes import Minidisc
from capgap_core.records import Reference
from capgap_core.shortages import explained
from capgap_core.store import write_atomically

SCHEMA = "capgap.run/1"


def folder_of(root: Path, run_id: str) -> Path:
    """Return the folder of a run."""
    return root / "runs" / run_id


def program() -> str:
    """Return what starts the command line in a shell: its name where that is found, else where it lies."""
    beside = Path(sys.executable).with_name("capgap")
    return "capgap" if shutil.which("capgap") or not beside.is_file() else shlex.quote(str(beside))


def resume_command(flow: str, root: Path, run_id: str) -> str:
    """Return the command that takes a run up where it stopped."""
    return f"{program()} run {flow} --params {shlex.quote(str(folder_of(root, run_id) / 'params.json'))}"


def failure(
    flow: str, error: BaseException, *, run_id: str = "", url: str | None = None, stage: str = "", resume: str = ""
) -> dict[str, Any]:
    """Return the result of a run that did not finish, with the keys of one that did."""
    faults = error.as_dicts() if isinstance(error, InputFaults) else []
    if not faults:
        remedy = error.remedy if isinstance(error, StageFailed) else resume
        rule = error.why if isinstance(error, StageFailed) else f"{type(error).__name__}: {error}"
        faults = [{"field": stage or flow, "value": "", "rule": rule, "remedy": remedy}]
    status = "failed" if isinstance(error, Exception) else "interrupted"
    return {
        "schema": SCHEMA, "flow": flow, "status": status, "run_id": run_id, "url": url, "seconds": 0.0,
        "steps_trained": 0, "metric": None, "split": None, "n": None, "scores": {}, "candidates": [],
        "chosen_scale": None, "margin": None, "sizes": {}, "stages": [], "paths": {"student": None, "report": None},
        "error": {"stage": stage or None, "faults": faults, "resume": resume or None},
    }  # fmt: skip


def stage_rows(made: Sequence[tuple[str, Reference]]) -> list[dict[str, Any]]:
    """Return what a result says of each stage."""
    kept = ("stage", "identity", "code", "digest", "reused", "why", "seconds", "path")
    return [{"role": role, **{name: getattr(reference, name) for name in kept}} for role, reference in made]


class RunFolder:
    """What a flow writes about itself while it runs and when it ends."""

    def __init__(self, flow: str, root: Path, run_id: str, url: str | None) -> None:
        self.flow, self.root, self.run_id, self.url = flow, root, run_id, url
        self.path = folder_of(root, run_id)
        self.made: list[tuple[str, Reference]] = []
        self.stage = ""
        """The stage that is running, for the message where it fails."""
        self._started = time.monotonic()

    @property
    def resume(self) -> str:
        """Return the command that takes the run up where it stopped."""
        return resume_command(self.flow, self.root, self.run_id)

    def begin(self, parameters: Mapping[str, Any]) -> None:
        """Keep the parameters, so that the run can be resumed from them."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / "params.json", json.dumps(parameters, indent=1, sort_keys=True) + "\n")

    def finish(self, result: Mapping[str, Any], report: str) -> dict[str, Any]:
        """Write result and report; return the result with what only the run knows."""
        held = {
            **result, "schema": SCHEMA, "flow": self.flow, "status": "completed", "run_id": self.run_id,
            "url": self.url, "seconds": self._seconds(), "error": None,
        }  # fmt: skip
        held["paths"] = {**result["paths"], "report": str(self.path / "report.md")}
        write_atomically(self.path / "report.md", report)
        self._write(held)
        return held

    def fail(self, error: BaseException) -> None:
        """Write what is known of a run that did not finish."""
        held = failure(self.flow, error, run_id=self.run_id, url=self.url, stage=self.stage, resume=self.resume)
        trained = sum(reference.steps_trained for _, reference in self.made if not reference.reused)
        self._write({**held, "seconds": self._seconds(), "steps_trained": trained, "stages": stage_rows(self.made)})

    def named(self, error: Exception) -> CapgapError:
        """Return the error as one that says which stage failed, why, and what resumes the run."""
        said, where = f"Resume with: {self.resume}", self.stage or self.flow
        told = error if isinstance(error, StageFailed) else explained(where, error)
        if told is not None:
            return type(told)(told.stage, told.why, f"{told.remedy} {said}".strip())
        return StageFailed(where, f"{type(error).__name__}: {error}", said)

    def _seconds(self) -> float:
        return round(time.monotonic() - self._started, 3)

    def _write(self, held: Mapping[str, Any]) -> None:
        write_atomically(self.path / "result.json", json.dumps(held, indent=1, allow_nan=False) + "\n")


def results(root: Path) -> list[dict[str, Any]]:
    """Return the results of every run that has ended, newest first, but for those that ``unreadable`` names."""
    paths = sorted((root / "runs").glob("*/result.json"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
    found = (_read(path) for path in paths)
    return [held for held in found if held is not None]


def unreadable(root: Path) -> list[Path]:
    """Return what runs have written of themselves and cannot be read; the store does not rest on it."""
    paths = sorted([*(root / "runs").glob("*/result.json"), *(root / "runs").glob("*/params.json")])
    return [path for path in paths if _read(path) is None]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        held = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(held, dict) and (path.name != "result.json" or held.get("schema") == SCHEMA)
    return held if whole else None


def ended(root: Path, parameters: Mapping[str, Any], before: Collection[str]) -> dict[str, Any] | None:
    """Return the newest result of these parameters that is none of the runs ``before``."""
    asked = Minidisc.model_validate(parameters)
    new = (held for held in results(root) if held["run_id"] not in before)
    return next((held for held in new if _parameters(folder_of(root, held["run_id"])) == asked), None)


def siblings(folder: RunFolder, result: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """Return seed → result of the finished runs that differ from this one in nothing but the seed; the newest of each.

    Alike are the parameters, but for where it runs, the code of every stage that moves a score, and what went into
    the parts, the teacher, the sandwich and the student: the precision that a device stands for, too.
    """
    own, lineage = _parameters(folder.path), _lineage(result)
    found: dict[int, Mapping[str, Any]] = {}
    if own is None:
        return found
    for held in results(folder.path.parents[1]):
        other = _parameters(folder_of(folder.path.parents[1], held["run_id"])) if held["run_id"] else None
        if other is None or held["status"] != "completed" or _lineage(held) != lineage:
            continue
        if other.model_copy(update={"seed": own.seed, "run": own.run}) == own:
            found.setdefault(other.seed, held)
    return {**found, own.seed: result}


def _parameters(folder: Path) -> Minidisc | None:
    path = folder / "params.json"
    if not path.is_file():
        return None
    try:
        return Minidisc.model_validate_json(path.read_text(encoding="utf8"))
    except ValidationError:
        return None  # of a version with other parameters, so not of the same recipe


def _lineage(result: Mapping[str, Any]) -> list[Any]:
    """Return what the scores of a run come from, but for the seed."""
    stages = [s for s in result["stages"] if s["stage"] not in ("latency", "report")]
    codes = sorted((s["stage"], s["role"], s["code"]) for s in stages)
    wanted = ("data", "teacher teacher", "sandwich candidate", "distil student")
    return [*codes, *(_recipe(s["path"]) for s in stages if f"{s['stage']} {s['role']}".strip() in wanted)]


def _recipe(path: str) -> Any:
    """Return the recipe in a stage's record without seeds; the path itself where the record cannot be read."""
    try:
        held = json.loads((Path(path) / "record.json").read_text(encoding="utf8"))["recipe"]["hashed"]
    except (OSError, ValueError, KeyError, TypeError):
        return path
    return _without_seeds(held)


def _without_seeds(held: Any) -> Any:
    if isinstance(held, dict):
        return {name: _without_seeds(value) for name, value in held.items() if name != "seed"}
    return held
