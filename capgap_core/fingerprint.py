"""Name the code a stage runs: its module and every module that one imports, without words."""

import ast
import hashlib
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from capgap_core.syntax import tree_of

PACKAGE = "capgap_core"
ROOT = Path(__file__).resolve().parent

_SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text(encoding="utf8")
    for path in ROOT.rglob("*.py")
}
"""The package as it was when this process began: what runs is what was imported, not what lies on disk now."""
_loaded: set[str] = set()

NEUTRAL = frozenset({"errors", "in_use", "locks", "progress", "provenance", "records", "shortages", "signals", "store"})
"""Modules that cannot move a number; a test holds that none imports torch or numpy."""


def code_of(stage: str, extra: Iterable[str] = ()) -> tuple[str, dict[str, str]]:
    """Return the fingerprint of a stage's code and that of each of its modules.

    Parameters
    ----------
    stage
        Name of a module in ``capgap_core.stages``.
    extra
        Modules that the stage loads by name and so does not import, such as ``families.bert``.
    """
    return hashed([f"stages.{stage}", *extra])


def hashed(start: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Return the fingerprint of modules with all that they import, and that of each."""
    modules = {name: module_fingerprint(name) for name in closure(start)}
    joined = "\n".join(f"{name} {modules[name]}" for name in sorted(modules))
    return hashlib.sha256(joined.encode()).hexdigest()[:16], modules


def closure(start: Iterable[str]) -> set[str]:
    """Return the modules of the package reached by imports from ``start``, without the neutral ones."""
    found: set[str] = set()
    waiting = list(start)
    while waiting:
        name = waiting.pop()
        if name in found or name in NEUTRAL:
            continue
        found.add(name)
        waiting += imports_of(name)
    return found


def module_path(name: str) -> Path:
    """Return the file of a module of the package."""
    return ROOT.joinpath(*name.split(".")).with_suffix(".py")


def module_fingerprint(name: str) -> str:
    """Return sixteen hex digits of a module's syntax tree: words and error texts do not count."""
    return _fingerprint_of(_SOURCES[name])


def edited(names: Iterable[str]) -> list[str]:
    """Return the modules whose files have changed since the process began, so that it may not run what they name.

    A module that was loaded and alike when it was first asked for is in memory: what becomes of its file no longer
    matters.
    """
    fresh = [name for name in names if name not in _loaded]
    changed = [name for name in fresh if _on_disk(name) != module_fingerprint(name)]
    _loaded.update(name for name in fresh if name not in changed and f"{PACKAGE}.{name}" in sys.modules)
    return sorted(changed)


def _on_disk(name: str) -> str | None:
    path = module_path(name)
    return _fingerprint_of(path.read_text(encoding="utf8")) if path.is_file() else None


def imports_of(name: str) -> list[str]:
    """Return the modules of the package that a module imports, at any depth of its code."""
    return list(_imports_of(_SOURCES[name]))


@cache
def _fingerprint_of(source: str) -> str:
    tree = _Silence().visit(tree_of(source))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


@cache
def _imports_of(source: str) -> tuple[str, ...]:
    found: list[str] = []
    for node in ast.walk(tree_of(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
            base = node.module.removeprefix(PACKAGE).lstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}" if base else alias.name
                found.append(inner if inner in _SOURCES else base)
        elif isinstance(node, ast.Import):
            found += [a.name.removeprefix(f"{PACKAGE}.") for a in node.names if a.name.startswith(f"{PACKAGE}.")]
    return tuple(name for name in found if name in _SOURCES)


class _Silence(ast.NodeTransformer):
    """Drops what is written for people: texts that stand alone, descriptions, and the arguments of what is raised."""

    def _without_texts(self, body: list[ast.stmt]) -> list[ast.stmt]:
        kept = [
            s
            for s in body
            if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) and isinstance(s.value.value, str))
        ]
        return kept or [ast.Pass()]

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list) and block:
                setattr(node, name, self._without_texts(block))
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        node.keywords = [word for word in node.keywords if word.arg != "description"]
        self.generic_visit(node)
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        self.generic_visit(node)
        return node
