"""Reads a file of texts without labels, which a teacher is to label: what augmentation gives, or what lies about."""

import gzip
import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from capgap_core import columns, loading, unreadable
from capgap_core.columns import Table
from capgap_core.errors import InputFaults, Problems, fault
from capgap_core.loading import Cache

FIELD = "unlabelled"
_FORMS = "Give json lines, csv, tsv or Parquet with the text columns of the data set, or .txt with a text a line."


@dataclass(frozen=True)
class Unlabelled:
    """A file of texts that has been read and has no faults."""

    path: Path
    texts: tuple[list[str], ...]
    """One list of texts, or the two parallel lists of a pair."""

    @property
    def content(self) -> str:
        """Return the digest of the texts, in whichever form they were."""
        return hashlib.sha256(json.dumps(self.texts, ensure_ascii=False).encode("utf8", "surrogatepass")).hexdigest()


def read_unlabelled(given: str, text_columns: tuple[str, ...], *, cache: Cache) -> Unlabelled:
    """Return the texts of a file in any form that a data set has, or of a plain one with a text in each line.

    Parameters
    ----------
    given
        The file.
    text_columns
        The data set's; a plain file has room for one.

    Raises
    ------
    InputFaults
        With everything that is wrong with it.
    """
    problems = Problems()
    path = Path(os.path.expanduser(given)).absolute()
    why = _unfit(path, text_columns)
    if why is not None:
        raise InputFaults([fault(FIELD, given, why, _FORMS)])
    lines = loading.is_lines(path)
    with loading.quiet():
        table = loading.read_local({FIELD: [path]}, cache, problems, lines=lines).get(FIELD)
    texts = _texts(table, text_columns, lines, problems) if table is not None else ()
    if not problems.faults and not (texts and texts[0]):
        problems.add(fault(FIELD, given, "holds no text", "Give it rows, or leave it out."))
    if problems.faults:
        error = problems.error()
        raise InputFaults([replace(found, field=FIELD, remedy=_FORMS) for found in error.faults]) from error.__cause__
    return Unlabelled(path, texts)


def _unfit(path: Path, text_columns: tuple[str, ...]) -> str | None:
    """Return why a file is not even opened by a reader."""
    if os.path.isdir(path):
        return "is a folder"
    if not os.path.isfile(path):
        return "there is no such file"
    if not os.access(path, os.R_OK):
        return "may not be read by this user"
    if not _has_content(path):
        return "holds no text"
    if loading.is_lines(path) and len(text_columns) > 1:
        return f"holds a text a line, where the data set has pairs ({', '.join(text_columns)})"
    return None


def _has_content(path: Path) -> bool:
    if path.name.lower().endswith(".gz"):
        try:
            with gzip.open(path) as stream:
                return bool(stream.read(1))
        except (OSError, EOFError):
            return True  # the reader says what is wrong with it
    return path.stat().st_size > 0


def _texts(table: Table, text_columns: tuple[str, ...], lines: bool, problems: Problems) -> tuple[list[str], ...]:
    try:
        if lines:
            held = [line.removeprefix("\ufeff") for line in table.values("text")]
            return ([line for line in held if line.strip()],)
        found = columns.missing_columns(table, text_columns) if table.rows else []
        problems.add(*[replace(f, rule=f"has no column {f.value}", value=table.where) for f in found])
        if found or not table.rows:
            return ()
        texts, faults = columns.texts_of(table, text_columns, named=True)
        problems.add(*faults)
    except UnicodeError as error:
        problems.add(unreadable.because(FIELD, table.where, error), cause=error)
        return ()
    return texts
