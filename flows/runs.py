"""A run's own folder below the store: its parameters, its result and its report."""

import json
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from pydantic import ValidationError

from capgap_core.errors import CapgapError, InputFaults, StageFailed
from capgap_core.identity import sha256_text
from capgap_core.methods import RECIPES
from capgap_core.records import Reference, stage_rows
from capgap_core.shortages import explained
from capgap_core.store import changed, write_atomically

SCHEMA = "capgap.run/1"
SEAL = ".sha256"
FILES: dict[str, set[str]] = {
    "params.json": set(), "stages.json": {"made"},
    "result.json": {"schema", "flow", "status", "run_id", "seconds", "metric", "scores", "stages", "error"},
}  # fmt: skip
"""What a run writes of itself → what has to be in it."""

_WHICH = "stage: "
"""Begins the note that says of an error which stage it ended."""
_begun: list[Path] = []
"""The folders of the runs that this process has begun."""


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
        "chosen_scale": None, "best_scale": None, "margin": None, "sizes": {}, "stages": [],
        "paths": {"student": None, "report": None},
        "error": {"stage": stage or None, "faults": faults, "resume": resume or None},
    }  # fmt: skip


class RunFolder:
    """What a flow writes about itself while it runs and when it ends."""

    def __init__(self, flow: str, root: Path, run_id: str, url: str | None) -> None:
        self.flow, self.root, self.run_id, self.url = flow, root, run_id, url
        self.path = folder_of(root, run_id)
        self.made: list[tuple[str, Reference]] = []
        self.stage = ""
        """The stage that is running, for the message where it fails."""
        self._started = time.monotonic()
        self._adding = Lock()

    @property
    def resume(self) -> str:
        """Return the command that takes the run up where it stopped."""
        return resume_command(self.flow, self.root, self.run_id)

    def begin(self, parameters: Mapping[str, Any]) -> None:
        """Keep the parameters, so that the run can be resumed from them."""
        self.path.mkdir(parents=True, exist_ok=True)
        _begun.append(self.path)
        for name in ("result.json", f"result.json{SEAL}"):  # of an earlier attempt
            (self.path / name).unlink(missing_ok=True)
        _write(self.path / "params.json", dict(sorted(parameters.items())))

    def add(self, role: str, made: Reference) -> None:
        """Take a stage that is finished, and keep which are, so that they stay while the run is not."""
        with self._adding:
            self.made.append((role, made))
            _write(self.path / "stages.json", {"made": [reference.path for _, reference in self.made]})

    @contextmanager
    def running(self, stage: str) -> Iterator[None]:
        """Know which stage runs, and where several do at once, which of them fails."""
        self.stage = stage
        try:
            yield
        except Exception as error:
            error.add_note(f"{_WHICH}{stage}")
            raise

    def finish(self, result: Mapping[str, Any], report: str) -> dict[str, Any]:
        """Write result and report; return the result with what only the run knows."""
        held = {
            **result, "schema": SCHEMA, "flow": self.flow, "status": "completed", "run_id": self.run_id,
            "url": self.url, "seconds": self._seconds(), "error": None,
        }  # fmt: skip
        held["paths"] = {**result["paths"], "report": str(self.path / "report.md")}
        write_atomically(self.path / "report.md", report)
        _write(self.path / "result.json", held)
        return held

    def fail(self, error: BaseException) -> None:
        """Write what is known of a run that did not finish."""
        held = failure(self.flow, error, run_id=self.run_id, url=self.url, stage=self.stage, resume=self.resume)
        trained = sum(reference.steps_trained for _, reference in self.made if not reference.reused)
        told = {**held, "seconds": self._seconds(), "steps_trained": trained, "stages": stage_rows(self.made)}
        _write(self.path / "result.json", told)

    def named(self, error: Exception) -> CapgapError:
        """Return the error as one that says which stage failed, why, and what resumes the run."""
        noted = (note.removeprefix(_WHICH) for note in getattr(error, "__notes__", ()) if note.startswith(_WHICH))
        self.stage = next(noted, self.stage)
        said, where = f"Resume with: {self.resume}", self.stage or self.flow
        told = error if isinstance(error, StageFailed) else explained(where, error)
        if told is not None:
            alone = where in (told.stage, f"{told.stage} {told.stage}")  # one of its kind in the run
            why = told.why if alone else f"{told.why} ({where})"
            return type(told)(told.stage, why, f"{told.remedy} {said}".strip())
        return StageFailed(where, f"{type(error).__name__}: {error}", said)

    def _seconds(self) -> float:
        return round(time.monotonic() - self._started, 3)


def results(root: Path) -> list[dict[str, Any]]:
    """Return the results of every run that has ended, newest first, but for those that ``unreadable`` names."""
    paths = sorted((root / "runs").glob("*/result.json"), key=changed, reverse=True)
    found = (_read(path) for path in paths)
    return [held for held in found if held is not None]


def unreadable(root: Path) -> list[Path]:
    """Return what runs have written of themselves and cannot be read; the store does not rest on it."""
    paths = sorted(path for name in FILES for path in (root / "runs").glob(f"*/{name}"))
    return [path for path in paths if _read(path) is None]


def unfinished(root: Path) -> set[str]:
    """Return the stages, as ``stage/identity/code``, that runs which have not completed have made so far."""
    found: set[str] = set()
    for folder in (root / "runs").glob("*"):
        if not completed(folder):
            held = _read(folder / "stages.json")
            found.update("/".join(Path(made).parts[-3:]) for made in (held["made"] if held is not None else ()))
    return found


def completed(folder: Path) -> bool:
    """Return whether a run has completed, by what it has written of itself."""
    held = _read(folder / "result.json")
    return held is not None and held["status"] == "completed"


def ended_here() -> dict[str, Any] | None:
    """Return the result of the run that this process began last; nothing where it has none."""
    return _read(_begun[-1] / "result.json") if _begun else None


def _read(path: Path) -> dict[str, Any] | None:
    """Return what a run has written; nothing where it is not there, or is not what was written."""
    try:
        text = path.read_text(encoding="utf8")
        held = json.loads(text)
        seal = path.with_name(path.name + SEAL)
        whole = not seal.is_file() or seal.read_text(encoding="utf8").split()[:1] == [sha256_text(text)]
    except (OSError, ValueError, RecursionError):
        return None
    return held if whole and isinstance(held, dict) and FILES[path.name] <= held.keys() else None


def _write(path: Path, held: Mapping[str, Any]) -> None:
    """Write facts, and beside them their checksum, in the form that ``sha256sum -c`` reads."""
    text, seal = json.dumps(held, indent=1, allow_nan=False) + "\n", path.with_name(path.name + SEAL)
    seal.unlink(missing_ok=True)
    write_atomically(path, text)
    write_atomically(seal, f"{sha256_text(text)}  {path.name}\n")


def siblings(folder: RunFolder, result: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """Return seed → result of the finished runs that differ from this one in nothing but the seed; the newest of each.

    Alike are the parameters, but for where it runs, the code of every stage that moves a score, and what went into
    the parts, the teacher, the sandwich and the student: the precision that a device stands for, too.
    """
    own, lineage = _parameters(folder.flow, folder.path), _lineage(result)
    found: dict[int, Mapping[str, Any]] = {}
    if own is None or "seed" not in type(own).model_fields:  # a law has several seeds of its own
        return found
    for held in results(folder.path.parents[1]):
        alike = held["run_id"] and held["flow"] == folder.flow and held["status"] == "completed"
        other = _parameters(folder.flow, folder_of(folder.path.parents[1], held["run_id"])) if alike else None
        if other is None or _lineage(held) != lineage:
            continue
        if other.model_copy(update={"seed": own.seed, "run": own.run}) == own:
            found.setdefault(other.seed, held)
    return {**found, own.seed: result}


def _parameters(flow: str, folder: Path) -> Any:
    held = _read(folder / "params.json")
    try:
        return RECIPES[flow].model_validate(held) if held is not None else None
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
