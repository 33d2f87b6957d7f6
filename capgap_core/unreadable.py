"""What a user is told where a reader of ``datasets`` fails."""

import re
from collections.abc import Iterator

from capgap_core.errors import Fault, fault

_NOTHING = ("corresponds to no data", "at least one example when writing data", "BatchSize must be greater than 0")
"""What is said of no rows by the hub's reader, of a text without a line, and of Parquet without a row."""


def _chain(error: BaseException) -> Iterator[BaseException]:
    while True:
        yield error
        following = error.__cause__ or error.__context__
        if following is None:
            return
        error = following


def is_empty(error: Exception) -> bool:
    """Return whether the reader found no rows at all."""
    names = {type(e).__name__ for e in _chain(error)}
    said = " | ".join(str(e) for e in _chain(error))
    return bool(names & {"EmptyDataError", "StopIteration"}) or any(words in said for words in _NOTHING)


def because(part: str, where: str, error: Exception) -> Fault:
    """Return the fault that stands for an error of a reader."""
    said = [" ".join(str(e).split()) for e in _chain(error)]
    text = " | ".join(said)
    if any(isinstance(e, UnicodeError) for e in _chain(error)) or "UTF8" in text:
        remedy = "Save it as UTF-8, for example: iconv -f latin1 -t utf-8 OLD > NEW."
        return fault(f"dataset ({part})", where, "is not UTF-8 text", remedy)
    twice = re.search(r"Column\(/(.+?)\) was specified twice|FieldRef\.Name\((.+?)\)|Duplicated? .*?'(.+?)'", text)
    if twice:
        return duplicate(part, where, next(name for name in twice.groups() if name))
    mixed = re.search(r"Column\(/(.+?)\) changed from (\w+) to (\w+)", text)
    if mixed:
        rule = f"column {mixed[1]!r} holds values of several types ({mixed[2]} and {mixed[3]})"
        return fault(f"dataset ({part})", where, rule, "Give every row of a column the same type.")
    # The middle of the chain is what the format's own parser said; the outermost is only about generating.
    reason = next((s for s in said if s and "generating the dataset" not in s), type(error).__name__)
    return fault(
        f"dataset ({part})",
        where,
        f"cannot be read: {reason[:200]}",
        "Check that the file is whole and what its name says.",
    )


def duplicate(part: str, where: str, name: str) -> Fault:
    """Return the fault of a column name that stands twice."""
    return fault(
        f"dataset ({part})", where, f"has more than one column {name!r}", "Give every column a name of its own."
    )
