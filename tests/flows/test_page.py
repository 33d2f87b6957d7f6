"""The page of a run leads with what the seeds say together, and ends with what this run did."""

import pytest

from capgap_core.recipes import Execution
from flows.page import across, page


def result(student: float, flops: float, why: str = "not made before") -> dict:
    stage = {"stage": "data", "role": "", "reused": why != "not made before", "seconds": 1.0, "why": why}
    scores = {"student": {"accuracy": student}, "direct_flops": {"accuracy": flops}}
    return {"metric": "accuracy", "scores": scores, "stages": [stage]}


def test_one_seed_says_nothing() -> None:
    assert across({1: result(0.9, 0.5)}) == []


@pytest.mark.parametrize(
    ("pairs", "verdict"),
    [
        ([(0.90, 0.80), (0.91, 0.80), (0.90, 0.81)], "the TA was worth it"),
        ([(0.80, 0.90), (0.80, 0.91), (0.81, 0.90)], "the TA cost more than it gave"),
        ([(0.80, 0.90), (0.95, 0.80), (0.81, 0.82)], "not shown"),
    ],
)
def test_the_verdict_needs_an_interval_without_zero(pairs: list[tuple[float, float]], verdict: str) -> None:
    (line,) = across({seed: result(*pair) for seed, pair in enumerate(pairs)})
    assert line.startswith("Over 3 seeds (0, 1, 2)")
    assert f"**{verdict}**" in line


def test_reuse_of_other_code_and_unchecked_files_are_said() -> None:
    held = result(0.9, 0.8, why="made by other code (abc)")
    text = page("# Title\n\nbody\n", held, {1: held}, "r1", Execution(reuse="any-code", verify="sizes"))
    assert text.startswith("# Title\n\n> run.reuse=any-code: 1 of the stages")
    assert "only the sizes were checked" in text
    assert text.index("body") < text.index("| data | reused | 1.0 | made by other code (abc) |")
