"""Show what has been made: finished runs, one run, or one stage of the store."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows import present, runs

RECORD = "record.json"


def show(root: Path, what: str | None, *, as_json: bool, say: Callable[[str], None]) -> int:
    """Print what was asked for; return the exit status: 2 where there is no such thing."""
    held = runs.results(root)
    if what is None:
        print(json.dumps(held) if as_json else _listed(held, root))
        return 0
    chosen = held[:1] if what == "last" else [r for r in held if r["run_id"].startswith(what)]
    if len(chosen) == 1:
        print(json.dumps(chosen[0]) if as_json else _one(chosen[0]))
        return 0
    records = _records(root, what)
    if len(records) == 1:
        print(records[0].read_text(encoding="utf8").rstrip())
        return 0
    several = [r["run_id"] for r in chosen] or [str(path.parent) for path in records]
    if several:
        say(f"{what} could be any of:\n" + "\n".join(several))
    else:
        say(f"{what}: no run and no stage of {root} is called so; capgap show lists the runs")
    return 2


def _listed(held: list[dict[str, Any]], root: Path) -> str:
    if not held:
        return f"no run has ended in {root / 'runs'} yet"
    rows = []
    for result in held:
        score = result["scores"].get("student", {}).get(result["metric"])
        reused = sum(bool(stage["reused"]) for stage in result["stages"])
        rows.append(
            [
                result["run_id"],
                result["flow"],
                result["status"],
                present.number(score, ".4f"),
                f"{reused} of {len(result['stages'])}",
                f"{result['seconds']:.0f} s",
            ]
        )
    return present.grid(["run", "flow", "status", "student", "reused", "time"], rows)


def _one(result: dict[str, Any]) -> str:
    if result["status"] == "completed":
        return present.table(result)
    error = result["error"]
    lines = [f"{result['flow']}: {result['status']}   run {result['run_id']}"]
    lines += [f"{fault['field']}: {fault['rule']}. {fault['remedy']}" for fault in error["faults"]]
    return "\n".join(lines)


def _records(root: Path, what: str) -> list[Path]:
    """Return the records that a path, or ``stage/identity`` with a shortened identity, stands for."""
    for place in (Path(what), root / what, root / "store" / what):
        with suppress(OSError):  # a name that no file can have
            if (place / RECORD).is_file():
                return [place / RECORD]
    stage, _, identity = what.strip("/").partition("/")
    if not stage or not identity:
        return []
    return sorted((root / "store").glob(f"{stage}/{identity}*/*/{RECORD}"))
