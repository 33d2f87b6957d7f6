"""Turn what the command line gives into the parameters of a flow, and every fault in it."""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from capgap_core.errors import Fault, fault

_FORM = "give key=value, with dots into the parts: -p student.scale=0.05"


def gather(pairs: Sequence[str], file: str | None) -> tuple[dict[str, Any], list[Fault]]:
    """Return the parameters of a file, then of ``key=value`` pairs over it, and what could not be read of them."""
    parameters, faults = _from_file(file) if file is not None else ({}, [])
    given: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not all(key.split(".")):
            faults.append(fault("-p", pair, "is not key=value", _FORM[0].upper() + _FORM[1:] + "."))
            continue
        faults += _put(given, key.split("."), _value(text), text)
    return merged(parameters, given), faults


def listing(model: type[BaseModel], prefix: str = "") -> str:
    """Return every parameter of a recipe with its default and what it means, for the help of the command line."""
    lines = [] if prefix else ["parameters, as -p KEY=VALUE:"]
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            lines.append(listing(field.annotation, f"{prefix}{name}."))
            continue
        shown = json.dumps(to_jsonable_python(field.get_default(call_default_factory=True)))
        about = f"{prefix}{name} = {shown}\n{field.description or ''}"
        lines.append(textwrap.indent(about.rstrip(), "      ")[4:])
    return "\n".join(lines)


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return both, part by part; where both hold a value, the second's."""
    both = dict(under)
    for key, value in over.items():
        below = both.get(key)
        both[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return both


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _put(into: dict[str, Any], path: list[str], value: Any, text: str) -> list[Fault]:
    """Put a value at its path; a fault where another pair has put something else there."""
    for depth, part in enumerate(path[:-1]):
        below = into.setdefault(part, {})
        if not isinstance(below, dict):
            return [_conflict(".".join(path), text, ".".join(path[: depth + 1]))]
        into = below
    last = path[-1]
    if last not in into:
        into[last] = value
        return []
    if isinstance(into[last], dict) and isinstance(value, dict) and not into[last].keys() & value.keys():
        into[last] |= value
        return []
    return [] if into[last] == value else [_conflict(".".join(path), text, ".".join(path))]


def _conflict(key: str, text: str, other: str) -> Fault:
    return fault(key, text, f"{other} is given twice, with different values", "Leave one of the two out.")


def _from_file(name: str) -> tuple[dict[str, Any], list[Fault]]:
    try:
        held = json.loads(Path(name).read_text(encoding="utf8"))
    except OSError as error:
        return {}, [fault("--params", name, f"cannot be read ({error.strerror})", "Give a JSON file that is there.")]
    except RecursionError:
        return {}, [fault("--params", name, "is nested too deep", 'Write it like {"student": {"scale": 0.05}}.')]
    except ValueError as error:
        return {}, [fault("--params", name, f"is not JSON ({error})", 'Write it like {"student": {"scale": 0.05}}.')]
    if not isinstance(held, dict):
        rule = f"holds a {type(held).__name__}, not an object"
        return {}, [fault("--params", name, rule, 'Write it like {"student": {"scale": 0.05}}.')]
    return held, []
