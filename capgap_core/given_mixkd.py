"""Looks at what only MixKD is given beside a data set and a teacher: texts without labels, and a student."""

from dataclasses import dataclass, replace
from pathlib import Path

from capgap_core.corpus import Corpus
from capgap_core.errors import Fault, InputFaults, fault
from capgap_core.given_teacher import GivenTeacher, inspect
from capgap_core.loading import Cache
from capgap_core.recipes_mixkd import Mixkd
from capgap_core.unlabelled import Unlabelled, read_unlabelled

PROBED = 200
"""Texts on which two tokenizers are compared."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """What was found; null where it was not asked for."""

    unlabelled: Unlabelled | None = None
    student: GivenTeacher | None = None


def look(
    p: Mixkd, wrong: set[str], corpus: Corpus, teacher: GivenTeacher | None, *, cache: Cache, root: str | None
) -> tuple[Given, list[Fault]]:
    """Return what was given and every fault of it; what is ``wrong`` already is not looked at."""
    texts: Unlabelled | None = None
    student: GivenTeacher | None = None
    faults: list[Fault] = []
    if p.unlabelled is not None and "unlabelled" not in wrong:
        try:
            texts = read_unlabelled(p.unlabelled, corpus.text_columns, cache=cache)
        except InputFaults as error:
            faults += error.faults
    if p.student.model is not None and teacher is not None and not wrong & {"student", "student.model"}:
        try:
            student = inspect(p.student.model, "finetune", corpus, cache=root)
            faults += _unlike(p, student, teacher, corpus)
        except InputFaults as error:
            remedy = f"Give a {teacher.family} that from_pretrained loads: a folder, or a name on the hub."
            faults += [replace(found, field="student.model", remedy=remedy) for found in error.faults]
    return Given(unlabelled=texts, student=student), faults


def _unlike(p: Mixkd, student: GivenTeacher, teacher: GivenTeacher, corpus: Corpus) -> list[Fault]:
    """Return the faults of a student beside its teacher: mixtures are of tokens that both read alike."""
    name = p.student.model
    faults = []
    if student.family != teacher.family:
        rule = f"is a {student.family}, the teacher a {teacher.family}"
        faults.append(fault("student.model", name, rule, "Give a student of the teacher's family."))
    if student.positions < p.data.max_length:
        rule = f"it has {student.positions} positions, and data.max_length is {p.data.max_length}"
        faults.append(fault("student.model", name, rule, f"Set data.max_length={student.positions} or less."))
    if p.student.layers is not None and p.student.layers > student.layers:
        rule = f"student.model has {student.layers} layers"
        faults.append(fault("student.layers", p.student.layers, rule, f"Give {student.layers} or fewer."))
    other = None if student.tokenizer == teacher.tokenizer else _other_tokens(student.folder, teacher.folder, corpus)
    if other is not None:
        remedy = "Give a student with the teacher's tokenizer, or leave student.model out: it begins as the teacher's."
        faults.append(fault("student.model", name, other, remedy))
    return faults


def _other_tokens(student: Path, teacher: Path, corpus: Corpus) -> str | None:
    """Return what two tokenizers differ in; nothing where they give the same ids."""
    from capgap_core import tokens  # noqa: PLC0415 - seconds to import, and only this question needs it

    ours, theirs = tokens.given(str(student)), tokens.given(str(teacher))
    if ours.get_vocab() != theirs.get_vocab():
        return f"its tokenizer has other pieces ({len(ours):,}) than the teacher's ({len(theirs):,})"
    texts = [column[:PROBED] for column in corpus.parts["train"].texts]
    found, wanted = (tokens.encode(tokenizer, texts, max_length=128) for tokenizer in (ours, theirs))
    return None if found == wanted else "its tokenizer cuts texts in another way than the teacher's"
