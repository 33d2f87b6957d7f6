"""Reads text for language models, embedded or given, into documents of train, valid and test, every fault at once.

A document is a row of a table, or a stretch of a plain file. In a plain file with blank lines, documents are what
stands between these: a blank line is the only end that such a file can tell, and what is cut too short has a shorter
context but none that is not its own. In one without any, each line is a document, as files have them that were written
from a table: joined, they would be one document that nothing could be held out of.
"""

import hashlib
from collections import Counter
from dataclasses import replace
from itertools import groupby, zip_longest
from pathlib import Path

from capgap_core import hmm, loading, sources, unreadable
from capgap_core.columns import Table
from capgap_core.documents import Document, LmText, Parts, digest_of, held_out, shuffled
from capgap_core.errors import InputFaults, Problems, fault
from capgap_core.loading import Cache
from capgap_core.pysource import read_pysource
from capgap_core.sources import Splits

EMBEDDED = ("pysource", hmm.NAME)
HELD_OUT = ("valid", "test")
_PART_OF = {"train": "train", "dev": "valid", "test": "test"}


def read_text(
    dataset: str, *, column: str | None = None, splits: Splits = None, seed: int, cache: Cache,
    synthetic_bytes: int | None = None,
) -> LmText:  # fmt: skip
    """Return the text that ``dataset`` names; a part that it does not have is cut from train, by document.

    A row's ``source`` and ``path`` are those of the columns of these names, else its file and number. Documents that
    hold nothing but space are left out, and of train those whose text, but for spacing, stands in valid or test:
    ``repeated`` counts these.

    Parameters
    ----------
    dataset
        ``pysource``, ``hmm``, an existing file or folder, or ``hub[/config][@revision]``.
    column
        The column of the text; null: ``text``.
    splits
        The file, or the hub's split, of ``train``, ``dev`` and ``test``, where names do not tell; ``dev`` is the part
        ``valid``.
    seed
        Draws what is cut, and the order in which the documents of each part stand.
    cache
        Where ``datasets`` may keep what it has read.
    synthetic_bytes
        Of the training part of ``hmm``; null: ``hmm.BYTES``. Of any other text there is what there is.

    Raises
    ------
    InputFaults
        With everything that is wrong with the text and with what was asked of it.
    """
    problems = Problems()
    if dataset in EMBEDDED:
        return _embedded(dataset, column, splits, seed, synthetic_bytes, problems)
    name, tables = _tables(dataset, splits, cache, problems)
    parts, empty = _parts(tables, column, problems)
    if "train" not in tables and not problems.faults:
        remedy = 'Name a file train*, or give data.splits={"train": ...}.'
        there = sources.listed(dataset) or ", ".join(sorted(tables)) or "nothing"
        problems.add(fault("dataset", dataset, f"has no train part; it holds {there}", remedy))
    if problems.faults:
        raise problems.error()
    digest = digest_of(parts)
    whole, notes = _with_held_out(parts, dataset, seed)
    apart, repeated = _apart(whole, dataset)
    return LmText(name, shuffled(apart, seed), digest, empty, repeated, notes)


def _embedded(
    dataset: str, column: str | None, splits: Splits, seed: int, synthetic_bytes: int | None, problems: Problems
) -> LmText:
    """Return pysource or hmm, which have their own parts and texts."""
    for field, value in (("data.text_columns", column), ("data.splits", splits)):
        if value is not None:
            remedy = "Leave it out, or give text of your own: dataset=<folder, file or hub name>."
            problems.add(fault(field, value, f"does not fit {dataset}, which has its own parts and texts", remedy))
    if dataset == hmm.NAME and Path(dataset).exists():
        rule = "is the name of an embedded text, and is here, too"
        problems.add(fault("dataset", dataset, rule, f"Write ./{dataset} for what is here, or run elsewhere."))
    if problems.faults:
        raise problems.error()
    made = read_pysource() if dataset != hmm.NAME else hmm.read_hmm(synthetic_bytes or hmm.BYTES)
    return replace(made, parts=shuffled(made.parts, seed))


def _tables(dataset: str, splits: Splits, cache: Cache, problems: Problems) -> tuple[str, dict[str, list[Table]]]:
    """Return the text's name, and what was read of train, dev and test, file by file."""
    for part in sorted({*(splits or {})} - {*_PART_OF}):
        problems.add(fault("data.splits", part, "is no part of a text", f"Name {', '.join(_PART_OF)}."))
    known = {part: name for part, name in (splits or {}).items() if part in _PART_OF}
    place = sources.place_of(dataset)
    with loading.quiet():
        if not isinstance(place, Path):
            names, found = sources.read_hub(*place, known, cache, problems)
            return names[-1], {part: [table] for part, table in found.items()}
        tables: dict[str, list[Table]] = {}
        for part, files in sources.parts_of(place, known, "test", problems, readable=_is_readable).items():
            read = [_read(part, path, cache, problems) for path in files]
            tables[part] = [table for one in read for table in one.values()]
    loading.unlike({part: "".join(table.content for table in held) for part, held in tables.items()}, problems)
    return place.name, tables


def _is_readable(path: Path) -> bool:
    return loading.is_lines(path) or loading.format_of(path) is not None


def _read(part: str, path: Path, cache: Cache, problems: Problems) -> dict[str, Table]:
    """Return part → the table of a file; nothing where it cannot be read."""
    if not _is_readable(path):
        rule = f"is none of .txt, {', '.join(loading.FORMATS)}"
        remedy = f"Give one of these, plain or compressed ({', '.join(loading.COMPRESSIONS)}; Parquet plain)."
        problems.add(fault(f"dataset ({part})", str(path), rule, remedy))
        return {}
    return loading.read_local({part: [path]}, cache, problems, lines=loading.is_lines(path))


def _parts(tables: dict[str, list[Table]], column: str | None, problems: Problems) -> tuple[Parts, int]:
    """Return the documents of each part as they stand in its files, and how many were left out as empty."""
    parts: Parts = {}
    empty = 0
    for part, held in tables.items():
        before = len(problems.faults)
        read = [document for table in held for document in _documents(table, column or "text", problems)]
        parts[_PART_OF[part]] = filled = [document for document in read if document.text.strip()]
        empty += len(read) - len(filled)
        if held and not filled and len(problems.faults) == before:
            where = ", ".join(table.where for table in held)
            problems.add(fault(f"dataset ({part})", where, "holds no text", "Give it text, or leave the part out."))
    return parts, empty


def _documents(table: Table, column: str, problems: Problems) -> list[Document]:
    """Return the documents of a file; what is wrong with it goes to ``problems``."""
    if not table.rows:
        return []
    if column not in table.columns:
        remedy = f"Name the column of the text: data.text_columns; it has {sorted(table.columns)}."
        problems.add(fault(f"dataset ({table.part})", column, f"{table.where} has no such column", remedy))
        return []
    if table.columns[column][0] != "text":
        where = f"column {column!r} of {table.where}"
        problems.add(fault(f"dataset ({table.part})", where, "holds no text", "Name another: data.text_columns."))
        return []
    try:
        texts = table.values(column)
        told = [_told(table, name) if name != column else [] for name in ("source", "path")]
    except UnicodeError as error:
        problems.add(unreadable.because(table.part, table.where, error), cause=error)
        return []
    if table.files and loading.is_lines(Path(table.files[0])):
        texts = _stretches(texts)
    return [
        Document(text or "", source or table.where, path or f"{table.where}:{number}")
        for number, (text, source, path) in enumerate(zip_longest(texts, *told), start=1)
    ]


def _told(table: Table, name: str) -> list[str | None]:
    """Return a column of words, or nothing where there is none."""
    return table.values(name) if table.columns.get(name, ("other", ()))[0] == "text" else []


def _stretches(lines: list[str]) -> list[str]:
    """Return what stands between blank lines, or every line where nothing is parted by any."""
    lines = [lines[0].removeprefix("\ufeff"), *lines[1:]]
    found = ["\n".join(held) for blank, held in groupby(lines, key=lambda line: not line.strip()) if not blank]
    return found if len(found) > 1 else "\n".join(found).split("\n")


def _with_held_out(parts: Parts, dataset: str, seed: int) -> tuple[Parts, tuple[str, ...]]:
    """Return all three parts: what is absent is cut from train, the documents of one text on one side."""
    absent = [part for part in HELD_OUT if part not in parts]
    if not absent:
        return parts, ()
    keys = [_key(document) for document in parts["train"]]
    sizes: Counter[str] = Counter()
    for key, document in zip(keys, parts["train"], strict=True):
        sizes[key] += len(document.text.encode())
    if len(sizes) <= len(absent):
        rule = f"has {len(sizes)} documents, and {' and '.join(absent)} are to be cut from them"
        remedy = "Give more documents, or a folder with files named train*, valid* and test*."
        raise InputFaults([fault("dataset (train)", dataset, rule, remedy)])
    drawn = held_out(sizes, seed=str(seed), parts=absent)
    whole: Parts = {**{part: [] for part in HELD_OUT}, **parts, "train": []}
    for key, document in zip(keys, parts["train"], strict=True):
        whole[drawn.get(key, "train")].append(document)
    return whole, (f"there is no {' and no '.join(absent)} part: each is cut from train, by document and seed",)


def _apart(parts: Parts, dataset: str) -> tuple[Parts, int]:
    """Return the parts without the documents of train that stand in another, and how many these were."""
    seen = {_key(document) for part in HELD_OUT for document in parts[part]}
    train = [document for document in parts["train"] if _key(document) not in seen]
    if not train:
        rule = "has no document that is not in valid or test"
        raise InputFaults([fault("dataset (train)", dataset, rule, "Give other documents to train on.")])
    return {**parts, "train": train}, len(parts["train"]) - len(train)


def _key(document: Document) -> str:
    """Return what documents with the same words, however they are spaced, have in common."""
    return hashlib.sha256(" ".join(document.text.split()).encode()).hexdigest()
