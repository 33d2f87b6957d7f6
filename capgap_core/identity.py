"""Give what was asked for a name that is the same in every process: canonical JSON and its hash."""

import hashlib
import json
import math
from enum import Enum
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

PLACES = frozenset({"source"})
"""Fields of a recipe that say where something lies, beside a digest of what it holds; only the digest is hashed."""


def canonical(value: object) -> object:
    """Return ``value`` in plain JSON terms that keep what it means.

    Floats become their exact hexadecimal form, so that 1 and 1.0 differ and no digit is lost; tuples are
    lists; a pydantic model is its fields that are not at their default, without its class path, so that a
    new field at its default does not move old identities.

    Raises
    ------
    TypeError
        For a value whose meaning cannot be written down: a set, a callable, a non-finite float.
    """
    match value:
        case Enum():
            return canonical(value.value)
        case None | bool() | int() | str():
            return value
        case float():
            if not math.isfinite(value):
                raise TypeError(f"cannot hash {value!r}: only finite numbers have an identity")
            return {"float": value.hex()}
        case list() | tuple():
            return [canonical(v) for v in value]
        case dict():
            if not all(isinstance(k, str) for k in value):
                raise TypeError(f"cannot hash a dictionary with keys that are not text: {sorted(map(repr, value))}")
            return {k: canonical(value[k]) for k in sorted(value)}
        case BaseModel():
            return {
                name: canonical(getattr(value, name))
                for name, field in sorted(type(value).model_fields.items())
                if name not in PLACES and (field.is_required() or not _at_default(value, name, field))
            }
    raise TypeError(f"cannot hash {type(value).__qualname__}: use a recipe, an Enum or a plain value")


def _at_default(value: BaseModel, name: str, field: FieldInfo) -> bool:
    held, default = getattr(value, name), field.get_default(call_default_factory=True)
    return type(held) is type(default) and held == default


def identity_of(stage: str, recipe: BaseModel, inputs: dict[str, str]) -> str:
    """Return the 64 hex digits that name a stage's result: its recipe and what its inputs hold.

    Content that comes from outside the store (a data set, a teacher's folder) enters by a digest in the recipe.
    """
    payload = {"stage": stage, "recipe": canonical(recipe), "inputs": canonical(inputs)}
    return sha256_text(json.dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False))


def sha256_text(text: str) -> str:
    """Return the sha256 of a text as hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of_files(checksums: dict[str, str]) -> str:
    """Return one digest over relative path → sha256, whatever the order they come in."""
    return sha256_text(json.dumps(checksums, sort_keys=True, separators=(",", ":")))
