"""The faults that parameters have only together, where each is right alone."""

from typing import Any

from capgap_core.errors import Fault, fault
from capgap_core.given_teacher import GivenTeacher
from capgap_core.recipes import Minidisc
from capgap_core.recipes_mixkd import Mixkd


def across(p: Any, wrong: set[str]) -> list[Fault]:
    """Return the faults between the parameters of a flow that are not wrong already."""
    own = {Minidisc: _minidisc, Mixkd: _mixkd}[type(p)]
    return [*own(p, wrong), *_mixtures(p, wrong), *_heads(p, wrong)]


def beside(p: Any, teacher: GivenTeacher) -> list[Fault]:
    """Return the faults between the parameters and a teacher that is given."""
    if not isinstance(p, Mixkd):
        return []
    accepted = teacher.mode == "accept" and p.student.begin == "pretrained"
    faults = _fewer_layers(p.student.layers, teacher.layers)
    return [*faults, *_no_pretrained("the teacher is fine-tuned already")] if accepted else faults


def _minidisc(p: Minidisc, wrong: set[str]) -> list[Fault]:
    if wrong & {"student", "student.scale", "sandwich", "sandwich.grid"}:
        return []
    scale, grid = p.student.scale, p.sandwich.grid
    if any(candidate > scale for candidate in grid):
        return []
    remedy = "Add a scale between student.scale and 1, or lower student.scale."
    return [fault("sandwich.grid", list(grid), f"no scale above the target {scale}", remedy)]


def _mixkd(p: Mixkd, wrong: set[str]) -> list[Fault]:
    if wrong & {"student", "student.layers", "student.scale", "student.begin"}:
        return []
    if p.student.layers is not None and p.student.scale is not None:
        rule = f"student.scale = {p.student.scale} is given, too, and the student can begin in one way only"
        return [fault("student.layers", p.student.layers, rule, "Leave one of the two out.")]
    if p.student.begin == "pretrained" and p.student.scale is not None:
        return _no_pretrained(f"student.scale = {p.student.scale} slims the fine-tuned teacher")
    if p.student.begin == "pretrained" and p.teacher == "scratch":
        return _no_pretrained("a teacher from scratch was never anything else")
    if p.teacher != "scratch" or "teacher_recipe" in wrong or "teacher_recipe.layers" in wrong:
        return []
    return _fewer_layers(p.student.layers, p.teacher_recipe.layers)


def _no_pretrained(rule: str) -> list[Fault]:
    return [fault("student.begin", "pretrained", rule, "Use auto or teacher.")]


def _fewer_layers(layers: int | None, whole: int) -> list[Fault]:
    if layers is None or layers <= whole:
        return []
    return [fault("student.layers", layers, f"the teacher has {whole} layers", f"Give {whole} or fewer.")]


def _mixtures(p: Minidisc | Mixkd, wrong: set[str]) -> list[Fault]:
    if not p.mixup.samples or wrong & {"mixup", "mixup.samples", "student"}:
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
