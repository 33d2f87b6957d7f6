"""Reads a file of texts without labels, which a teacher is to label: what augmentation gives, or what lies about."""

import os
from dataclasses import dataclass
from pathlib import Path

from capgap_core import columns, loading, unreadable
from capgap_core.errors import Problems, fault
from capgap_core.loading import Cache

FIELD = "unlabelled"


@dataclass(frozen=True)
class Unlabelled:
    """A file of texts that has been read and has no faults."""

    path: Path
    texts: tuple[list[str], ...]
    """One list of texts, or the two parallel lists of a pair."""
    content: str
    """Digest of the file's bytes."""


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
    problems, path = Problems(), Path(os.path.expanduser(given)).absolute()
    if not os.path.isfile(path):
        problems.add(fault(FIELD, given, "there is no such file", "Give a file with the text columns of the data set."))
        raise problems.error()
    lines = loading.is_lines(path)
    if lines and len(text_columns) > 1:
        rule = f"holds one text a line, where the data set has pairs ({', '.join(text_columns)})"
        problems.add(fault(FIELD, given, rule, "Give json lines, csv, tsv or Parquet with these columns."))
        raise problems.error()
    empty = fault(FIELD, given, "is empty", "Give it rows, or leave it out.")
    with loading.quiet():
        whole = path.stat().st_size > 0
        table = loading.read_local({FIELD: [path]}, cache, problems, lines=lines).get(FIELD) if whole else None
    if table is None or not table.rows:
        problems.add(*([] if problems.faults else [empty]))
        raise problems.error()
    wanted = ("text",) if lines else text_columns
    problems.add(*columns.missing_columns(table, wanted))
    if problems.faults:
        raise problems.error()
    texts: tuple[list[str], ...] = ()
    try:
        if lines:
            texts = ([line for line in table.values("text") if line.strip()],)
        else:
            texts, faults = columns.texts_of(table, wanted, named=True)
            problems.add(*faults)
    except UnicodeError as error:
        problems.add(unreadable.because(FIELD, table.where, error), cause=error)
    problems.add(*([] if problems.faults or (texts and texts[0]) else [empty]))
    if problems.faults:
        raise problems.error()
    return Unlabelled(path, texts, table.content)
