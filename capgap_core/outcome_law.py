"""What a finished run of ``law`` says, as the JSON that scripts read."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from capgap_core import report_law, tables
from capgap_core.markdown import short
from capgap_core.outcome import Outcome
from capgap_core.records import Reference, stage_rows

PART = "test"


def outcome_of(made: Sequence[tuple[str, Reference]]) -> Outcome:
    """Return the outcome of a chain of which every stage is there, with the keys of every flow's."""
    law = made[-1][1]
    models = [ref for _, ref in made if ref.stage == "pretrain"]
    rows = tables.read(law.table("cells"))
    result = {
        "steps_trained": sum(ref.steps_trained for _, ref in made if not ref.reused),
        "metric": "nats",
        "split": PART,
        "n": measured_on(models[0]),
        "scores": scores(rows),
        "candidates": [],
        "chosen_scale": None,
        "best_scale": None,
        "margin": None,
        "optima": tables.read(law.table("optima")),
        "law": law.summary,
        "says": [line.replace("**", "") for line in report_law.verdicts(rows, law.summary)],
        "sizes": {},
        "stages": stage_rows(made),
        "paths": {"student": None, "report": str(law.folder / "report.md"), "law": str(law.folder)},
    }
    return Outcome(result=result, stages=tuple(made))


def scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return role → its losses, means over the seeds."""
    by_role: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_role.setdefault(_role(row), []).append(row)
    found = {}
    for role, own in by_role.items():
        found[role] = {
            name: fmean(row[name] for row in own) for name in ("nats", "bits_per_byte") if own[0][name] is not None
        }
    return found


def _role(row: Mapping[str, Any]) -> str:
    size = short(row["parameters"])
    if row["role"] == "teacher":
        return f"teacher {size}"
    whose = "alone" if row["teacher"] is None else f"of {short(row['teacher'])}"
    return f"{size} on {short(row['tokens'])} {whose}"


def measured_on(model: Reference) -> int:
    """Return the tokens on which every model is measured."""
    rows = tables.read(model.table("held_out"))
    return next(int(row["tokens"]) for row in rows if row["part"] == PART and row["source"] is None)
