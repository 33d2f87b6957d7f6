"""The faults that parameters have only together, where each is right alone."""

from typing import Any

from capgap_core import given_runs, given_text
from capgap_core.errors import Fault, fault
from capgap_core.given_teacher import GivenTeacher
from capgap_core.recipes import Minidisc
from capgap_core.recipes_law import Law
from capgap_core.recipes_mixkd import ALONE, ARMS, UNLABELLED, Mixkd


def across(p: Any, wrong: set[str]) -> list[Fault]:
    """Return the faults between the parameters of a flow that are not wrong already."""
    if isinstance(p, Law):
        return given_runs.across(p, wrong) if p.references else given_text.across(p, wrong)
    own = {Minidisc: _minidisc, Mixkd: _mixkd}[type(p)]
    return [*own(p, wrong), *_mixtures(p, wrong), *_heads(p, wrong)]


def beside(p: Any, teacher: GivenTeacher) -> list[Fault]:
    """Return the faults between the parameters and a teacher that is given."""
    if not isinstance(p, Mixkd):
        return []
    faults = []
    if teacher.mode == "accept" and p.teacher_rows == "same":
        rule = "the teacher is fine-tuned already, on whatever rows"
        faults.append(fault("teacher_rows", "same", rule, "Use all, or teacher_recipe.mode=finetune."))
    if p.student.model is not None:
        return faults
    if teacher.mode == "accept" and p.student.begin == "pretrained":
        faults += _no_pretrained("the teacher is fine-tuned already")
    return faults + _fewer_layers(p.student.layers, teacher.layers)


def _minidisc(p: Minidisc, wrong: set[str]) -> list[Fault]:
    if wrong & {"student", "student.scale", "sandwich", "sandwich.grid"}:
        return []
    scale, grid, asked = p.student.scale, p.sandwich.grid, p.tradeoff.assistant
    candidates = [candidate for candidate in grid if candidate > scale]
    if not candidates:
        remedy = "Add a scale between student.scale and 1, or lower student.scale."
        return [fault("sandwich.grid", list(grid), f"no scale above the target {scale}", remedy)]
    if asked is None or asked in candidates or wrong & {"tradeoff", "tradeoff.assistant"}:
        return []
    rule = f"the candidates above the target {scale} are {', '.join(f'{one:g}' for one in candidates)}"
    return [fault("tradeoff.assistant", asked, rule, "Give one of them, or add it to sandwich.grid.")]


def _mixkd(p: Mixkd, wrong: set[str]) -> list[Fault]:
    faults = [] if wrong & {"arms", "unlabelled"} else _arms(p)
    if wrong & {"student", "student.layers", "student.scale", "student.begin", "student.model"}:
        return faults
    begins = _begins(p)
    if begins or p.teacher != "scratch" or wrong & {"teacher_recipe", "teacher_recipe.layers"}:
        return faults + begins
    return faults + _fewer_layers(p.student.layers, p.teacher_recipe.layers)


def _arms(p: Mixkd) -> list[Fault]:
    """Return a fault for each arm that was named and lacks its rows; where none was named, those are left out."""
    if p.arms == ARMS or p.unlabelled is not None:
        return []
    rule, remedy = "learns from texts without labels", "Give unlabelled=<file>, or leave the arm out."
    return [fault("arms", arm, rule, remedy) for arm in p.arms if arm in UNLABELLED]


def _begins(p: Mixkd) -> list[Fault]:
    """Return the fault of a student that would have to begin in two ways, or in one that there is not."""
    asked, scratch = p.student, p.teacher == "scratch"
    twice, one = "and the student can begin in one way only", "Leave one of the two out."
    for name, value in (("layers", asked.layers), ("model", asked.model)):
        if value is not None and asked.scale is not None:
            return [fault(f"student.{name}", value, f"student.scale = {asked.scale} is given, too, {twice}", one)]
    if asked.model is not None and scratch:
        rule = "a teacher from scratch has a tokenizer of its own, and the two have to read alike"
        return [fault("student.model", asked.model, rule, "Give a teacher, too, or leave it out.")]
    if asked.model is not None and asked.begin == "teacher":
        return [fault("student.begin", "teacher", f"student.model is given, too, {twice}", one)]
    if asked.begin == "pretrained" and asked.scale is not None:
        return _no_pretrained(f"student.scale = {asked.scale} slims the fine-tuned teacher")
    if asked.begin == "pretrained" and scratch:
        return _no_pretrained("a teacher from scratch was never anything else")
    return []


def _no_pretrained(rule: str) -> list[Fault]:
    return [fault("student.begin", "pretrained", rule, "Use auto or teacher.")]


def _fewer_layers(layers: int | None, whole: int) -> list[Fault]:
    if layers is None or layers <= whole:
        return []
    return [fault("student.layers", layers, f"the teacher has {whole} layers", f"Give {whole} or fewer.")]


def _mixtures(p: Minidisc | Mixkd, wrong: set[str]) -> list[Fault]:
    if not p.mixup.samples or wrong & {"mixup", "mixup.samples", "student", "arms"}:
        return []
    if isinstance(p, Mixkd) and set(p.arms) <= set(ALONE):
        return []
    rule = f"mixup.samples = {p.mixup.samples} mixes examples of one batch, and one alone has no partner"
    remedy = "Give 2 or more." if isinstance(p, Mixkd) else "Give 2 or more, or mixup.samples=0."
    return [
        fault(f"student.{name}", 1, rule, remedy)
        for name in ("batch_size", "micro_batch")
        if getattr(p.student, name) == 1 and f"student.{name}" not in wrong
    ]


def _heads(p: Minidisc | Mixkd, wrong: set[str]) -> list[Fault]:
    sizes = p.teacher_recipe
    if wrong & {"teacher_recipe", "teacher_recipe.hidden", "teacher_recipe.heads"} or not sizes.hidden % sizes.heads:
        return []
    rule = f"does not divide teacher_recipe.hidden = {sizes.hidden}"
    return [fault("teacher_recipe.heads", sizes.heads, rule, "Give a divisor.")]
