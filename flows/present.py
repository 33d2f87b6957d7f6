"""Render a result as the plain table that commands print."""

from collections.abc import Mapping, Sequence
from typing import Any


def table(result: Mapping[str, Any]) -> str:
    """Return everything a user wants to see of a finished run, as plain text."""
    parts = [
        _heading(result),
        grid(*_without_empty(*_models(result))),
        "\n".join(result.get("says", [])),
        _choice(result),
        f"steps_trained {result['steps_trained']}   {_stages(result['stages'])}   {result['seconds']:.1f} s",
        _paths(result),
    ]
    return "\n\n".join(part for part in parts if part)


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows in columns: the first to the left, the others to the right."""
    widths = [max(len(line[i]) for line in [heads, *rows]) for i in range(len(heads))]
    lines = []
    for line in [heads, *rows]:
        cells = [
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def preview(found: Any) -> str:
    """Return what a run will take, as a table with a line of sums below it."""
    total = found.seconds
    rows = [
        [
            f"{e.stage} {e.role}".strip(), f"{e.seconds:.1f}", f"{100 * e.seconds / max(total, 1e-9):.0f}%",
            number(e.steps or None), number(1000 * e.step_seconds or None, ".1f"),
            number(e.outputs_seconds or None, ".1f"),
        ]
        for e in found.estimates
    ]  # fmt: skip
    heads = ["stage", "seconds", "share", "steps", "ms a step", "of it the teacher's outputs"]
    share = 100 * found.outputs_seconds / max(total, 1e-9)
    lines = [
        grid(heads, rows),
        f"about {total:.0f} s in all, if nothing is finished yet; the report takes a few seconds more",
        f"asking teachers once and keeping their outputs: {found.outputs_seconds:.0f} s ({share:.0f}%), "
        f"{found.outputs_bytes / 1e6:,.0f} MB on disk",
    ]
    if found.break_even is not None:
        lines.append(f"asked live, a step of direct would take {1000 * found.live_step_seconds:.1f} ms: "
                     f"keeping the outputs pays from {found.break_even:.1f} epochs")  # fmt: skip
    return "\n\n".join(lines)


def preview_facts(found: Any) -> dict[str, Any]:
    """Return what a run will take, as plain values."""
    return {
        "schema": "capgap.preview/1", "seconds": found.seconds, "stages": [vars(e) for e in found.estimates],
        "outputs_seconds": found.outputs_seconds, "outputs_bytes": found.outputs_bytes, "break_even": found.break_even,
    }  # fmt: skip


def loading(student: str) -> str:
    """Return the two lines that load a student, in a process that need not have capgap."""
    return (
        "from transformers import AutoModelForSequenceClassification\n"
        f'model = AutoModelForSequenceClassification.from_pretrained("{student}", trust_remote_code=True)'
    )


def number(value: Any, style: str = ",.0f") -> str:
    """Return a number as text, and a dash where there is none."""
    return "-" if value is None else format(value, style)


def _heading(result: Mapping[str, Any]) -> str:
    unit = "tokens" if result["metric"] == "nats" else "examples"
    return f"{result['flow']}: {result['metric']} on {result['split']}, {result['n']:,} {unit}   run {result['run_id']}"


def _models(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    scores, sizes = result["scores"], result["sizes"]
    metrics = sorted({m for held in scores.values() for m in held}, key=lambda m: (m != result["metric"], m))
    batches = sorted({b for held in sizes.values() for b in held.get("latency_ms") or {}}, key=int)
    heads = ["model", *metrics, "parameters", "non-embedding", "GFLOPs", "MB", *(f"ms at batch {b}" for b in batches)]
    rows = []
    for role in scores:
        size = sizes.get(role, {})
        flops = size.get("flops")
        latency = size.get("latency_ms") or {}
        rows.append(
            [
                role,
                *(number(scores[role].get(m), ".4f") for m in metrics),
                number(size.get("parameters")),
                number(size.get("non_embedding")),
                number(None if flops is None else flops / 1e9, ".3f"),
                number(size.get("megabytes"), ".1f"),
                *(number(latency.get(b), ".2f") for b in batches),
            ]
        )
    return heads, rows


def _without_empty(heads: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Return the columns in which something stands."""
    kept = [i for i in range(len(heads)) if any(row[i] != "-" for row in rows)]
    return [heads[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _choice(result: Mapping[str, Any]) -> str:
    chosen, best = result["chosen_scale"], result.get("best_scale")
    rows = [
        [
            format(c["scale"], "g"),
            number(c["metric"], ".4f"),
            number(c["tradeoff"], ".4f"),
            ("chosen" if best is None else "asked for") if c["scale"] == chosen else "",
        ]
        for c in result["candidates"]
    ]
    if not rows:
        return ""
    margin = f"margin to the next: {number(result['margin'], '.4f')}"
    margin = margin if best is None else f"by the tradeoff it would be {best:g}"
    return grid(["candidate", "metric", "tradeoff", ""], rows) + "\n" + margin


def _stages(stages: Sequence[Mapping[str, Any]]) -> str:
    reused = sum(bool(stage["reused"]) for stage in stages)
    said = f"{len(stages)} stages, {reused} reused"
    other = sum("other code" in stage["why"] for stage in stages)
    return f"{said} ({other} made by other code)" if other else said


def _paths(result: Mapping[str, Any]) -> str:
    student, report = result["paths"].get("student"), result["paths"].get("report")
    lines = [f"report   {report}"] if report else []
    if student:
        lines += [f"student  {student}", "", loading(student)]
    return "\n".join(lines)
