"""Composes what a grid says of laws as markdown, from plain facts.

Imports nothing that computes: what is said here cannot move a number.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, TypedDict

from capgap_core.markdown import short, table, text

Row = Mapping[str, Any]


LARGEST = 200_000
"""Bytes of a figure; one that does not fit stays beside the report."""
CAPTIONS = {
    "losses": "Loss of each student over its teacher",
    "teachers": "Best teacher over the student",
    "residuals": "What Apple's law misses",
    "surface": "Apple's law over student and teacher",
}
DEMONSTRATION = "pysource"
DEMONSTRATES = (
    "> Small models of the source of Python's own library show that the machinery works. They are no law: of no model "
    "that is used, and of no other text."
)


class Facts(TypedDict):
    """What is to be said."""

    dataset: str
    command: str
    n: int
    """Tokens on which every model was measured."""
    rows: Sequence[Row]
    """Of the table ``cells``."""
    optima: Sequence[Row]
    rivals: Sequence[Row]
    summary: Row


def compose(facts: Facts, figures: Mapping[str, bytes]) -> str:
    """Return the report as markdown, what it shows first."""
    images = shown(figures)
    name = text(facts["dataset"])
    parts = [
        f"# Which teacher a student wants: {name}",
        *([DEMONSTRATES] if facts["dataset"] == DEMONSTRATION else []),
        *verdicts(facts["rows"], facts["summary"]),
        f"Losses are nats for a token of the part test, {facts['n']:,} tokens of {name}; sizes are parameters outside "
        "the embeddings.",
        *images[:2],
        f"## Students\n\n{students(facts['rows'], facts['optima'])}",
        "Each loss is a mean over seeds. A teacher is told to be the best one where both its neighbours are worse by "
        "more than two standard errors; then a parabola through the teachers around it says where the best lies, with "
        "a 90% interval.",
        f"## Teachers\n\n{teachers(facts['rows'], facts['summary'].get('source_nats'))}",
        f"## Laws on students they have not seen\n\n{rivals_table(facts['rivals'])}",
        "Every size of student is left out in turn; a law that was fitted to the others names its teacher, of those "
        "that were measured. The regret is what that teacher's student loses beyond the best one's.",
        *images[2:],
        f"## Again\n\n```sh\n{facts['command']}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def shown(figures: Mapping[str, bytes]) -> list[str]:
    """Return the figures that are not too large as images in markdown."""
    return [
        f"![{CAPTIONS[name]}](data:image/png;base64,{base64.b64encode(png).decode()})"
        for name, png in figures.items()
        if len(png) < LARGEST
    ]


def verdicts(rows: Sequence[Row], summary: Row) -> list[str]:
    """Return what the grid allows to be said.

    Parameters
    ----------
    rows
        Of the table ``cells``.
    summary
        Of the stage ``law``.
    """
    said = []
    if not summary["monotone"]:
        said.append(
            "**Larger teachers do not always lose less here: what looks like a gap in capacity may be poor teachers.**"
        )
    limited = {row["parameters"] for row in rows if row["role"] == "teacher" and row["data_limited"]}
    if limited:
        names = ", ".join(short(size) for size in sorted(limited))
        why = "under 10 tokens for each parameter, or over 4 epochs"
        said.append(f"Limited by data, and in no fit: teachers of {names} ({why}).")
    said += _given(rows) + _slimmed(rows) + _often(rows) + _alone(rows)
    said += [_power(power) for power in summary["powers"]]
    if not summary["powers"]:
        said.append("**No law of the best teacher can be estimated: no cell is in a fit.**")
    if summary["apple"] != "estimable":
        said.append(f"Apple's law: not estimable: {summary['apple']}.")
    elif summary.get("apple_ended"):
        said.append(
            f"Apple's law: the grid does not tell {', '.join(summary['apple_ended'])} apart (the fit ends at a bound): "
            "single coefficients are no estimates, and what is said of losses and best teachers holds among the "
            "measured sizes and tokens alone."
        )
    return said + _source(summary)


def _given(rows: Sequence[Row]) -> list[str]:
    """Return what is said of teachers that are given."""
    given = sorted(row["parameters"] for row in rows if row["role"] == "teacher" and row["tokens"] is None)
    if not given:
        return []
    return [
        f"Given, not trained here: teachers of {', '.join(map(short, given))}. On how much text is not known, so that "
        "they may be limited by their data; they are in no fit of models alone, and Apple's law names one of the "
        "measured teachers, by what each loses."
    ]


def _slimmed(rows: Sequence[Row]) -> list[str]:
    """Return what is said of students that begin slimmed, and which were left out."""
    cut = [row for row in rows if row.get("begin") == "slimmed"]
    if not cut:
        return []
    ratios = [row["achieved_parameters"] / row["parameters"] for row in cut]
    said = (
        "Students of a teacher begin as slices of it (heads, neurons and width), those alone from scratch. A student "
        f"is told by the size that was asked for; slices have {min(ratios):.2f} to {max(ratios):.2f} times as many."
    )
    sizes = sorted({row["parameters"] for row in rows if row["role"] == "student"})
    theirs = sorted({row["parameters"] for row in rows if row["role"] == "teacher"})
    left = [f"{short(size)} of {short(teacher)}" for size in sizes for teacher in theirs if teacher <= size]
    return [f"{said} Not smaller than the teacher, and left out: {', '.join(left)}." if left else said]


def _often(rows: Sequence[Row]) -> list[str]:
    """Return which students are in no fit because they saw their text too often."""
    alone = [row for row in rows if row["role"] == "student" and row["teacher"] is None]
    often = {(row["parameters"], row["tokens"]) for row in alone if row["data_limited"]}
    return [f"Limited by data, and in no fit: students of {_named(often)} (over 4 epochs)."] if often else []


def _alone(rows: Sequence[Row]) -> list[str]:
    """Return which students lose no more without any teacher than with the best of theirs."""
    no_worse = set()
    students = [row for row in rows if row["role"] == "student"]
    for size, tokens in {(row["parameters"], row["tokens"]) for row in students}:
        own = [row for row in students if (row["parameters"], row["tokens"]) == (size, tokens)]
        means = {who: _loss(own, who) for who in {row["teacher"] for row in own}}
        alone = means.pop(None, None)
        if alone is not None and means and alone <= min(means.values()):
            no_worse.add((size, tokens))
    if not no_worse:
        return []
    return [f"**Alone, without any teacher, students lose no more than with the best one: {_named(no_worse)}.**"]


def _named(students: Iterable[tuple[float, float]]) -> str:
    return ", ".join(f"{short(size)} on {short(tokens)}" for size, tokens in sorted(students))


def _power(power: Row) -> str:
    """Return what students with one number of tokens for each parameter say."""
    on = f"Students on {power['budget']:g} tokens a parameter: "
    if power["power"] != "estimable":
        return f"{on}**no law of the best teacher can be estimated: {power['power']}.**"
    value, low, high = power["exponent"]
    ratio = "{:.2f} ({:.2f} to {:.2f})".format(*power["ratio"])
    return (
        f"{on}**T* grows as S to the power {value:.2f} ({low:.2f} to {high:.2f}); taken as a constant ratio, "
        f"T* = {ratio} S.** 90% intervals, {power['students']} best teachers."
    )


def _source(summary: Row) -> list[str]:
    """Return what is said where the text's own loss is known."""
    if "source_nats" not in summary:
        return []
    said = (
        "The text is a control, and says nothing of language. Its source itself loses "
        f"{summary['source_nats']:.4f} nats (± {summary['source_stderr']:.4f} over other rows) on the rows that models "
        "are measured on: none can lose less, but by chance."
    )
    if summary.get("irreducible_why"):
        return [f"{said} Apple's law does not say E: {summary['irreducible_why']}."]
    if summary["irreducible"] is None:
        return [said]
    value, low, high = summary["irreducible"]
    holds = "holds" if low <= summary["source_nats"] <= high else "does not hold"
    return [f"{said} Apple's law finds E = {value:.4f} ({low:.4f} to {high:.4f}, 90%), which {holds} it."]


def teachers(rows: Sequence[Row], source: float | None = None) -> str:
    """Return the loss of each teacher, and how much text it has seen; how far it is above the text's own, if known."""
    held = [
        [
            short(row["parameters"]), *_seen(row),
            f"{row['nats']:.4f} ± {row['stderr']:.4f}", "limited by data" if row["data_limited"] else "",
            *([] if source is None else [f"{row['nats'] - source:+.4f}"]),
        ]
        for row in rows if row["role"] == "teacher"
    ]  # fmt: skip
    above = [] if source is None else ["above the source"]
    return table(["teacher", "tokens", "a parameter", "epochs", "nats a token ± s.e.", "", *above], held)


def _seen(row: Row) -> list[str]:
    """Return how much text a teacher has seen, where that is known."""
    if row["tokens"] is None:
        return ["given: unknown", "–", "–"]
    return [short(row["tokens"]), f"{row['tokens_per_parameter']:.1f}", f"{row['epochs']:.2f}"]


def students(rows: Sequence[Row], optima: Sequence[Row]) -> str:
    """Return the loss of each student over its teachers, and which of them is best."""
    taught = [row for row in rows if row["role"] == "student"]
    theirs = sorted({row["teacher"] for row in taught if row["teacher"]})
    best = {(row["student"], row["tokens"]): row for row in optima}
    lines = []
    for size, tokens in sorted({(row["parameters"], row["tokens"]) for row in taught}):
        own = [row for row in taught if (row["parameters"], row["tokens"]) == (size, tokens)]
        found = best.get((size, tokens))
        lines.append([short(size), short(tokens), *(_mean(own, teacher) for teacher in (None, *theirs)), _best(found)])
    return table(["student", "tokens", "alone", *(f"of {short(size)}" for size in theirs), "best teacher"], lines)


def _mean(rows: Sequence[Row], teacher: float | None) -> str:
    return f"{_loss(rows, teacher):.4f}" if any(row["teacher"] == teacher for row in rows) else "–"


def _loss(rows: Sequence[Row], teacher: float | None) -> float:
    """Return the mean loss over seeds of a student's rows with this teacher, at least one."""
    return fmean(row["nats"] for row in rows if row["teacher"] == teacher)


def _best(found: Row | None) -> str:
    if found is None:
        return "–"
    if found["found"] != "bracketed":
        return str(found["found"])
    return f"{short(found['teacher'])} ({short(found['low'])} to {short(found['high'])})"


def rivals_table(rivals: Sequence[Row], unit: str = "nats") -> str:
    """Return a row for each law: how many students it spoke of, its mean regret, and what it misses of losses."""
    if not rivals:
        return "No student could be left out: no cell is in a fit."
    lines = []
    for law in dict.fromkeys(row["law"] for row in rivals):
        own = [row for row in rivals if row["law"] == law]
        known = [row for row in own if row["why_not"] is None]
        if not known:
            lines.append([law, f"not estimable: {own[0]['why_not']}", "–", "–"])
            continue
        regret = sum(row["regret"] for row in known) / len(known)
        errors = [row["regret_error"] for row in known]
        error = "unknown" if None in errors else f"{sum(e**2 for e in errors) ** 0.5 / len(known):.4f}"
        lines.append(
            [law, f"{len(known)} of {len(own)}", f"{regret:.4f} ± {error}",
             f"{sum(row['loss_error'] for row in known) / len(known):.4f}"]
        )  # fmt: skip
    return table(["law", "students", f"mean regret, {unit} ± s.e.", f"error of predicted losses, {unit}"], lines)
