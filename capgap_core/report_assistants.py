"""Composes what runs of minidisc say together of assistants as markdown, from plain facts.

Imports nothing that computes: what is said here cannot move a number.
"""

from collections.abc import Mapping, Sequence
from typing import TypedDict

from capgap_core.markdown import short, table, text
from capgap_core.report_law import Row, rivals_table, shown

NO_WORTH = (
    "> Students of assistants are compared with one another. Whether an assistant is worth its cost is not asked here: "
    "that takes controls of equal FLOPs over seeds, which the pages of the runs have."
)
DIRECT = (
    "Students of the teacher itself (control `direct`) are shown and in no fit: they begin as the slimmed teacher, "
    "students of assistants as the target in the sandwich, which has trained them before."
)


class Facts(TypedDict):
    """What is to be said."""

    dataset: str
    split: str
    runs: int
    other_code: bool
    command: str
    metric: str
    rows: Sequence[Row]
    """Of the table ``cells``."""
    sizes: Mapping[float, float]
    """Scale → parameters outside the embeddings, means over seeds."""
    optima: Sequence[Row]
    rivals: Sequence[Row]
    unlike: Sequence[float]
    """Scales of students whose larger assistants do not always score better."""
    summary: Row


def compose(facts: Facts, figures: Mapping[str, bytes]) -> str:
    """Return the report as markdown, what it shows first."""
    parts = [
        f"# Which assistant a student wants: {text(facts['dataset'])}",
        NO_WORTH,
        *verdicts(facts),
        _measured(facts),
        *shown(figures),
        f"## Students\n\n{_students(facts)}",
        _told(facts),
        f"## Assistants\n\n{_assistants(facts)}",
        f"## Laws on students they have not seen\n\n{_left_out(facts)}",
        f"## Again\n\n```sh\n{facts['command']}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def verdicts(facts: Facts) -> list[str]:
    """Return what the grid allows to be said."""
    said = []
    if facts["unlike"]:
        names = ", ".join(f"{scale:g}" for scale in facts["unlike"])
        said.append(
            f"**Larger assistants do not always score better (students at {names}): what looks like a gap in capacity "
            "may be poor assistants.**"
        )
    if facts["other_code"]:
        said.append("run.reuse=any-code: models were made by different code.")
    said += [_power(power) for power in facts["summary"]["powers"]]
    return [*said, f"Apple's law: not estimable: {facts['summary']['apple']}; all students are trained alike."]


def _power(power: Row) -> str:
    if power["power"] != "estimable":
        return f"**No law of the best assistant can be estimated: {power['power']}.**"
    value, low, high = power["exponent"]
    ratio = "{:.2f} ({:.2f} to {:.2f})".format(*power["ratio"])
    return (
        f"**T* grows as S to the power {value:.2f} ({low:.2f} to {high:.2f}); taken as a constant ratio, "
        f"T* = {ratio} S.** 90% intervals, {power['students']} best assistants."
    )


def _measured(facts: Facts) -> str:
    rows = facts["rows"]
    errors = [row["stderr"] for row in rows if row["stderr"] is not None]
    error = f", each ± {max(errors):.4f} at most (standard error over the examples, which are the same for all)"
    seeds = len({row["seed"] for row in rows})
    cells = sum(row["role"] == "student" for row in rows)
    return (
        f"{facts['runs']} runs of minidisc, {cells} students of assistants, {seeds} seed{'s' * (seeds != 1)}. Scores "
        f"are {facts['metric']} on {text(facts['split'])}, {rows[0]['n']:,} examples{error if errors else ''}; the "
        "loss that laws are fitted to is 1 minus that. Teacher means the assistant (TA) here. Sizes are parameters "
        "outside the embeddings, means over seeds; scales, the kept shares of the teacher, stand beside them."
    )


def _students(facts: Facts) -> str:
    """Return the score of each student over its assistants, and which of them is best."""
    taught = [row for row in facts["rows"] if row["role"] == "student"]
    direct = [row for row in facts["rows"] if row["role"] == "direct"]
    theirs = sorted({row["teacher_scale"] for row in taught})
    best = {row["scale"]: row for row in facts["optima"]}
    lines = []
    for scale in sorted({row["scale"] for row in taught}):
        own = [row for row in taught if row["scale"] == scale]
        line = [_named(facts, scale), *(_mean([r for r in own if r["teacher_scale"] == one]) for one in theirs)]
        line += [_mean([row for row in direct if row["scale"] == scale])] if direct else []
        lines.append([*line, _best(best[scale])])
    heads = ["student", *(f"of {_named(facts, scale)}" for scale in theirs), *(["direct"] if direct else [])]
    return table([*heads, "best teacher"], lines)


def _told(facts: Facts) -> str:
    said = (
        "Scores are means over seeds. A teacher is told to be the best one where both its neighbours are worse by more "
        "than two standard errors over seeds; then a parabola through the teachers around it says where the best lies, "
        "with a 90% interval. That is a choice by the part that is reported on, and the best one's score flatters it."
    )
    return f"{said} {DIRECT}" if any(row["role"] == "direct" for row in facts["rows"]) else said


def _assistants(facts: Facts) -> str:
    """Return the score of each assistant, by the student in whose sandwich it was trained."""
    taught = [row for row in facts["rows"] if row["role"] == "student"]
    scales = sorted({row["scale"] for row in taught})
    lines = [
        [
            _named(facts, whose),
            *(_mean([r for r in taught if (r["teacher_scale"], r["scale"]) == (whose, scale)], "teacher_value")
              for scale in scales),
        ]
        for whose in sorted({row["teacher_scale"] for row in taught})
    ]  # fmt: skip
    return table(["assistant", *(f"in the sandwich of {scale:g}" for scale in scales)], lines)


def _left_out(facts: Facts) -> str:
    if not facts["rivals"]:
        return f"None was asked: {facts['summary']['left_out']}."
    return (
        f"{rivals_table(facts['rivals'], facts['metric'])}\n\nEvery size of student is left out in turn; a law that "
        "was fitted to the others names its teacher, of those that were measured. The regret is what that teacher's "
        "student scores below the best one's."
    )


def _named(facts: Facts, scale: float) -> str:
    return f"{scale:g} ({short(facts['sizes'][scale])})"


def _mean(rows: Sequence[Row], column: str = "value") -> str:
    return f"{sum(row[column] for row in rows) / len(rows):.4f}" if rows else "–"


def _best(found: Row) -> str:
    if found["found"] != "bracketed":
        return str(found["found"])
    size = f"{short(found['teacher'])} ({short(found['low'])} to {short(found['high'])})"
    return f"{size}, scale {found['teacher_scale']:.2g}"
