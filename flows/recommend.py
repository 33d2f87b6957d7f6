"""``capgap recommend``: which teacher laws name for a student, published ones or a grid's, and what it costs."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from capgap_core.errors import Fault, InputFaults, fault
from capgap_core.laws import own
from capgap_core.laws.recommend import TEACHER_TOKENS, Answer, recommend as answers_for
from capgap_core.markdown import short
from flows import present
from flows.grids import Grid, find

UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
SECONDS = 3600.0
MOST = 1e18
DISAGREE = "Neither was measured on your text and models; losses are nats for a token of English C4."


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked for, as it was written."""

    student: str
    tokens: str
    teacher_tokens: str | None
    throughput: str | None
    grid: str | None
    """The grid whose laws answer; null: what others have published."""


def recommend(
    asked: Asked, *, root: Path, as_json: bool, say: Callable[[str], None]
) -> int:  # fmt: skip
    """Print what each law says; return the exit status: 2 where an amount is none, or the grid is not there."""
    try:
        (s, d, m, f), grid = _read(asked, root)
    except InputFaults as faults:
        say(str(faults))
        return 2
    if grid is None:
        m = m or TEACHER_TOKENS
        answers = answers_for(s, d, teacher_tokens=m)
    else:
        answers, m, f = own.recommend(grid.fits, s, d), grid.fits.teacher_tokens, f or grid.throughput
    if as_json:
        given = {"student": s, "tokens": d, "teacher_tokens": m, "throughput": f, "from": asked.grid}
        found = {"schema": "capgap.recommend/1", **given, "answers": [asdict(answer) for answer in answers]}
        print(json.dumps(found, allow_nan=False))
    else:
        print(_shown(answers, f, published=grid is None))
    return 0


def _read(asked: Asked, root: Path) -> tuple[tuple[float, float, float | None, float | None], Grid | None]:
    """Return the amounts and the grid; raises every fault of both."""
    faults: list[Fault] = []
    amounts, grid = None, None
    try:
        amounts = _amounts(asked)
    except InputFaults as wrong:
        faults += wrong.faults
    try:
        grid = find(asked.grid, root) if asked.grid is not None else None
    except InputFaults as wrong:
        faults += wrong.faults
    if amounts is None or faults:
        raise InputFaults(faults)
    return amounts, grid


def amount(text: str) -> float | None:
    """Return a number like 300M, 5B or 1.5e9; nothing where it is none above 0."""
    found = re.fullmatch(r"([0-9]*\.?[0-9]+(?:e\+?[0-9]{1,2})?) ?([KMBGT]?)", text.strip(), re.IGNORECASE)
    value = float(found[1]) * UNITS[found[2].upper()] if found else 0.0
    return value if 0.0 < value <= MOST else None


def _amounts(given: Asked) -> tuple[float, float, float | None, float | None]:
    """Return student, tokens, tokens a parameter of a teacher, and FLOPs a second."""
    asked = {
        "--student": (given.student, "parameters", "300M"), "--tokens": (given.tokens, "tokens", "5B"),
        "--teacher-tokens": (given.teacher_tokens, "tokens for each parameter", "20"),
        "--throughput": (given.throughput, "FLOPs a second", "200T"),
    }  # fmt: skip
    found: dict[str, float | None] = {}
    faults: list[Fault] = []
    for name, (text, what, example) in asked.items():
        found[name] = None if text is None else amount(text)
        if text is not None and found[name] is None:
            faults.append(fault(name, text, f"is no number of {what} between 0 and 10^18", f"Give one like {example}."))
    if given.grid is not None and given.teacher_tokens is not None:
        rule = "the teachers of a grid have seen what they have seen"
        faults.append(fault("--teacher-tokens", given.teacher_tokens, rule, "Leave it out, or leave out --from."))
    if faults:
        raise InputFaults(faults)
    s, d, m, f = found.values()
    assert s is not None
    assert d is not None
    return s, d, m, f


def _shown(answers: Sequence[Answer], throughput: float | None, *, published: bool) -> str:
    rows, notes = [], []
    for answer in answers:
        cost = present.number(answer.flops, ".3g")
        if answer.flops is not None and throughput is not None:
            cost += f" ({answer.flops / throughput / SECONDS:,.1f} h)"
        helps = None if answer.loss is None else _helps(answer.break_even)
        rows.append(
            [
                answer.law, "-" if answer.teacher is None else short(answer.teacher), _ends(answer.low, answer.high),
                _with(answer.loss, answer.loss_low, answer.loss_high),
                _with(answer.alone, answer.alone_low, answer.alone_high),
                present.number(helps, "s"), cost, present.number(answer.teacher_flops, ".3g"),
            ]
        )  # fmt: skip
        notes.append(f"{answer.law}: {answer.whose}. Teacher: {answer.says}.{_no_help(answer)}")
    header = ["law", "teacher", "interval", "loss", "alone", "helps up to tokens", "FLOPs", "to train the teacher"]
    known = [a.teacher for a in answers if a.teacher is not None]
    if len(known) > 1:
        factor = f"They disagree by a factor of {max(known) / min(known):.1f}."
        notes.append(f"{factor} {DISAGREE}" if published else factor)
    if not known and not published:
        notes.append("The grid names no teacher for this student.")
    return "\n".join([present.grid(header, rows), *notes])


def _no_help(answer: Answer) -> str:
    """Return what is said where no teacher helps; nothing where one does."""
    if answer.loss is None or answer.alone is None or answer.loss < answer.alone:
        return ""
    return " On so many tokens the student loses no less with it than alone."


def _ends(low: float | None, high: float | None) -> str:
    """Return an interval of sizes, with a bar for an end that nothing bounds."""
    if low is None and high is None:
        return "-"
    return f"{'…' if low is None else short(low)} to {'…' if high is None else short(high)}"


def _with(value: float | None, low: float | None, high: float | None) -> str:
    """Return a loss, with its interval where there is one."""
    said = present.number(value, ".3f")
    return said if low is None or high is None else f"{said} ({low:.3f} to {high:.3f})"


def _helps(break_even: float | None) -> str:
    """Return up to how many tokens a teacher helps."""
    if break_even is None:
        return "all near"
    return short(break_even) if break_even else "none"
