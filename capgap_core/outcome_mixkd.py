"""What a finished run of ``mixkd`` says, as the JSON that scripts read."""

from collections.abc import Mapping, Sequence
from typing import Any

from capgap_core import tables
from capgap_core.outcome import Outcome
from capgap_core.records import Reference, stage_rows


def outcome_of(
    made: Sequence[tuple[str, Reference]], students: Mapping[str, Reference], measured: Mapping[str, Reference]
) -> Outcome:
    """Return the outcome of a chain of which every stage is there, with the keys of every flow's."""
    report = made[-1][1]
    data = next(ref for _, ref in made if ref.stage == "data").summary
    arms = tables.read(report.table("ablation"))
    first = next((role for role in students if role.split()[0] == "mixkd"), next(iter(students)))
    roles = [name.removeprefix("evaluate_") for name in measured if name.startswith("evaluate_")]
    result = {
        "steps_trained": sum(ref.steps_trained for _, ref in made if not ref.reused),
        "metric": data["metric"],
        "split": data["eval_name"],
        "n": arms[0]["n"],
        "scores": {role: _scores(measured[f"evaluate_{role}"]) for role in roles},
        "constant": data["constant"]["evaluation"],
        "differences": [
            {"against": row["role"], "value": row["difference"], "low": row["low"], "high": row["high"]}
            for row in arms
            if row["difference"] is not None
        ],
        "candidates": [],
        "chosen_scale": None,
        "best_scale": None,
        "margin": None,
        "arms": arms,
        "sizes": {role: _size(measured[f"evaluate_{role}"]) for role in roles},
        "stages": stage_rows(made),
        "paths": {"student": str(students[first].folder / "model"), "report": str(report.folder / "report.md")},
    }
    return Outcome(result=result, stages=tuple(made))


def _scores(evaluation: Reference) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in tables.read(evaluation.table("metrics"))}


def _size(evaluation: Reference) -> dict[str, Any]:
    (row,) = tables.read(evaluation.table("sizes"))
    return {**{name: value for name, value in row.items() if name != "scale"}, "latency_ms": None}
