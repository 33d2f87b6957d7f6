"""Finds the texts and the labels among a data set's columns, and says what is wrong with their values."""

import difflib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from capgap_core.errors import Fault, fault

PAIRS = (("sentence1", "sentence2"), ("question1", "question2"), ("question", "sentence"), ("premise", "hypothesis"))
TEXT_COLUMNS = (*PAIRS, ("sentence",), ("text",))
"""Columns that are recognised as the texts; the pair ``question, sentence`` before ``sentence`` alone."""
LABEL_COLUMNS = ("label", "score")
MOST_CLASSES = 1000
REGRESSION_VALUES = 20
"""Distinct floats above which ``task=auto`` means regression."""
METRICS = {"classification": ("accuracy", "accuracy_and_f1", "matthews"), "regression": ("pearson_and_spearman",)}
METRIC_OF = {"mrpc": "accuracy_and_f1", "qqp": "accuracy_and_f1", "cola": "matthews"}
"""The metric that GLUE names for a data set."""

Kind = Literal["text", "integer", "float", "boolean", "class", "other"]
Column = tuple[Kind, tuple[str, ...]]
"""What a column holds, and the names of its classes where it holds classes."""
Resolved = Literal["classification", "regression"]
"""A task once nothing is left to recognise."""

_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")


@dataclass(frozen=True)
class Table:
    """One part of a data set as it was read."""

    part: str
    where: str
    """The files or the hub's split, as a fault names them."""
    columns: dict[str, Column]
    rows: int
    values: Callable[[str], list[Any]]
    """Reads a column."""
    files: tuple[str, ...] = ()
    content: str = ""
    """Digest of the files' bytes; empty for what comes from the hub."""


def choose(table: Table, texts: Sequence[str] | None, label: str | None) -> tuple[tuple[str, ...], str, list[Fault]]:
    """Return the text columns and the label column of the training part, given or recognised, with what is wrong."""
    faults: list[Fault] = []
    if texts is None:
        texts, found = _recognised(table)
        faults += found
    else:
        faults += [_unknown(table, name, "data.text_columns") for name in texts if name not in table.columns]
        if len(set(texts)) != len(texts):
            faults.append(fault("data.text_columns", list(texts), "names a column twice", "Name two columns, or one."))
    if label is None:
        label = next((name for name in LABEL_COLUMNS if name in table.columns), "")
        if not label:
            rule = f"none of the columns {sorted(table.columns)} is called {' or '.join(LABEL_COLUMNS)}"
            faults.append(fault("data.label_column", None, rule, "Name the column to predict: data.label_column=..."))
    elif label not in table.columns:
        faults.append(_unknown(table, label, "data.label_column"))
    if label in texts:
        remedy = "Name two different columns."
        faults.append(fault("data.label_column", label, "is also the text: the answer would be read off", remedy))
    return tuple(texts), label, faults


def _recognised(table: Table) -> tuple[tuple[str, ...], list[Fault]]:
    found = [names for names in TEXT_COLUMNS if set(names) <= table.columns.keys()]
    found = [names for names in found if not any(set(names) < set(other) for other in found)]
    if len(found) == 1:
        return found[0], []
    known = ", ".join("+".join(names) for names in TEXT_COLUMNS)
    rule = f"among {sorted(table.columns)} " + (
        f"each of {['+'.join(names) for names in found]} could be the text" if found else f"none is known ({known})"
    )
    return (), [
        fault("data.text_columns", None, rule, 'Name the column, or the two of a pair: data.text_columns=["..."]')
    ]


def _unknown(table: Table, name: str, field: str) -> Fault:
    near = difflib.get_close_matches(name, table.columns, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return fault(field, name, f"{table.where} has no such column", f"{hint}It has {sorted(table.columns)}.")


def missing_columns(table: Table, names: Sequence[str]) -> list[Fault]:
    """Return a fault for each column of the training part that another part lacks."""
    return [
        fault(f"dataset ({table.part})", name, f"{table.where} has no such column, but train has",
              f"It has {sorted(table.columns)}; give every part the same columns.")
        for name in names if name not in table.columns
    ]  # fmt: skip


def has_labels(table: Table, label: str) -> bool:
    """Return whether a part can be scored: hidden labels are absent, null, or all -1."""
    return label in table.columns and any(value is not None and value != -1 for value in table.values(label))


def texts_of(table: Table, names: Sequence[str], *, named: bool) -> tuple[tuple[list[str], ...], list[Fault]]:
    """Return the text columns of a part, with what is wrong; ``named`` says that the user chose them."""
    faults: list[Fault] = []
    columns: list[list[str]] = []
    for name in names:
        kind, _ = table.columns[name]
        values = table.values(name)
        if kind in ("other", "class"):
            rule = "holds classes" if kind == "class" else "holds lists, records or values of several types"
            faults.append(_in_part(table, name, f"{rule}, not text", "Name a column of text: data.text_columns."))
        elif not named and values and all(value is None or number(value) is not None for value in values):
            remedy = "If these numbers are the text, name the column: data.text_columns; else name the right one."
            faults.append(_in_part(table, name, "holds only numbers", remedy))
        # In a pair one text may be blank, as in QQP; null says that the file is wrong.
        absent = [
            row for row, value in enumerate(values) if value is None or (len(names) == 1 and not str(value).strip())
        ]
        faults += _absent(table, name, absent, "text")
        columns.append([value if isinstance(value, str) else str(value) for value in values])
    return tuple(columns), faults


def task_of(table: Table, label: str) -> Resolved:
    """Return the task that the labels of the training part mean: many different floats are regression."""
    kind, _ = table.columns[label]
    if kind not in ("float", "text"):
        return "classification"
    values = {number(value) for value in table.values(label) if value is not None}
    whole = kind == "text" and all(value is not None and value.is_integer() for value in values)
    return "regression" if None not in values and not whole and len(values) > REGRESSION_VALUES else "classification"


def scores_of(table: Table, label: str) -> tuple[list[float], list[Fault]]:
    """Return the scores of a part for regression, with what is wrong."""
    kind, _ = table.columns[label]
    values = table.values(label)
    absent = [row for row, value in enumerate(values) if value is None]
    numbers = [(row, number(value)) for row, value in enumerate(values) if value is not None]
    words = [row for row, value in numbers if value is None]
    faults = _absent(table, label, absent, "score")
    if words or kind in ("class", "boolean", "other"):
        first = f"row {words[0] + 1} holds {values[words[0]]!r}" if words else "it holds classes or several types"
        remedy = "Name a column of numbers: data.label_column; or use task=classification."
        faults.append(_in_part(table, label, f"regression needs numbers, and {first}", remedy))
    infinite = [row for row, value in numbers if value is not None and not math.isfinite(value)]
    if infinite:
        rule = f"{_rows(len(infinite), 'is', 'are')} NaN or infinite, the first is row {infinite[0] + 1}"
        faults.append(_in_part(table, label, rule, "Remove these rows or give them a score."))
    finite = [value for _, value in numbers if value is not None]
    if not faults and table.part == "train" and len(set(finite)) == 1:
        faults.append(
            _in_part(table, label, f"every score is {finite[0]:g}", "There is nothing to learn: check the column.")
        )
    return finite, faults


def names_of(table: Table, label: str) -> tuple[list[str], list[Fault]]:
    """Return the label name of each row of a part for classification, with what is wrong.

    Integers are named by their digits, whole floats too (a column with a gap is read as floats), classes of the
    hub by the names they have there.
    """
    kind, classes = table.columns[label]
    values = table.values(label)
    if kind == "other":
        remedy = "Give every row one label, all of them numbers or all of them words."
        return [], [_in_part(table, label, "holds values of several types, lists or records", remedy)]
    absent = [row for row, value in enumerate(values) if _is_absent(value, kind)]
    if kind == "class":
        names = [classes[value] for value in values if not _is_absent(value, kind)]
    else:
        names = [_name(value) for value in values if not _is_absent(value, kind)]
    return names, _absent(table, label, absent, "label")


def label_set(table: Table, label: str, names: Sequence[str]) -> tuple[tuple[str, ...], list[Fault]]:
    """Return the sorted label names of the training part, integers as integers, with what is wrong."""
    kind, classes = table.columns[label]
    distinct = set(names)
    whole = {name for name in distinct if _INTEGER.fullmatch(name)}
    rule = remedy = ""
    if len(distinct) == 1:
        rule = f"every row has the label {names[0]!r}: there is nothing to learn"
        remedy = "Give rows of at least two classes, or name another column: data.label_column."
    elif len(distinct) > MOST_CLASSES:
        rule = f"has {len(distinct)} classes; {MOST_CLASSES} is the most"
        remedy = "Use task=regression if it is a score, or name the right column: data.label_column."
    elif kind == "text" and whole and whole != distinct:
        rule = f"some labels are numbers ({min(whole)!r}) and some are words ({min(distinct - whole)!r})"
        remedy = "Give every row a number, or every row a word."
    if rule:
        return (), [_in_part(table, label, rule, remedy)]
    if kind == "class":
        return classes, []
    in_order = int if whole == distinct else float if kind == "float" else str
    return tuple(sorted(distinct, key=in_order)), []


def unseen(table: Table, label: str, names: Sequence[str], known: Sequence[str]) -> list[Fault]:
    """Return a fault where a part has labels that the training part does not have."""
    new = sorted(set(names) - set(known))
    if not new:
        return []
    first = names.index(new[0])
    listed = f"{', '.join(map(repr, new[:5]))} {'is' if len(new) == 1 else 'are'}"
    rule = f"{listed} not among train's labels (first: row {first + 1})"
    seen = ", ".join(map(repr, known[:10]))
    return [_in_part(table, label, rule, f"Train has {seen}: correct these rows, or add such rows to train.")]


def metric_of(metric: str, task: str, classes: int, names: Sequence[str]) -> tuple[str, list[Fault]]:
    """Return what is measured: given, or by the task and the data set's names, with what is wrong."""
    if metric == "auto":
        named = next((METRIC_OF[name.casefold()] for name in names if name.casefold() in METRIC_OF), "accuracy")
        if task == "regression":
            return "pearson_and_spearman", []
        return (named if named != "accuracy_and_f1" or classes == 2 else "accuracy"), []
    if metric not in METRICS[task]:
        return metric, [fault("data.metric", metric, f"does not fit {task}", f"Use one of {', '.join(METRICS[task])}.")]
    if metric == "accuracy_and_f1" and classes > 2:
        rule = f"needs two classes, and the data set has {classes}"
        return metric, [fault("data.metric", metric, rule, "Use accuracy or matthews.")]
    return metric, []


def number(value: object) -> float | None:
    """Return what a value is as a number, or None where it is none; a yes or no is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _name(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _is_absent(value: object, kind: Kind) -> bool:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return (kind == "class" and value == -1) or (isinstance(value, str) and not value.strip())


def _absent(table: Table, name: str, rows: Sequence[int], what: str) -> list[Fault]:
    if not rows:
        return []
    rule = f"{_rows(len(rows), 'has', 'have')} no {what}, the first is row {rows[0] + 1} of {table.rows}"
    return [_in_part(table, name, rule, "Fill these rows or remove them.")]


def _rows(count: int, one: str, many: str) -> str:
    return f"1 row {one}" if count == 1 else f"{count} rows {many}"


def _in_part(table: Table, column: str, rule: str, remedy: str) -> Fault:
    return fault(f"dataset ({table.part})", f"column {column!r} of {table.where}", rule, remedy)
