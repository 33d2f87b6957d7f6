"""The law of assistants: what finished runs of minidisc say, as a grid, of which assistant a student wants."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from capgap_core import tables
from capgap_core.given_runs import CheckedRuns, GivenRun
from capgap_core.method import Caller, command_of
from capgap_core.outcome import Outcome
from capgap_core.records import Input, Reference, stage_rows
from capgap_core.stages import assistants


def follow(checked: CheckedRuns, call: Caller) -> Outcome:
    """Fit the laws to checked runs: nothing is trained."""
    p, runs = checked.parameters, _cells(checked.runs)
    first = _with_direct(runs)
    recipe = assistants.Recipe(
        metric=runs[0].metric,
        cells=tuple(
            assistants.Cell(seed=run.seed, identity=run.made["student"].identity, direct=run.direct if own else None)
            for run, own in zip(runs, first, strict=True)
        ),
        said=assistants.Said(
            dataset=runs[0].dataset, split=runs[0].split, runs=len(checked.runs),
            other_code=any(run.codes != runs[0].codes for run in checked.runs), command=command_of(checked.flow, p),
        ),
    )  # fmt: skip
    inputs: dict[str, Input] = {f"run_{i}": run.report for i, run in enumerate(runs)}
    return outcome_of(call("assistants", recipe, inputs, role="", execution=p.run), recipe)


def _cells(runs: Sequence[GivenRun]) -> list[GivenRun]:
    """Return the runs from small to large, of those with one and the same student one, in whichever order they came."""
    found: dict[tuple[float, float, int], GivenRun] = {}
    # Runs that are alike, of the same scales and seed, have the same student; one with its controls says more.
    for run in sorted(runs, key=lambda one: (one.direct is None, one.made["student"].identity, one.report.identity)):
        found.setdefault((run.student, run.assistant, run.seed), run)
    return [found[key] for key in sorted(found)]


def _with_direct(runs: Sequence[GivenRun]) -> list[bool]:
    """Return which runs are the first with a student of the teacher itself, whose others have the same."""
    seen: set[tuple[float, int]] = set()
    found = []
    for run in runs:
        key = (run.student, run.seed)
        found.append(run.direct is not None and key not in seen)
        seen |= {key} if run.direct is not None else set()
    return found


def outcome_of(made: Reference, recipe: assistants.Recipe) -> Outcome:
    """Return the outcome of a law of runs, with the keys of every flow's."""
    rows = tables.read(made.table("cells"))
    stages = [("", made)]
    result = {
        "steps_trained": 0,
        "metric": recipe.metric,
        "split": recipe.said.split,
        "n": rows[0]["n"],
        "scores": scores(rows),
        "candidates": [],
        "chosen_scale": None,
        "best_scale": None,
        "margin": None,
        "optima": tables.read(made.table("optima")),
        "law": {name: value for name, value in made.summary.items() if name != "says"},
        "says": [line.replace("**", "") for line in made.summary["says"]],
        "sizes": {},
        "stages": stage_rows(stages),
        "paths": {"student": None, "report": str(made.folder / "report.md"), "law": str(made.folder)},
    }
    return Outcome(result=result, stages=tuple(stages))


def scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return role → its metric, a mean over the seeds."""
    by_role: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        whose = "the teacher" if row["role"] == "direct" else f"{row['teacher_scale']:g}"
        by_role.setdefault(f"{row['scale']:g} of {whose}", []).append(row)
    return {role: {own[0]["metric"]: fmean(row["value"] for row in own)} for role, own in by_role.items()}
