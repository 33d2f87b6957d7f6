"""The page of one run: its report between what only this run knows, the other seeds first and the stages last."""

from collections.abc import Mapping, Sequence
from typing import Any

from capgap_core import markdown, study
from capgap_core.recipes import Execution


def page(
    report: str, result: Mapping[str, Any], seeds: Mapping[int, Mapping[str, Any]], run: str, execution: Execution
) -> str:
    """Return the report as markdown with the lines of this run around it.

    Parameters
    ----------
    report
        What the report stage wrote, a heading first.
    result
        The result of this run.
    seeds
        Seed → result of every finished run that differs in nothing but the seed, this one among them.
    run
        The run, as a link where there is a page.
    execution
        Where it ran.
    """
    heading, _, body = report.partition("\n")
    parts = [
        heading,
        *across(seeds),
        *_notes(result["stages"], execution),
        body.strip(),
        _stages(result["stages"], run),
    ]
    return "\n\n".join(parts) + "\n"


def across(seeds: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """Return what the seeds say together of the assistant's worth; nothing for one seed, which cannot say it."""
    lines = []
    for against in study.AGAINST:
        both = {
            seed: held["scores"]
            for seed, held in sorted(seeds.items())
            if {"student", against} <= held["scores"].keys()
        }
        if len(both) < 2:
            continue
        metric = next(iter(seeds.values()))["metric"]
        found = study.compare_seeds(
            [scores["student"][metric] for scores in both.values()],
            [scores[against][metric] for scores in both.values()],
        )
        names = ", ".join(map(str, both))
        said = f": **{study.verdict(found)}**" if against == "direct_flops" else ""
        lines.append(
            f"Over {found.n} seeds ({names}) the student scores {found.value:+.4f} {metric} "
            f"against {against}, 95% interval {found.low:+.4f} to {found.high:+.4f}{said}."
        )
    return lines


def _notes(stages: Sequence[Mapping[str, Any]], execution: Execution) -> list[str]:
    notes = []
    if execution.reuse == "any-code":
        other = sum("other code" in stage["why"] for stage in stages)
        notes.append(f"> run.reuse=any-code: {other} of the stages were made by other code than this.")
    if execution.verify == "sizes":
        notes.append("> run.verify=sizes: of reused files only the sizes were checked.")
    return notes


def _stages(stages: Sequence[Mapping[str, Any]], run: str) -> str:
    rows = [
        [
            f"{stage['stage']} {stage['role']}".strip(), "reused" if stage["reused"] else "made",
            f"{stage['seconds']:.1f}", str(stage["why"]),
        ]
        for stage in stages
    ]  # fmt: skip
    return f"## This run\n\nRun {run}\n\n" + markdown.table(["stage", "", "seconds when made", "why"], rows)
