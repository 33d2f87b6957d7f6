"""Composes the report of a run of ``mixkd`` as markdown, from plain facts.

Imports nothing that computes: what is said here cannot move a number.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from capgap_core.markdown import count, signed, table, text

LARGEST = 300_000
"""Bytes of a report; a figure that does not fit stays beside it."""
FEWEST = 100
"""Training rows below which a comparison of arms says nothing."""
NAMES = {
    "finetune": "labels alone", "kd": "KD", "kd_sm": "KD + SM", "kd_tmkd": "KD + TMKD", "mixkd": "KD + SM + TMKD",
    "repeats": "KD, examples again", "noise": "KD, noise", "kd_unlabelled": "KD, more rows",
    "mixkd_unlabelled": "KD + SM + TMKD, more rows",
}  # fmt: skip

EQUAL = ", equal tokens"
"""Is added to an arm that trains longer, for as many tokens as those that mix."""


class Facts(TypedDict):
    """What is to be said."""

    dataset: str
    metric: str
    split: str
    n: int
    seed: int
    device: str
    constant: float
    teacher_rows: str
    accepted: bool
    """Whether the teacher came fine-tuned, on what is not known."""
    rows: Sequence[Mapping[str, Any]]
    """Of the table ``ablation``."""
    command: str


def compose(facts: Facts, png: bytes | None) -> str:
    """Return the report as markdown, what it shows first."""
    sizes = sorted({row["n_train"] for row in facts["rows"]}, reverse=True)
    image = f"![arms](data:image/png;base64,{base64.b64encode(png).decode()})" if png else ""
    parts = [
        f"# MixKD: {text(facts['dataset'])}",
        verdict(facts),
        f"{facts['metric']} is measured on the evaluation part ({text(facts['split'])}, {facts['n']:,} examples). "
        f"Constant answer: {facts['constant']:.4f}. Seed {facts['seed']}, device {text(facts['device'])}.",
        *[_share(facts, size) for size in sizes],
        "SM: the mixed labels of mixtures; TMKD: what the teacher says of them; examples again, noise: in place of "
        "mixtures; more rows: texts that the teacher labels; equal tokens: as many go through the student. "
        "gap: the metric on the training rows minus that on the evaluation part. ECE: expected calibration error. "
        "Passes: examples and mixtures that went forward and back through the student; FLOPs count "
        "the teacher at every step, as if nothing were kept. Differences are KD + SM + TMKD "
        "minus the arm, with a paired 95% interval over the examples: they speak of these models, not of the method.",
        *([image] if image and len(image) < LARGEST else []),
        f"## Repeat it\n\n```sh\n{facts['command']}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def verdict(facts: Facts) -> str:
    """Return what one run says of mixtures: never more than one run can."""
    if max(row["n_train"] for row in facts["rows"]) < FEWEST:
        return f"**Whether mixtures help: not testable** with fewer than {FEWEST} training rows."
    return (
        "**Whether mixtures help: not shown.** One run compares models, not methods: other seeds and other draws of "
        "the rows give other students."
    )


def _share(facts: Facts, size: int) -> str:
    """Return what is said of the arms of one share of the rows."""
    rows = [row for row in facts["rows"] if row["n_train"] == size]
    whose = "all training rows" if facts["teacher_rows"] == "all" else "the same rows"
    saw = "it was fine-tuned before" if facts["accepted"] else f"it saw {whose}"
    teacher = f"Teacher: {facts['metric']} {rows[0]['teacher_value']:.4f}; {saw}."
    return f"## {size:,} training rows\n\n{teacher}\n\n{_rows(rows)}"


def _rows(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        name = NAMES[row["arm"]] + (EQUAL if row["matched"] == "tokens" else "")
        stderr = "" if row["stderr"] is None else f" ± {row['stderr']:.3f}"
        apart = "–"
        if row.get("difference") is not None:
            apart = f"{signed(row['difference'], 3)} ({signed(row['low'], 3)} to {signed(row['high'], 3)})"
        error = row["calibration_error"]
        lines.append(
            [
                name, f"{row['value']:.3f}{stderr}", apart, signed(row["gap"], 3),
                "–" if error is None else f"{error:.3f}", f"{row['steps']:,}", count(row["passes"]),
                count(row["training_flops"]),
            ]
        )  # fmt: skip
    header = [
        "arm",
        f"{rows[0]['metric']} ± s.e.",
        "KD + SM + TMKD minus the arm",
        "gap",
        "ECE",
        "steps",
        "passes",
        "FLOPs",
    ]
    below = "" if rows[0]["n_train"] >= FEWEST else f"\n\n**Not testable**: fewer than {FEWEST} rows."
    return table(header, lines) + below
