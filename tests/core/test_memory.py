"""Where memory lacks: an error that names the knob, or the stage again under the identity of what fits."""

import ctypes
import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import builders
import pytest

from capgap_core import chain, training
from capgap_core.errors import InputFaults, OutOfMemory
from capgap_core.outcome import Outcome
from capgap_core.recipes import Minidisc
from capgap_core.shortages import explained

FITS = 5
ROOT = Path(__file__).parents[2]


def run(folder: Path, root: str, *, student: dict[str, Any] | None = None, **execution: Any) -> Outcome:
    asked: dict[str, Any] = {
        **builders.TINY, "dataset": str(builders.single_csv(folder)), "sandwich": {"grid": [0.3], "epochs": 0.2},
        "teacher_recipe": {**builders.TINY["teacher_recipe"], "epochs": 0.2, "micro_batch": 4},
        "student": {"scale": 0.2, "epochs": 0.2, "batch_size": 16, "controls": False, **(student or {})},
        "run": {"root": str(folder / root), "threads": 1, **execution},
    }  # fmt: skip
    asked["sandwich"]["micro_batch"] = 4
    p = Minidisc.model_validate(asked)
    return chain.minidisc(**{name: getattr(p, name) for name in asked})


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have torch run out of memory above some examples at once; return how many were tried."""
    tried: list[int] = []
    real = training._differentiate

    def differentiate(*args: Any) -> Any:
        asked = args[3].micro_batch
        if asked > FITS:
            tried.append(asked)
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried it")
        return real(*args)

    monkeypatch.setattr(training, "_differentiate", differentiate)
    return tried


def distilled(outcome: Outcome) -> dict[str, Any]:
    return next(s for s in outcome.result["stages"] if s["stage"] == "distil")


def test_the_error_names_the_knob_to_turn(tmp_path: Path, small_memory: list[int]) -> None:
    with pytest.raises(OutOfMemory, match=r"distil: there is not enough memory.*student\.micro_batch.*run\.auto_batch"):
        run(tmp_path, "art")
    assert small_memory == [16]


def test_auto_batch_ends_under_the_identity_of_what_fits(tmp_path: Path, small_memory: list[int]) -> None:
    """Which is the result of whoever had asked for that micro-batch at once."""
    found = distilled(run(tmp_path, "art", auto_batch=True))
    assert small_memory == [16, 8]
    asked = distilled(run(tmp_path, "other", student={"micro_batch": 4}))
    assert (found["identity"], found["digest"]) == (asked["identity"], asked["digest"])
    again = run(tmp_path, "art", student={"micro_batch": 4})
    assert distilled(again)["reused"]


def test_auto_batch_ends_where_nothing_is_left_to_halve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(training, "_differentiate", none)
    with pytest.raises(OutOfMemory, match="teacher"):
        run(tmp_path, "art", auto_batch=True)


@pytest.mark.parametrize("error", [
    MemoryError(), OSError(errno.ENOMEM, "no words"), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
    RuntimeError("unable to mmap 8 bytes: Cannot allocate memory (12)"), RuntimeError("CUDA out of memory."),
])  # fmt: skip
def test_a_lack_of_memory_is_known_in_any_words(error: Exception) -> None:
    assert isinstance(explained("distil", error), OutOfMemory)


def test_another_error_is_not_explained() -> None:
    assert explained("distil", RuntimeError("shapes do not match")) is None
    assert explained("distil", InputFaults([])) is None


FAULTS = """
import resource, sys
import torch
from capgap_core.machine import ready
from capgap_core.recipes import Execution

def step():
    held = [torch.ones(6 * 2**20) for _ in range(4)]  # 24 MB each, of which glibc by itself returns some at first
    del held

def faults():
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "ready":
    with ready(Execution(threads=1)):
        print(faults())
else:
    print(faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_memory_of_one_step_is_used_for_the_next() -> None:
    """Pages that the system has to give anew took up to a sixth of a small student's step."""
    found = {}
    for way in ("bare", "ready"):
        words = [sys.executable, "-c", FAULTS, way]
        found[way] = int(subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
    assert found["bare"] > 3 * found["ready"]
