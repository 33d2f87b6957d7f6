"""What a finished run says, as the JSON that scripts read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from capgap_core.recipes import Minidisc
from capgap_core.records import Reference, stage_rows
from capgap_core.stages.report import Findings, candidate_rows


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished run: its result, and the stages it rests on."""

    result: dict[str, Any]
    """The keys of ``capgap run --json`` that the chain knows; the door adds flow, status, run_id, url and seconds."""
    stages: tuple[tuple[str, Reference], ...]
    """(role, reference) in the order in which they were needed."""

    @property
    def report(self) -> Reference:
        """Return the report stage."""
        return self.stages[-1][1]


def outcome_of(p: Minidisc, made: Sequence[tuple[str, Reference]]) -> Outcome:
    """Return the outcome of a chain of which every stage is there."""
    stages = named(made)
    found = Findings(stages, scale=p.student.scale)
    data, choice = stages["data"].summary, stages["tradeoff"].summary
    primary = found.metrics("teacher")[found.metric]
    result = {
        "steps_trained": sum(ref.steps_trained for _, ref in made if not ref.reused),
        "metric": found.metric,
        "split": data["eval_name"],
        "n": primary["n"],
        "scores": {role: {m: row["value"] for m, row in found.metrics(role).items()} for role in found.sources},
        "constant": data["constant"]["evaluation"],
        "differences": stages["report"].summary["differences"],
        "candidates": [
            {"scale": c["scale"], "metric": c["metric"], "tradeoff": c["tradeoff"]}
            for c in candidate_rows(stages)
            if not c["target"]
        ],
        "chosen_scale": choice["chosen_scale"],
        "best_scale": choice.get("best_scale"),
        "margin": choice["margin"],
        "sizes": {role: dict(found.size(role)) for role in found.sources},
        "stages": stage_rows(made),
        "paths": {
            "student": str(stages["student"].folder / "model"), "report": str(stages["report"].folder / "report.md"),
        },
    }  # fmt: skip
    return Outcome(result=result, stages=tuple(made))


def named(made: Sequence[tuple[str, Reference]]) -> dict[str, Reference]:
    """Return the stages by name: students by role, evaluations as ``evaluate_<role>``."""
    names = {"distil": "{role}", "evaluate": "evaluate_{role}"}
    return {names.get(ref.stage, ref.stage).format(role=role): ref for role, ref in made}
