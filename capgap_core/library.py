"""The source files of a Python's standard library, from which the embedded data sets are made."""

import sysconfig
from pathlib import Path


def running() -> Path:
    """Return the folder of the library of the Python that runs."""
    return Path(sysconfig.get_path("stdlib"))


def files(library: Path, name: str) -> list[Path]:
    """Return the source files of a package, or of a module of one file, without its tests; none where it is absent."""
    place = library / name
    found = sorted(place.rglob("*.py")) if place.is_dir() else [p for p in [place.with_suffix(".py")] if p.is_file()]
    return [path for path in found if {"test", "tests"}.isdisjoint(path.relative_to(library).parts)]
