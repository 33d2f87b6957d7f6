"""Parameters against the recipe that they are of: every fault of theirs, each on its own, and what is right."""

import contextlib
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from capgap_core.errors import Fault, fault


def validated(recipe: type[BaseModel], parameters: Mapping[str, Any]) -> tuple[Any, set[str], list[Fault]]:
    """Return the parameters with defaults for those that are wrong, which those are, and their faults."""
    good: dict[str, Any] = {}
    wrong: set[str] = set()
    faults = [
        _unknown(recipe, name, value, ()) for name, value in parameters.items() if name not in recipe.model_fields
    ]
    for name, field in recipe.model_fields.items():
        value = parameters.get(name, field.default)
        value = value.model_dump() if isinstance(value, BaseModel) else value
        try:
            # Each field alone, so that one that is wrong does not hide what the others would say.
            recipe.model_validate({name: value})
            good[name] = value
        except ValidationError as error:
            found = error.errors(include_url=False)
            paths = [_path(details) for details in found]
            # A list of which an item is wrong is also too short, to pydantic, by that item.
            own = [not any(p[: len(q)] == q and p != q for p in paths) for q in paths]
            faults += [_from_pydantic(recipe, details) for details, keep in zip(found, own, strict=True) if keep]
            good[name], bad = _rest(recipe, name, value, paths)
            wrong |= bad
    return recipe.model_validate(good), wrong, faults


def _rest(recipe: type[BaseModel], name: str, value: object, paths: Sequence[tuple[Any, ...]]) -> tuple[Any, set[str]]:
    """Return what is left of a part without its wrong fields, and their names; the default where nothing is."""
    inner = {str(path[1]) for path in paths if len(path) > 1}
    if isinstance(value, Mapping) and all(len(path) > 1 for path in paths):
        kept = {key: held for key, held in value.items() if key not in inner}
        with contextlib.suppress(ValidationError):
            recipe.model_validate({name: kept})
            return kept, {f"{name}.{field}" for field in inner}
    return recipe.model_fields[name].default, {name}


def _path(details: ErrorDetails) -> tuple[Any, ...]:
    return tuple(part for part in details["loc"] if not (isinstance(part, str) and part.startswith("function-")))


def _from_pydantic(recipe: type[BaseModel], details: ErrorDetails) -> Fault:
    path = _path(details)
    field = ".".join(map(str, path))
    if details["type"] == "extra_forbidden":
        return _unknown(recipe, str(path[-1]), details["input"], path[:-1])
    return fault(field, details["input"], details["msg"].removeprefix("Value error, "), _remedy(recipe, path))


def _model_at(model: type[BaseModel], path: tuple[Any, ...]) -> type[BaseModel]:
    for part in path:
        inner = model.model_fields[part].annotation if part in model.model_fields else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    return model


def _remedy(model: type[BaseModel], path: tuple[Any, ...]) -> str:
    """Return what a field takes, from its own description."""
    named = None
    for part in path:
        if isinstance(part, str) and part in model.model_fields:
            named = model.model_fields[part]
            inner = named.annotation
            model = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else model
    if named is not None and named.description:
        return f"It takes: {named.description}"
    name = ".".join(str(part) for part in path if isinstance(part, str))
    return f"It has parts, to be given one by one: {', '.join(f'{name}.{inner}' for inner in model.model_fields)}."


def _unknown(recipe: type[BaseModel], name: str, value: object, path: tuple[Any, ...]) -> Fault:
    model = _model_at(recipe, path)
    places = {field: ".".join([*map(str, path), field]) for field in model.model_fields}
    for outer, field in recipe.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            places |= {f: f"{outer}.{f}" for f in inner.model_fields if f not in places}
    near = difflib.get_close_matches(name, places, n=1, cutoff=0.5)
    remedy = f"Did you mean {places[near[0]]}?" if near else f"Known here: {', '.join(model.model_fields)}."
    return fault(".".join([*map(str, path), name]), value, "no such parameter", remedy)
