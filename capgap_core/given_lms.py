"""Looks at the teachers of a grid that are given, and at the slices that students begin as, before any work.

Nothing is loaded: a model is made without weights, which says how large it and its slices are.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from capgap_core.errors import Fault, InputFaults, fault
from capgap_core.given_files import WEIGHTS, content_of
from capgap_core.given_forms import FORMS
from capgap_core.given_teacher import config_of, folder_of, shapes_of
from capgap_core.ladder import FURTHEST, Ladder, cells, rate, sizes_for
from capgap_core.lm_beside import Read, misfits, pieces_of
from capgap_core.markdown import short
from capgap_core.recipes_law import Law
from capgap_core.shapes import SLIMMED

FIELD = "ladder.given"
SCRATCH = "llama"
"""The family of the teachers that are trained here."""
RENAMED = {"embed_out.weight": "lm_head.weight"}
"""Names in checkpoints of Pythia, and what transformers makes of them."""


@dataclass(frozen=True, kw_only=True)
class GivenLm:
    """A causal language model that is a teacher."""

    name: str
    """As it was given."""
    folder: Path
    family: str
    """The adapter in ``capgap_core/families``."""
    parameters: int
    """Outside the embeddings."""
    content: str
    """Digest of the files that matter."""


def look(p: Law, wrong: set[str], *, root: str | None) -> tuple[tuple[GivenLm, ...], list[Fault]]:
    """Return the teachers that are given and every fault of them; what is ``wrong`` already is not looked at.

    Parameters
    ----------
    root
        The store, in which what comes from the hub is kept; null: where the hub's library keeps it.
    """
    if wrong & {"ladder", "ladder.teachers", FIELD}:
        return (), []
    read, faults = _read(p, wrong) if p.ladder.given else (Read(pieces=None, ids=None, length=None), [])
    found: list[tuple[GivenLm, Any]] = []
    for name in p.ladder.given:
        try:
            found.append(_inspect(name, read, root, slimmed=p.ladder.begin == "slimmed"))
        except InputFaults as error:
            faults += [one if one.field in read.fields else replace(one, field=FIELD) for one in error.faults]
    given = tuple(one for one, _ in found)
    faults += _alike(given, p.ladder)
    if p.ladder.begin == "slimmed" and not wrong & {"ladder.students", "ladder.begin", "training.learning_rate"}:
        faults += _unsliced(p, found, every=len(found) == len(p.ladder.given))
    return given, faults


def _read(p: Law, wrong: set[str]) -> tuple[Read, list[Fault]]:
    """Return how the text is read, and why no teacher that is given could read it."""
    how: dict[str, Any] = {
        "length": None if wrong & {"training", "training.length"} else p.training.length,
        "remedy": "Give data.tokenizer=<folder> with the model's own tokenizer.", "fields": (FIELD, "training.length"),
    }  # fmt: skip
    unknown, asked = Read(pieces=None, ids=None, **how), p.data.tokenizer
    if wrong & {"data", "data.tokenizer"}:
        return unknown, []
    if asked == "trained":
        rule = "a tokenizer is trained on the text, and a teacher that is given has its own"
        return unknown, [fault("data.tokenizer", "trained", rule, how["remedy"])]
    from capgap_core import lm_tokens  # noqa: PLC0415 - seconds to import, and only a given teacher needs it

    folder = Path(asked).expanduser()
    try:
        tokenizer = lm_tokens.byte_tokenizer() if asked == "bytes" else lm_tokens.given(str(folder))
    except InputFaults:  # it is told by whoever looks at the text
        return unknown, []
    own = folder / "tokenizer.json"
    whole = pieces_of(own) if asked != "bytes" and own.is_file() else tokenizer.get_vocab()
    return Read(pieces=whole, ids=lm_tokens.vocabulary_of(tokenizer), **how), []


def _inspect(name: str, read: Read, root: str | None, *, slimmed: bool) -> tuple[GivenLm, Any]:
    """Return what a run has to know of a model, and the model without weights; raises every fault of it."""
    folder = folder_of(name, root, remedy="Give a folder, or a name on the hub.")
    config = config_of(name, folder)
    kind = str(config.get("model_type"))
    faults = misfits(folder, config, read)
    if slimmed and kind.startswith(SLIMMED):
        rule = "is slimmed already, and students are to begin as slices of it"
        faults.append(fault(FIELD, name, rule, "Give the whole model, or ladder.begin=scratch."))
    weights = next((folder / file for file in WEIGHTS if (folder / file).is_file()), None)
    if weights is None:
        faults.append(_no_weights(name, folder))
    form = FORMS.get(kind.removeprefix(SLIMMED))
    if weights is None or form is None or not form.causal:
        raise InputFaults(faults)
    from capgap_core import lm_model, models  # noqa: PLC0415 - need torch, and only a given teacher needs them

    try:
        model = models.family(form.family).bare_language(folder)
    except Exception as error:  # whatever a config that is none raises is its fault
        what, remedy = (
            f"its config.json makes no model ({type(error).__name__})",
            "Give one that from_pretrained loads.",
        )
        raise InputFaults(faults or [fault(FIELD, name, what, remedy)]) from error
    there = {RENAMED.get(n, n): shape for n, shape in shapes_of(name, weights, form.prefix).items()}
    asked = {n.removeprefix(form.prefix): tuple(p.shape) for n, p in model.named_parameters()}
    if lacking := sorted(n for n, shape in asked.items() if there.get(n) != shape):
        shown = f"{', '.join(lacking[:3])}{' ...' if len(lacking) > 3 else ''}"
        rule = f"{len(lacking)} weights are missing or do not fit its config: {shown}"
        faults.append(fault(FIELD, name, rule, "Give a folder that AutoModelForCausalLM loads whole."))
    if faults:
        raise InputFaults(faults)
    size = lm_model.parameters(model)[1]
    given = GivenLm(name=name, folder=folder, family=form.family, parameters=size, content=content_of(folder))
    return given, model


def _no_weights(name: str, folder: Path) -> Fault:
    if any(folder.glob("*.index.json")):
        rule, remedy = (
            "its weights are in several files",
            'Save it in one: save_pretrained(folder, max_shard_size="1TB").',
        )
    else:
        rule, remedy = "the folder holds no weights", f"It needs one of {', '.join(WEIGHTS)}."
    return fault(FIELD, name, rule, remedy)


def _alike(given: Sequence[GivenLm], ladder: Ladder) -> list[Fault]:
    """Return a fault for each teacher that a grid could not tell from another: it knows them by their size."""
    faults, contents = [], dict[str, str]()
    sizes = {
        short(sizes_for(size).parameters()): f"one that is trained here has ({size:g})" for size in ladder.teachers
    }
    for one in given:
        size, remedy = short(one.parameters), "Leave one of the two out."
        if one.content in contents:
            faults.append(fault(FIELD, one.name, f"is the same model as {contents[one.content]}", remedy))
        elif size in sizes:
            rule = f"has {size} parameters outside the embeddings, as {sizes[size]}: a grid knows teachers by them"
            faults.append(fault(FIELD, one.name, rule, remedy))
        contents.setdefault(one.content, one.name)
        sizes.setdefault(size, f"{one.name} has")
    return faults


def _unsliced(p: Law, given: Sequence[tuple[GivenLm, Any]], *, every: bool) -> list[Fault]:
    """Return why students cannot begin as slices of their teachers.

    Parameters
    ----------
    every
        Whether all teachers are known.
    """
    from capgap_core import lm_model, lm_slices, models  # noqa: PLC0415 - need torch, and only slices need them

    teachers = {one.parameters: (one.family, model) for one, model in given}
    teachers |= {(shape := sizes_for(size)).parameters(): (SCRATCH, lm_model.bare(shape)) for size in p.ladder.teachers}
    wanted: dict[int, set[int]] = {}
    for cell in cells(p.ladder, [one.parameters for one, _ in given]):
        if cell.teacher is not None:
            wanted.setdefault(cell.teacher, set()).add(cell.student.parameters())
    if every and not wanted:
        rule = "no student is smaller than a teacher, of which it could be a slice"
        return [fault("ladder.begin", "slimmed", rule, "Give smaller students, or larger teachers.")]
    faults = []
    for teacher, sizes in sorted(wanted.items()):
        family, model = teachers[teacher]
        found = lm_slices.foreseen(models.family(family), model)
        faults += _of_one(p.training.learning_rate, teacher, sorted(sizes), found)
    return faults


def _of_one(asked: float, teacher: int, sizes: Sequence[int], found: Mapping[float, Any]) -> list[Fault]:
    """Return a fault for each student to which no slice of a teacher comes near, or that would learn too fast."""
    from capgap_core.lm_slices import nearest  # noqa: PLC0415 - needs torch

    held, faults = {scale: one.parameters for scale, one in found.items()}, []
    for size in sizes:
        slice_ = found[nearest(held, size, whole=teacher)]
        if abs(math.log(slice_.parameters / size)) >= math.log(FURTHEST):
            rule = f"no slice of the teacher of {short(teacher)} comes near: the nearest has {short(slice_.parameters)}"
            remedy = f"Give students of {short(min(held.values()))} or more, or ladder.begin=scratch."
            faults.append(fault("ladder.students", short(size), rule, remedy))
        elif (learned := rate(asked, slice_.hidden)) > 1.0:
            rule = f"a slice of width {slice_.hidden} would learn at {learned:g}, and more than 1 cannot be asked for"
            faults.append(fault("training.learning_rate", asked, rule, f"Give {asked / learned:.3g} or less."))
    return faults
