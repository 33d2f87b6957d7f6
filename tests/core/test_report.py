"""Holds what the report says against the facts, and that it can be shown."""

import base64
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from capgap_core import plots, report
from capgap_core.facts import Candidate, Facts, Size
from capgap_core.report import compose, verdict_line

PNG = b"\x89PNG\r\n\x1a\n"


def size(parameters: int, non_embedding: int) -> Size:
    return {
        "parameters": parameters, "non_embedding": non_embedding, "flops": 2.1e9, "length": 128, "megabytes": 48.9,
        "latency_ms": {"32": 40.123, "1": 2.5},
    }  # fmt: skip


def candidate(scale: float, metric: float, **changes: Any) -> Candidate:
    row: Any = {
        "scale": scale, "achieved": scale, "metric": metric, "stderr": 0.008, "tradeoff": metric + 0.2 * (1 - scale),
        "chosen": False, "target": False, "wins_from": None, "wins_to": None,
    }  # fmt: skip
    return row | changes


def example(**changes: Any) -> Facts:
    facts: Any = {
        "title": "MiniDisc on sst-2", "dataset": "sst-2", "task": "classification", "metric": "accuracy",
        "split": "dev", "n": 872, "protocol": "capgap", "seed": 1, "device": "cpu", "target": 0.1, "lam": 0.2,
        "metric_scale": "raw",
        "candidates": [
            candidate(0.5, 0.88, wins_from=0.0, wins_to=0.0345), candidate(0.4, 0.878), candidate(0.3, 0.871),
            candidate(0.2, 0.868, chosen=True, wins_from=0.0345), candidate(0.1, 0.819, target=True),
        ],
        "chosen": 0.2, "best": None, "margin": 0.017, "within_error": False, "assistant_preferred": True,
        "target_from": 0.49,
        "scores": {
            "teacher": {"value": 0.874, "stderr": 0.0112}, "assistant": {"value": 0.864, "stderr": 0.0116},
            "student": {"value": 0.8200, "stderr": 0.0130}, "direct": {"value": 0.8195, "stderr": 0.0130},
            "direct_flops": {"value": 0.8260, "stderr": 0.0128}, "slimmed": {"value": 0.708, "stderr": 0.0154},
        },
        "constant": 0.509,
        "differences": [
            {"against": "direct", "value": 0.0005, "low": -0.012, "high": 0.013, "seeds_needed": 1000},
            {"against": "direct_flops", "value": -0.006, "low": -0.018, "high": 0.005, "seeds_needed": 7},
        ],
        "sizes": {"teacher": size(22_713_216, 10_796_160), "student": size(13_120_000, 1_202_944)},
        "spent": {"student": 3.1e15, "direct_flops": 3.08e15, "direct": 1.2e15},
        "teacher_on_selection": 0.880, "selection_seen": "no",
        "data": {
            "rows": {"train": 8000, "calibration": 1000, "selection": 1000, "evaluation": 872}, "groups": 9000,
            "largest_group": 12, "overlap": {"selection": 3, "evaluation": 0}, "how": "groups",
            "notes": ["10,000 training rows drawn once"],
        },
        "stages": [
            {"name": "data", "stage": "data", "identity": "a" * 64, "code": "b" * 64},
        ],
        "lineage": [("data", "teacher"), ("teacher", "student")],
        "student_path": "/x/store/distil/s/c/model", "remote_code": True,
        "command": "capgap run minidisc -p dataset=sst-2",
    }  # fmt: skip
    return facts | changes


def figures() -> dict[str, bytes]:
    facts = example()
    steps = [(i, 2.0 / (1 + i / 40)) for i in range(500)]
    names = ("teacher", "sandwich", "student", "direct_flops", "direct")
    return {
        "arms.png": plots.arms(facts["scores"], constant=0.509, metric="accuracy", split="dev", n=872),
        "tradeoff.png": plots.tradeoff(facts["candidates"], lam=0.2, metric="accuracy", teacher=0.88),
        "curves.png": plots.curves(dict.fromkeys(names, steps)),
    }


def test_the_verdict_comes_first_and_one_run_never_proves() -> None:
    text = compose(example())
    assert text.split("\n\n")[1] == verdict_line(example())
    said = verdict_line(example())
    assert said.startswith("**Whether the assistant was worth it: not shown.**")
    assert "0.8200 through the assistant and 0.8260 straight" in said
    assert "−0.0060 accuracy, 95% interval over the 872 examples −0.0180 to +0.0050, which includes zero" in said
    assert "About 7 seeds would do" in said


def test_what_the_control_spent_is_said_where_it_is_not_the_same() -> None:
    assert "At equal FLOPs the student" in verdict_line(example())
    said = verdict_line(example(spent={"student": 3.0e15, "direct_flops": 3.15e15}))
    assert "At equal FLOPs (the control spent 105% of the student's) the student" in said


def test_overlap_above_a_hundredth_is_a_note_at_the_top() -> None:
    assert "overlap rows that were read before" not in compose(example())
    data = {**example()["data"], "overlap": {"selection": 3, "evaluation": 49}}
    text = compose(example(data=data))
    note = "> **Note:** 49 of the 872 rows of the evaluation part overlap rows that were read before"
    assert text.index(note) < text.index("## Results")
    assert "of the 1,000 rows of the selection part" not in text


def test_an_interval_over_examples_without_zero_still_shows_nothing() -> None:
    found: Any = {"against": "direct_flops", "value": 0.05, "low": 0.02, "high": 0.08, "seeds_needed": 3}
    said = verdict_line(example(differences=[found]))
    assert "not shown" in said
    assert "excludes zero" in said
    assert "one run never proves" in said
    assert "worth it**" not in said


def test_without_controls_the_report_says_what_to_switch_on() -> None:
    scores = {r: s for r, s in example()["scores"].items() if not r.startswith("direct")}
    text = compose(example(differences=[], scores=scores, spent={}))
    assert "student.controls=true" in text
    assert "| direct" not in text


def test_the_student_says_that_it_keeps_its_embeddings() -> None:
    # (13,120,000 - 1,202,944) / 13,120,000 = 0.9083; 1,202,944 / 10,796,160 = 0.1114
    text = compose(example())
    assert "A student at scale 0.1 keeps all its embeddings: 90.8% of all its parameters" in text
    assert "57.8% of the teacher, without embeddings 11.1%" in text
    assert "93.8% of the teacher's 0.8740" in text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"teacher_on_selection": 0.90}, "2.6 points apart"),
        ({"teacher_on_selection": 0.85}, "2.4 points apart"),
        ({"selection_seen": "unknown"}, 'selection_seen="unknown"'),
        ({"protocol": "paper"}, "optimistic"),
        ({"assistant_preferred": False}, "at this λ no assistant is preferred"),
        ({"within_error": True}, "within noise"),
    ],
)
def test_each_weakness_is_said_when_there_is_one_and_only_then(changes: dict[str, Any], says: str) -> None:
    assert says not in compose(example())
    assert says in compose(example(**changes))


def test_tables_hold_the_numbers() -> None:
    text = compose(example())
    assert "| teacher | 1 | 0.8740 ± 0.0112 | +0.3650 | 22.7 M | – |" in text
    assert "| student (through the TA) | 0.1 | 0.8200 ± 0.0130 | +0.3110 | 13.1 M | 3.1 P |" in text
    assert "| 0.2 | 0.2000 | 0.8680 ± 0.0080 | 1.0280 | **chosen** | 0.0345 and more |" in text
    assert "| 0.4 | 0.4000 | 0.8780 ± 0.0080 | 0.9980 |  | never |" in text
    assert "| 0.1 (target) | 0.1000 | 0.8190 ± 0.0080 | 0.9990 | never chosen | – |" in text
    assert "ms, batch 1 (cpu) | ms, batch 32 (cpu) |" in text
    assert "| 2.50 | 40.12 |" in text
    assert "9,000 groups, the largest of 12 rows" in text
    assert "(99.4% of it)" in text
    assert text.index("| direct_flops (no TA, equal FLOPs) | −0.0060") < text.index(
        "| direct (no TA, equal epochs) | +"
    )


def test_every_table_is_well_formed() -> None:
    facts = example(dataset="a|b <img src=x>", title="x\ny")
    facts["data"]["notes"] = ["<script>alert(1)</script> | note"]
    facts["stages"][0]["why"] = "a | b\nc"
    text = compose(facts)
    for block in re.findall(r"(?:^\|.*\|$\n?)+", text, flags=re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block
    assert "<script" not in text
    assert "<img" not in text
    assert "<svg" not in text


def test_the_student_loads_in_two_lines_that_are_python() -> None:
    lines = re.findall(r"```python\n(.*?)\n```", compose(example()), flags=re.S)[0]
    assert len(lines.splitlines()) == 2
    compile(lines, "report", "exec")
    assert "'/x/store/distil/s/c/model', trust_remote_code=True" in lines
    assert "trust_remote_code" not in compose(example(remote_code=False))


def test_figures_are_inline_and_the_report_is_small() -> None:
    drawn = figures()
    text = compose(example(), drawn)
    assert len(text.encode()) < report.LARGEST
    found = re.findall(r"!\[\w+\]\(data:image/png;base64,([A-Za-z0-9+/=]+)\)", text)
    assert [base64.b64decode(f) for f in found] == list(drawn.values())
    assert text.index("![arms]") < text.index("## The student") < text.index("![tradeoff]") < text.index("![curves]")


def test_a_figure_that_does_not_fit_is_named_instead() -> None:
    text = compose(example(), {"arms.png": PNG, "curves.png": bytes(230_000)})
    assert len(text.encode()) < report.LARGEST
    assert "![arms]" in text
    assert "curves.png is too large" in text


def test_plots_are_small_png_and_the_same_each_time() -> None:
    first, second = figures(), figures()
    for name, png in first.items():
        assert png.startswith(PNG)
        assert len(png) < 100_000
        assert png == second[name]


def test_plots_take_what_runs_may_lack() -> None:
    bare = [candidate(0.5, 0.8, stderr=None, chosen=True), candidate(0.1, 0.7, stderr=None, target=True)]
    assert plots.tradeoff(bare, lam=0.0, metric="matthews", span=0.4).startswith(PNG)
    scores: Any = {"teacher": {"value": 0.0, "stderr": None}, "student": {"value": -0.1, "stderr": None}}
    assert plots.arms(scores, constant=0.0, metric="matthews", split="test", n=10).startswith(PNG)
    assert plots.curves({"teacher": [(1, 0.5)]}).startswith(PNG)
    assert plots.curves({}).startswith(PNG)


def test_the_report_imports_nothing_that_computes() -> None:
    code = "import sys, capgap_core.report; print({'numpy', 'torch', 'pandas', 'matplotlib'} & set(sys.modules))"
    root = Path(report.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
