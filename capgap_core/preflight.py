"""Check everything a run needs before anything starts, and name all that is wrong at once."""

import difflib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from capgap_core.corpus import Corpus, read_corpus
from capgap_core.errors import Fault, InputFaults, fault
from capgap_core.given_teacher import GivenTeacher, inspect
from capgap_core.recipes import Execution, Minidisc


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A run's parameters after every check, with what was read on the way."""

    parameters: Minidisc
    corpus: Corpus
    teacher: GivenTeacher | None
    """Null where the teacher is trained from scratch."""


def check(parameters: Mapping[str, Any]) -> Checked:
    """Return the checked parameters of ``minidisc``.

    Raises
    ------
    InputFaults
        With every fault of the parameters, the store, the data set and the teacher.
    """
    good, faults = _validated(parameters)
    faults += _across(good)
    unwritable = _store(good.get("run"))
    faults += unwritable
    corpus: Corpus | None = None
    teacher: GivenTeacher | None = None
    root = None if unwritable else _root(good.get("run"))
    if not {"dataset", "data", "task", "evaluate"} - good.keys():
        try:
            with tempfile.TemporaryDirectory() as elsewhere:
                cache, split = Path(root or elsewhere) / "cache", good["evaluate"].split
                corpus = read_corpus(good["dataset"], task=good["task"], data=good["data"], split=split, cache=cache)
        except InputFaults as error:
            faults += error.faults
    if not {"teacher", "teacher_recipe"} - good.keys() and good["teacher"] != "scratch":
        try:
            teacher = inspect(good["teacher"], good["teacher_recipe"].mode, corpus, cache=root)
        except InputFaults as error:
            faults += error.faults
    if faults or corpus is None:
        raise InputFaults(faults)
    return Checked(parameters=Minidisc(**good), corpus=corpus, teacher=teacher)


def _validated(parameters: Mapping[str, Any]) -> tuple[dict[str, Any], list[Fault]]:
    """Return the parameters that are valid one by one, and the faults of the others."""
    good: dict[str, Any] = {}
    faults = [
        _unknown(name, value, Minidisc, ()) for name, value in parameters.items() if name not in Minidisc.model_fields
    ]
    for name, field in Minidisc.model_fields.items():
        value = parameters.get(name, field.default)
        value = value.model_dump() if isinstance(value, BaseModel) else value
        try:
            # Each field alone, so that one that is wrong does not hide what the others would say.
            good[name] = getattr(Minidisc.model_validate({name: value}), name)
        except ValidationError as error:
            faults += [_from_pydantic(details) for details in error.errors(include_url=False)]
    return good, faults


def _from_pydantic(details: ErrorDetails) -> Fault:
    path = tuple(part for part in details["loc"] if not (isinstance(part, str) and part.startswith("function-")))
    field = ".".join(map(str, path))
    if details["type"] == "extra_forbidden":
        return _unknown(str(path[-1]), details["input"], _model_at(path[:-1]), path[:-1])
    return fault(field, details["input"], details["msg"].removeprefix("Value error, "), _remedy(path))


def _model_at(path: tuple[Any, ...]) -> type[BaseModel]:
    model: type[BaseModel] = Minidisc
    for part in path:
        inner = model.model_fields[part].annotation if part in model.model_fields else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    return model


def _remedy(path: tuple[Any, ...]) -> str:
    """Return what a field takes, from its own description."""
    model, named = Minidisc, None
    for part in path:
        if isinstance(part, str) and part in model.model_fields:
            named = model.model_fields[part]
            inner = named.annotation
            model = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else model
    text = named.description if named is not None and named.description else "see the form of the deployment"
    return f"It takes: {text}"


def _unknown(name: str, value: object, model: type[BaseModel], path: tuple[Any, ...]) -> Fault:
    places = {field: ".".join([*map(str, path), field]) for field in model.model_fields}
    for outer, field in Minidisc.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            places |= {f: f"{outer}.{f}" for f in inner.model_fields if f not in places}
    near = difflib.get_close_matches(name, places, n=1, cutoff=0.5)
    remedy = f"Did you mean {places[near[0]]}?" if near else f"Known here: {', '.join(model.model_fields)}."
    return fault(".".join([*map(str, path), name]), value, "no such parameter", remedy)


def _across(good: Mapping[str, Any]) -> list[Fault]:
    """Return the faults that two parameters have only together."""
    faults: list[Fault] = []
    if {"student", "sandwich"} <= good.keys():
        scale, grid = good["student"].scale, good["sandwich"].grid
        if not any(candidate > scale for candidate in grid):
            faults.append(
                fault(
                    "sandwich.grid",
                    list(grid),
                    f"no scale above the target {scale}",
                    "Add a scale between student.scale and 1, or lower student.scale.",
                )
            )
    if "teacher_recipe" in good:
        sizes = good["teacher_recipe"]
        if sizes.hidden % sizes.heads:
            faults.append(
                fault(
                    "teacher_recipe.heads",
                    sizes.heads,
                    f"does not divide teacher_recipe.hidden = {sizes.hidden}",
                    "Give a divisor.",
                )
            )
    return faults


def _root(run: Execution | None) -> str | None:
    return run.root if run is not None else None


def _store(run: Execution | None) -> list[Fault]:
    """Return a fault where the store cannot be written; leaves nothing behind."""
    if run is None:
        return []
    if run.root is None:
        return [fault("run.root", None, "the store is not named", "Give a folder.")]
    root = Path(run.root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root) as probe:
            probe.write(b"capgap")
            probe.flush()
            os.fsync(probe.fileno())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return [
            fault("run.root", str(root), f"the store cannot be written ({reason})", "Give a folder you may write to.")
        ]
    return _device(run)


def _device(run: Execution) -> list[Fault]:
    if not run.device.startswith("cuda"):
        return []
    import torch  # noqa: PLC0415 - seconds to import, and only this question needs it

    if torch.cuda.is_available():
        return []
    return [fault("run.device", run.device, "this machine has no CUDA device that torch can use", "Use auto or cpu.")]
