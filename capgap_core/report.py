"""Composes the report of one run as markdown, from plain facts, for the Prefect UI and for GitHub.

Imports nothing that computes: what is said here cannot move a number. Prefect renders GitHub tables, mermaid charts
and images by data URI, and drops raw svg; an artifact should stay below 300 kB.
"""

import base64
from collections.abc import Mapping

from capgap_core.facts import Data, Facts
from capgap_core.markdown import chart, count, signed, table, text
from capgap_core.report_choice import choice, with_error

LARGEST = 300_000
"""Bytes of a report; figures that do not fit stay beside it."""

_SPARE = 1000
"""Bytes kept for headings and for the names of figures that do not fit."""

GAP = 0.02
"""Difference of the teacher's metric between the selection and the evaluation part from which the report warns."""
LITTLE = 0.01
"""Share of a part above which rows that overlap others weaken it."""
CLOSE = 0.015
"""Difference in FLOPs, as a share, that is not worth a word."""

NAMES = {
    "teacher": "teacher",
    "assistant": "assistant (TA)",
    "student": "student (through the TA)",
    "direct_flops": "direct_flops (no TA, equal FLOPs)",
    "direct": "direct (no TA, equal epochs)",
    "slimmed": "slimmed (not distilled)",
}


def compose(facts: Facts, figures: Mapping[str, bytes] | None = None) -> str:
    """Return the report as markdown, the verdict first.

    Parameters
    ----------
    facts
        What is to be said.
    figures
        File name (``arms.png``) → PNG; shown in this order at the end of their section (``arms`` with the results,
        ``tradeoff`` with the candidates, all others with the training) while the report stays below ``LARGEST``.
    """
    bare = _compose(facts, {})
    return bare if not figures else _compose(facts, _images(figures, LARGEST - len(bare.encode())))


def _compose(facts: Facts, images: Mapping[str, list[str]]) -> str:
    parts = [
        f"# {text(facts['title'])}",
        verdict_line(facts),
        _headline(facts),
        *_warnings(facts),
        "## Results\n\n" + _results(facts),
        *_differences(facts),
        *images.get("results", []),
        "## The student\n\n" + _loading(facts),
        "## Candidates\n\n" + choice(facts),
        *images.get("candidates", []),
        "## Sizes\n\n" + _sizes(facts),
        *_spent(facts),
        "## Data\n\n" + _data(facts["data"]),
        *([f"## Training\n\n{images['training'][0]}", *images["training"][1:]] if "training" in images else []),
        "## Stages\n\n" + _stages(facts),
        *([chart(facts["lineage"])] if facts["lineage"] else []),
        f"## Repeat it\n\n```sh\n{facts['command']}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def verdict_line(facts: Facts) -> str:
    """Return what the run says of the assistant's worth: never more than one run can."""
    found = next((d for d in facts["differences"] if d["against"] == "direct_flops"), None)
    if found is None:
        return (
            "**Whether the assistant was worth it: not shown.** The control for equal FLOPs did not run; "
            "`student.controls=true` runs it."
        )
    scores = facts["scores"]
    side = "includes" if found["low"] <= 0 <= found["high"] else "excludes"
    spent = facts["spent"]
    ratio = spent["direct_flops"] / spent["student"] if spent.get("student") and "direct_flops" in spent else 1.0
    price = "" if abs(ratio - 1) < CLOSE else f" (the control spent {ratio:.0%} of the student's)"
    return (
        f"**Whether the assistant was worth it: not shown.** At equal FLOPs{price} the student scores "
        f"{scores['student']['value']:.4f} through the assistant and {scores['direct_flops']['value']:.4f} straight "
        f"from the teacher: {signed(found['value'])} {facts['metric']}, 95% interval over the {facts['n']:,} examples "
        f"{signed(found['low'])} to {signed(found['high'])}, which {side} zero. That compares these two models; one "
        f"run never proves a method. {_seeds(found['seeds_needed'])}"
    )


def _seeds(needed: int | None) -> str:
    if needed is None:
        return "No number of seeds can show a difference of zero."
    many = "1,000 seeds or more" if needed >= 1000 else f"About {needed} seeds"
    return (
        f"{many} would do, with a chance of 80%, for a difference of this size, if seeds spread as much as examples do "
        "(from one run nothing else is known; 3 seeds or more measure it)."
    )


def _headline(facts: Facts) -> str:
    scores, sizes = facts["scores"], facts["sizes"]
    student, teacher = scores["student"]["value"], scores["teacher"]["value"]
    share = f", {student / teacher:.1%} of the teacher's {teacher:.4f}" if teacher > 0 else ""
    line = (
        f"Student at scale {facts['target']:g}: **{facts['metric']} {with_error(scores['student'])}** on "
        f"{text(facts['dataset'])} ({text(facts['split'])}, {facts['n']:,} examples){share}; "
        f"a constant answer scores {facts['constant']:.4f}."
    )
    if "student" not in sizes or "teacher" not in sizes:
        return line
    small, large = sizes["student"], sizes["teacher"]
    kept = 1 - small["non_embedding"] / small["parameters"]
    return (
        f"{line} A student at scale {facts['target']:g} keeps all its embeddings: {kept:.1%} of all its parameters. "
        f"In total it is {small['parameters'] / large['parameters']:.1%} of the teacher, without embeddings "
        f"{small['non_embedding'] / large['non_embedding']:.1%}."
    )


def _warnings(facts: Facts) -> list[str]:
    """Return a quoted line for everything that makes the numbers weaker than they look."""
    said = []
    gap = facts["teacher_on_selection"] - facts["scores"]["teacher"]["value"]
    if abs(gap) > GAP:
        said.append(
            f"the teacher scores {facts['teacher_on_selection']:.4f} on the selection part and "
            f"{facts['scores']['teacher']['value']:.4f} on the evaluation part, {abs(gap) * 100:.1f} points apart: the "
            "part that chose the assistant is not like the one that is reported on."
        )
    if facts["selection_seen"] == "unknown":
        said.append(
            'the teacher came already fine-tuned (selection_seen="unknown"): it may have been trained on the selection '
            "part, which then flatters large candidates. `data.splits` with a `selection` file gives a clean one."
        )
    for name, rows in facts["data"]["overlap"].items():
        whole = facts["data"]["rows"][name]
        if rows > LITTLE * whole:
            said.append(
                f"{rows:,} of the {whole:,} rows of the {text(name)} part overlap rows that were read before, to "
                "train or to choose: scores on it flatter whoever remembers."
            )
    if facts["protocol"] == "paper":
        said.append(
            'protocol="paper": the evaluation part was used for importance, for the choice and for this report, as in '
            "the released code. The numbers are optimistic."
        )
    if facts["best"] is not None:
        said.append(
            f"the assistant, {facts['chosen']:g}, was asked for (`tradeoff.assistant`) and not chosen: by t it would "
            f"be {facts['best']:g}."
        )
    elif not facts["assistant_preferred"]:
        said.append(
            f"at this λ no assistant is preferred: the target's own t is the highest. The run went on with the best "
            f"candidate, {facts['chosen']:g}."
        )
    if facts["within_error"]:
        said.append(
            "the choice of the assistant is within noise: its margin is smaller than one standard error of the metric."
        )
    return [f"> **Note:** {line}" for line in said]


def _results(facts: Facts) -> str:
    rows = []
    for role, name in NAMES.items():
        if role not in facts["scores"]:
            continue
        score, size = facts["scores"][role], facts["sizes"].get(role)
        scale = {"teacher": 1.0, "assistant": facts["chosen"]}.get(role, facts["target"])
        rows.append(
            [
                name, f"{scale:g}", with_error(score), signed(score["value"] - facts["constant"]),
                count(size["parameters"]) if size else "–", count(facts["spent"].get(role)),
            ]
        )  # fmt: skip
    rows.append(["constant answer", "–", f"{facts['constant']:.4f}", "–", "–", "–"])
    header = ["model", "scale", f"{facts['metric']} ± standard error", "above constant", "parameters", "FLOPs spent"]
    return table(header, rows)


def _differences(facts: Facts) -> list[str]:
    if not facts["differences"]:
        return []
    order = sorted(facts["differences"], key=lambda d: d["against"] != "direct_flops")
    rows = [
        [
            NAMES[d["against"]], signed(d["value"]), f"{signed(d['low'])} to {signed(d['high'])}",
            {None: "–", 1000: "1,000 or more"}.get(d["seeds_needed"], str(d["seeds_needed"])),
        ]
        for d in order
    ]  # fmt: skip
    header = ["student minus", facts["metric"], "95% interval over examples", "seeds that would do"]
    return [table(header, rows)]


def _loading(facts: Facts) -> str:
    remote = ", trust_remote_code=True" if facts["remote_code"] else ""
    return (
        f"It is in `{facts['student_path']}` and loads without capgap:\n\n```python\n"
        "from transformers import AutoModelForSequenceClassification\n"
        f"model = AutoModelForSequenceClassification.from_pretrained({facts['student_path']!r}{remote})\n```"
    )


def _sizes(facts: Facts) -> str:
    batches = sorted({b for s in facts["sizes"].values() for b in s["latency_ms"] or {}}, key=int)
    rows = []
    for role, name in NAMES.items():
        if role not in facts["sizes"]:
            continue
        size = facts["sizes"][role]
        latency = size["latency_ms"] or {}
        rows.append(
            [
                name, f"{size['parameters']:,}", f"{size['non_embedding']:,}",
                f"{1 - size['non_embedding'] / size['parameters']:.1%}", f"{count(size['flops'])} at {size['length']}",
                f"{size['megabytes']:.1f}", *(f"{latency[b]:.2f}" if b in latency else "–" for b in batches),
            ]
        )  # fmt: skip
    header = ["model", "parameters", "non-embedding", "embeddings", "FLOPs an example, at tokens", "MB"]
    return table([*header, *(f"ms, batch {b} ({facts['device']})" for b in batches)], rows)


def _spent(facts: Facts) -> list[str]:
    spent = facts["spent"]
    if not {"student", "direct_flops"} <= spent.keys() or spent["student"] <= 0:
        return []
    ratio = spent["direct_flops"] / spent["student"]
    return [
        f"FLOPs spent after the teacher: {count(spent['student'])} on the student, its assistant and the candidates; "
        f"{count(spent['direct_flops'])} on direct_flops ({ratio:.1%} of it). A multiply-accumulate is 2 FLOPs."
    ]


def _data(data: Data) -> str:
    parts = table(["part", "rows"], [[text(name), f"{rows:,}"] for name, rows in data["rows"].items()])
    lines = [f"{data['groups']:,} groups, the largest of {data['largest_group']:,} rows. Cut: {text(data['how'])}."]
    lines += [
        f"Rows of the {text(name)} part that overlap one read before, to train or to choose: {rows:,}."
        for name, rows in data["overlap"].items()
    ]
    lines += [text(note) for note in data["notes"]]
    return parts + "\n\n" + "\n".join(f"* {line}" for line in lines)


def _stages(facts: Facts) -> str:
    rows = [
        [text(s["name"]), text(s["stage"]), f"`{s['identity'][:12]}`", f"`{s['code'][:12]}`"] for s in facts["stages"]
    ]
    about = f"Seed {facts['seed']}, protocol {facts['protocol']}, device {text(facts['device'])}."
    return f"{about}\n\n{table(['result', 'stage', 'identity', 'code'], rows)}"


def _images(figures: Mapping[str, bytes], budget: int) -> dict[str, list[str]]:
    """Return section → images as markdown; one that no longer fits is named instead."""
    found: dict[str, list[str]] = {}
    for name, png in figures.items():
        title = name.removesuffix(".png")
        section = {"arms": "results", "tradeoff": "candidates"}.get(title, "training")
        image = f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})"
        if len(image) + _SPARE > budget:
            image = f"The figure {name} is too large for this page; it is beside the report."
        budget -= len(image)
        found.setdefault(section, []).append(image)
    return found
