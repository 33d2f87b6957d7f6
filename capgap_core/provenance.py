"""What is recorded beside a result but never hashed: commit, versions, machine, memory."""

import platform
import resource
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("capgap", "torch", "transformers", "datasets", "prefect", "pyarrow", "pandas", "scikit-learn", "scipy")


def provenance(*, device: str, threads: int | None) -> dict[str, Any]:
    """Return commit, versions and machine as plain values; nothing of the environment's variables."""
    return {
        **_commit(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "system": platform.system(),
        "machine": platform.machine(),
        "device": device,
        "threads": threads,
    }


def peak_memory_bytes() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@cache
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def _commit() -> dict[str, Any]:
    """Return the commit of the code; null where it does not run from a checkout."""
    here = Path(__file__).resolve().parent
    commit = _git(here, "rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(_git(here, "status", "--porcelain", "--untracked-files=no"))}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
