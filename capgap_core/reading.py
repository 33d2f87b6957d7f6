"""Reads a data set, embedded or given, into parts of texts and labels, with every fault at once."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

from capgap_core import columns, sources, unreadable
from capgap_core.columns import Resolved, Table
from capgap_core.corpus import Corpus, Part
from capgap_core.errors import Fault, Problems, fault
from capgap_core.loading import Cache
from capgap_core.pydocs import read_pydocs
from capgap_core.recipes import DataRecipe, Task
from capgap_core.sources import NAMES

FEWEST_ROWS = 16
"""Rows that the training part has at least."""


def read_corpus(dataset: str, *, task: Task, data: DataRecipe, split: str, cache: Cache) -> Corpus:
    """Return the data set that ``dataset`` names.

    Parameters
    ----------
    dataset
        ``pydocs``, an existing file or folder, or ``hub[/config][@revision]``.
    task
        ``auto``, ``classification`` or ``regression``.
    split
        Which of ``dev`` and ``test`` is reported on, where there are both.
    cache
        Where ``datasets`` may keep what it has read.

    Raises
    ------
    InputFaults
        With everything that is wrong with the data set and with what was asked of it.
    """
    if dataset == "pydocs":
        return _embedded(task, data, split)
    problems = Problems()
    names, tables = sources.read(dataset, splits=data.splits, split=split, cache=cache, problems=problems)
    if "train" not in tables and not problems.faults:
        remedy = 'Name a file train*, or give data.splits={"train": ...}.'
        held = sources.listed(dataset) or ", ".join(sorted(tables)) or "nothing"
        problems.add(fault("dataset", dataset, f"has no train part; it holds {held}", remedy))
    if "train" not in tables:
        raise problems.error()
    return _assembled(names, tables, task, data, split, problems)


def _embedded(task: Task, data: DataRecipe, split: str) -> Corpus:
    """Return pydocs, which has its own parts and columns."""
    problems = Problems()
    given = (
        ("task", task, ("auto", "classification")),
        ("evaluate.split", split, ("dev",)),
        ("data.text_columns", data.text_columns, (None, ("text",))),
        ("data.label_column", data.label_column, (None, "label")),
        ("data.splits", data.splits, (None,)),
    )
    for field, value, allowed in given:
        if value not in allowed:
            remedy = "Leave it out, or give a data set of your own: dataset=<folder, file or hub name>."
            problems.add(fault(field, value, "does not fit pydocs, which has its own parts, text and label", remedy))
    corpus = read_pydocs()
    metric, faults = columns.metric_of(data.metric, corpus.task, len(corpus.labels), [corpus.name])
    problems.add(*faults)
    if problems.faults:
        raise problems.error()
    return replace(corpus, metric=metric)


def _assembled(
    names: Sequence[str], tables: dict[str, Table], task: Task, data: DataRecipe, split: str, problems: Problems
) -> Corpus:
    """Return the corpus of the parts that were read, or raise everything that is wrong with them."""
    train = tables["train"]
    if train.rows < FEWEST_ROWS:
        rule = "is empty" if train.rows == 0 else f"has {train.rows} rows; {FEWEST_ROWS} is the fewest"
        problems.add(fault("dataset (train)", train.where, rule, "Give more rows to train on."))
    texts, label, faults = (
        ((), "", []) if train.rows == 0 else columns.choose(train, data.text_columns, data.label_column)
    )
    problems.add(*faults)
    if task != "auto" and (faults or train.rows == 0):
        problems.add(*columns.metric_of(data.metric, task, 2, names)[1])
    if faults or train.rows == 0:
        problems.add(*(_empty(table) for part, table in tables.items() if part != "train" and table.rows == 0))
        raise problems.error()
    eval_name, chosen, notes = _chosen(tables, label, split, problems)
    resolved = columns.task_of(train, label) if task == "auto" else task
    parts: dict[str, Part] = {}
    known: tuple[str, ...] = ()
    for part, table in chosen.items():
        found = columns.missing_columns(table, [*texts, label]) if table.rows else [_empty(table)]
        problems.add(*found)
        if not found:
            parts[part], known = _part(
                table, texts, label, resolved, known, named=data.text_columns is not None, problems=problems
            )
    metric, faults = columns.metric_of(data.metric, resolved, len(known) or 2, names)
    problems.add(*faults)
    if problems.faults:
        raise problems.error()
    digests = {part: table.content or _digest_of_rows(parts[part], known) for part, table in chosen.items()}
    digest = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
    return Corpus(names[-1], resolved, metric, known, texts, label, parts, eval_name, digest, tuple(notes))


def _chosen(
    tables: dict[str, Table], label: str, split: str, problems: Problems
) -> tuple[str, dict[str, Table], list[str]]:
    """Return which part is reported on, and the parts that are used."""
    chosen = {part: tables[part] for part in ("train", "selection") if part in tables}
    notes: list[str] = []
    test = tables.get("test")
    labelled = test is not None and columns.has_labels(test, label)
    if test is not None and not labelled:
        notes.append(f"the test part ({test.where}) has no labels and is not used")
    if "eval" in tables:
        name = "test" if NAMES["test"].match(tables["eval"].where.rpartition(":")[2]) else "dev"
        return name, chosen | {"eval": tables["eval"]}, notes
    if split == "test" and not labelled:
        remedy = 'Use evaluate.split=dev, or give the file: data.splits={"test": ...}.'
        problems.add(fault("evaluate.split", split, "the data set has no test part with labels", remedy))
    if test is not None and labelled and (split == "test" or "dev" not in tables):
        if split == "dev":
            notes.append("there is no dev part: the test part is reported on")
        return "test", chosen | {"eval": test}, notes
    if "dev" in tables:
        return "dev", chosen | {"eval": tables["dev"]}, notes
    return "cut", chosen, [*notes, "there is one part: a tenth of it is cut off, by group and seed, to report on"]


def _part(
    table: Table,
    texts: Sequence[str],
    label: str,
    task: Resolved,
    known: tuple[str, ...],
    *,
    named: bool,
    problems: Problems,
) -> tuple[Part, tuple[str, ...]]:
    """Return one part and the label names, which are train's; its faults go to ``problems``."""
    files = table.files or (table.where,)
    try:
        found, faults = columns.texts_of(table, texts, named=named)
        problems.add(*faults)
        if task == "regression":
            scores, faults = columns.scores_of(table, label)
            problems.add(*faults)
            return Part(found, scores, files), ()
        names, faults = columns.names_of(table, label)
    except UnicodeError as error:
        problems.add(unreadable.because(table.part, table.where, error), cause=error)
        return Part((), [], files), known
    if table.part == "train" and names:
        known, more = columns.label_set(table, label, names)
        faults += more
    elif known:
        faults += columns.unseen(table, label, names, known)
    problems.add(*faults)
    ids = {name: i for i, name in enumerate(known)}
    return Part(found, [ids[name] for name in names if name in ids], files), known


def _empty(table: Table) -> Fault:
    remedy = "Give it rows, or leave the part out."
    return fault(f"dataset ({table.part})", table.where, "is empty", remedy)


def _digest_of_rows(part: Part, labels: tuple[str, ...]) -> str:
    return hashlib.sha256(json.dumps([part.texts, part.labels, labels], ensure_ascii=False).encode()).hexdigest()
