"""Makes the text ``pysource`` for language models from the standard library of the Python that runs.

A document is the text of a source file, or a topic of the language reference that ``help()`` shows. The sources are
parsed at most, never imported. Which document is held out is drawn by its name, so that every machine with the same
Python has the same parts, and other versions of Python nearly the same ones.
"""

import ast
import platform
import re
from collections.abc import Iterable
from importlib.util import decode_source
from pathlib import Path

from capgap_core.documents import Document, LmText, Parts, digest_of, held_out
from capgap_core.errors import InputFaults, fault
from capgap_core.library import files, running
from capgap_core.syntax import tree_of

MODULES = tuple(
    """
    __future__ _collections_abc _compat_pickle _compression _markupbase _py_abc _pydecimal _pyio _strptime
    _threading_local _weakrefset abc argparse ast asyncio base64 bdb bisect bz2 cProfile calendar cmd code codecs
    codeop collections colorsys compileall concurrent configparser contextlib copy copyreg csv ctypes dataclasses
    datetime decimal difflib dis doctest email enum filecmp fileinput fnmatch fractions ftplib functools genericpath
    getopt getpass gettext glob graphlib gzip hashlib heapq hmac html http imaplib importlib inspect io ipaddress json
    keyword linecache locale logging lzma mailbox mimetypes modulefinder multiprocessing netrc ntpath nturl2path
    numbers opcode operator optparse os pathlib pdb pickle pickletools pkgutil platform plistlib poplib posixpath
    pprint profile pstats py_compile pyclbr pydoc queue quopri random re reprlib rlcompleter runpy sched secrets
    selectors shelve shlex shutil signal site smtplib socket socketserver ssl stat statistics string stringprep struct
    subprocess symtable sysconfig tabnanny tarfile tempfile textwrap threading timeit token tokenize tomllib trace
    traceback tracemalloc types typing unittest urllib uuid warnings wave weakref webbrowser wsgiref xml xmlrpc zipapp
    zipfile zipimport zoneinfo
    """.split()
)
"""In every build of Python 3.11 to 3.13. Not ``encodings``, which is tables of characters."""
TOPICS = "pydoc_data/topics.py"
CODE, REFERENCE = "code", "reference"
"""The two sources."""
_FEWEST_WORDS = 8
"""Words of a paragraph that tells which document it is from; shorter ones stand in many."""
_BLANK_LINE = re.compile(r"\n[ \t]*\n")


def read_pysource(library: Path | None = None) -> LmText:
    """Return the text of this Python's standard library, or of the one in the folder ``library``.

    ``repeated`` counts the documents with the text of another, and the topics that are sections of longer ones.

    Raises ``InputFaults`` where modules or the reference have no sources.
    """
    root = library if library is not None else running()
    absent = [name for name in MODULES if not files(root, name)]
    absent += [TOPICS] if not (root / TOPICS).is_file() else []
    if absent:
        rule = f"it is made from the source files of Python's library, and {root} has none for {', '.join(absent)}"
        remedy = "Use a Python that comes with its sources, or give a folder, a file or a hub name."
        raise InputFaults([fault("dataset", "pysource", rule, remedy)])
    parts: Parts = {"train": [], "valid": [], "test": []}
    empty = repeated = 0
    for read, thinned in ((_code(root), list), (_topics(root), _without_sections)):
        filled = [one for one in read if one.text.strip()]
        kept = thinned({one.text: one for one in reversed(filled)}.values())
        part_of = held_out({one.path: len(one.text.encode()) for one in kept}, seed="pysource")
        for one in sorted(kept, key=lambda one: one.path):
            parts[part_of.get(one.path, "train")].append(one)
        empty, repeated = empty + len(read) - len(filled), repeated + len(filled) - len(kept)
    note = f"pysource is the source and the reference in the standard library of Python {platform.python_version()}"
    return LmText("pysource", parts, digest_of(parts), empty, repeated, (note,))


def _code(root: Path) -> list[Document]:
    """Return the source files, by their paths."""
    paths = {path.relative_to(root).as_posix(): path for name in MODULES for path in files(root, name)}
    return [Document(decode_source(paths[name].read_bytes()), CODE, name) for name in sorted(paths)]


def _topics(root: Path) -> list[Document]:
    """Return the topics of the reference, by their names."""
    tree = tree_of((root / TOPICS).read_bytes())
    held = [node.value for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)]
    topics: dict[str, str] = {name: text for node in held for name, text in ast.literal_eval(node).items()}
    return [Document(topics[name], REFERENCE, f"{TOPICS}:{name}") for name in sorted(topics)]


def _without_sections(documents: Iterable[Document]) -> list[Document]:
    """Return the documents without those whose every paragraph stands in a longer one: a topic may hold others."""
    paragraphs = {one: _paragraphs(one.text) for one in documents}
    return [one for one, mine in paragraphs.items() if not mine or not any(mine < o for o in paragraphs.values())]


def _paragraphs(text: str) -> set[str]:
    """Return the paragraphs of a text but for short ones: the underlining of a heading depends on where it stands."""
    found = (" ".join(paragraph.split()) for paragraph in _BLANK_LINE.split(text))
    return {paragraph for paragraph in found if paragraph.count(" ") + 1 >= _FEWEST_WORDS}
