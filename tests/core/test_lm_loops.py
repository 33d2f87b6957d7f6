"""The ways of distilling a decoder that are timed against each other learn the same thing."""

import importlib
import importlib.util
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

STUDENT = {"layers": 2, "hidden": 32, "heads": 2, "kv_heads": 2, "neurons": 64}
TEACHER = {**STUDENT, "hidden": 48}


class Enough(BaseException):
    """Ends a training."""


class Seen:
    """Sees some steps of a training, and ends it."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.found: list[float] = []

    def ready(self, *_: Any) -> None:
        """Begin."""

    def step(self, **_: int) -> None:
        self.found += [self.facts["loss"], self.facts["norm"]]
        if len(self.found) == 6:
            raise Enough


def seen(loops: Any, way: str, case: Any) -> list[float]:
    gate = Seen()
    with pytest.raises(Enough):
        loops.WAYS[way](gate, asdict(case))
    return gate.found


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_way_has_the_losses_and_gradients_of_the_others(
    dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    loops = importlib.import_module("lm_loops")
    case = loops.Case(
        root=str(tmp_path), student=STUDENT, teacher=TEACHER, vocabulary=5000, rows=2, length=32, dtype=dtype
    )
    first = seen(loops, "capgap", case)
    assert first[0] != first[2] != first[4]
    kept = replace(case, keep="float32")
    ways = [("capgap", kept), ("whole logits", case)] + [("trl", case)] * bool(importlib.util.find_spec("trl"))
    for way, own in ways:
        assert seen(loops, way, own) == pytest.approx(first, rel={"float32": 1e-5, "bfloat16": 5e-3}[dtype]), way


def test_what_learns_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    refuse = importlib.import_module("decoders").refuse_others
    own = {"variant": "capgap", "repeat": 0, "loss": 2.0, "norm": 0.5}
    refuse([own, {**own, "variant": "TRL", "loss": 2.00001}], 1e-4)
    with pytest.raises(RuntimeError, match="TRL: norm"):
        refuse([own, {**own, "variant": "TRL", "norm": 0.6}], 1e-4)
