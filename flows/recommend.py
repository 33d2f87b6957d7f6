"""``capgap recommend``: which teacher the published laws name for a student, and what following them costs."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict

from capgap_core.errors import Fault, InputFaults, fault
from capgap_core.laws.recommend import Answer, recommend as answers_for
from capgap_core.markdown import short
from flows import present

UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
SECONDS = 3600.0
MOST = 1e18
DISAGREE = "Neither was measured on your text and models; losses are nats for a token of English C4."


def recommend(
    student: str, tokens: str, teacher_tokens: str, throughput: str | None, *, as_json: bool, say: Callable[[str], None]
) -> int:  # fmt: skip
    """Print what each law says; return the exit status: 2 where an amount is none."""
    try:
        s, d, m, f = _amounts(student, tokens, teacher_tokens, throughput)
    except InputFaults as faults:
        say(str(faults))
        return 2
    answers = answers_for(s, d, teacher_tokens=m)
    if as_json:
        given = {"student": s, "tokens": d, "teacher_tokens": m, "throughput": f}
        found = {"schema": "capgap.recommend/1", **given, "answers": [asdict(answer) for answer in answers]}
        print(json.dumps(found, allow_nan=False))
    else:
        print(_shown(answers, f))
    return 0


def amount(text: str) -> float | None:
    """Return a number like 300M, 5B or 1.5e9; nothing where it is none above 0."""
    found = re.fullmatch(r"([0-9]*\.?[0-9]+(?:e\+?[0-9]{1,2})?) ?([KMBGT]?)", text.strip(), re.IGNORECASE)
    value = float(found[1]) * UNITS[found[2].upper()] if found else 0.0
    return value if 0.0 < value <= MOST else None


def _amounts(
    student: str, tokens: str, teacher_tokens: str, throughput: str | None
) -> tuple[float, float, float, float | None]:
    asked = {
        "--student": (student, "parameters", "300M"), "--tokens": (tokens, "tokens", "5B"),
        "--teacher-tokens": (teacher_tokens, "tokens for each parameter", "20"),
        "--throughput": (throughput, "FLOPs a second", "200T"),
    }  # fmt: skip
    found: dict[str, float | None] = {}
    faults: list[Fault] = []
    for name, (text, what, example) in asked.items():
        found[name] = None if text is None else amount(text)
        if text is not None and found[name] is None:
            faults.append(fault(name, text, f"is no number of {what} between 0 and 10^18", f"Give one like {example}."))
    if faults:
        raise InputFaults(faults)
    s, d, m, f = found.values()
    assert s is not None
    assert d is not None
    assert m is not None
    return s, d, m, f


def _shown(answers: Sequence[Answer], throughput: float | None) -> str:
    rows, notes = [], []
    for answer in answers:
        cost = present.number(answer.flops, ".3g")
        if answer.flops is not None and throughput is not None:
            cost += f" ({answer.flops / throughput / SECONDS:,.1f} h)"
        helps = None if answer.loss is None else _helps(answer.break_even)
        rows.append(
            [
                answer.law, "-" if answer.teacher is None else short(answer.teacher),
                present.number(answer.loss, ".3f"), present.number(answer.alone, ".3f"),
                present.number(helps, "s"), cost, present.number(answer.teacher_flops, ".3g"),
            ]
        )  # fmt: skip
        notes.append(f"{answer.law}: {answer.whose}. Teacher: {answer.says}.")
    header = ["law", "teacher", "loss", "alone", "helps up to tokens", "FLOPs", "and to train the teacher"]
    known = [a.teacher for a in answers if a.teacher is not None]
    if len(known) > 1:
        notes.append(f"They disagree by a factor of {max(known) / min(known):.1f}. " + DISAGREE)
    return "\n".join([present.grid(header, rows), *notes])


def _helps(break_even: float | None) -> str:
    """Return up to how many tokens a teacher helps."""
    if break_even is None:
        return "all near"
    return short(break_even) if break_even else "none"
