"""Parses Python sources, past a fault of CPython 3.11."""

import ast

TRIES = 5


def tree_of(source: str | bytes) -> ast.Module:
    """Return the syntax tree of a module.

    CPython 3.11 counts the depth of a tree that it builds in one place for all threads. Where another thread parses
    in between, which it can while garbage is collected, it takes the other's count for a fault of its own and raises
    ``SystemError``; the source is as good as before.
    """
    for _ in range(TRIES - 1):
        try:
            return ast.parse(source)
        except SystemError as error:
            if "recursion depth mismatch" not in str(error):
                raise
    return ast.parse(source)
