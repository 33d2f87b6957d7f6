"""How long a student takes to distil, beside a loop around Hugging Face's Trainer and beside TextBrewer.

``python tests/benchmarks/distillation.py`` prints a
table; with ``--publish`` the rows go to ``artifacts/published/benchmarks.parquet`` and what they show into the README.

* ``student``: scale 0.1, five epochs. capgap reads the teacher's outputs that the sandwich has kept; the loop asks the
  teacher at every step. ``filled`` adds to capgap what keeping the outputs took.
* ``sandwich``: all seven candidates in every step, against the sum of seven loops, one for each.
* ``step``: the same step on the same batches, the teacher asked live, in both precisions and three batch sizes.

The bounds are ratios of matrix products alone: what a teacher's forward pass (2 FLOPs a weight and token) and a
student's forward and backward passes (6) would give if all were equally fast.
"""

import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "5000")

import loops
import pandas as pd
import torch
import transformers
from turns import by_turns, parser_of, publish, ratio, running, shared, told, unit_of

from capgap_core import machine

NAME = "distillation"
EPOCHS = 5
GROUPED = 50
"""Batches that the Trainer's sampler sorts by length together: a block of so many has texts of all lengths."""
TIMES = {"cpu_seconds": "the CPU time", "device_seconds": "the GPU's time"}


def student(case: dict[str, Any], repeats: int) -> list[dict[str, Any]]:
    """Return the blocks of capgap and the loop on one data set, and what keeping the outputs takes."""
    filled = [{"variant": "filling", "repeat": i, **fill(case)} for i in range(repeats)]
    with running([("capgap", loops.capgap, case), ("trainer", loops.trainer, case)]) as pair:
        rows = by_turns(pair, steps=_steps(2 * GROUPED), repeats=repeats, warm=GROUPED)
    return [{"what": "student", **row} for row in [*rows, *filled]]


def _steps(ours: int) -> Callable[[str], int]:
    """Return the steps of a block: so many of capgap, all lengths once of the Trainer."""
    return lambda name: GROUPED if name.startswith("trainer") else ours


def fill(case: dict[str, Any]) -> dict[str, Any]:
    """Return what asking the teacher for all examples takes, in a process of its own."""
    with running([("filling", loops.filling, case)]) as (one,):
        return one.block(1)


def sandwich(case: dict[str, Any], repeats: int) -> list[dict[str, Any]]:
    """Return the blocks of the sandwich in three ways, and of the loops of its candidates."""
    ways = {"live": {"keep": None}, "kept": {}, "sampled live": {"keep": None, "sampled": 2}, "sampled": {"sampled": 2}}
    trained = [(name, loops.sandwich, {**case, **changes}) for name, changes in ways.items()]
    trained += [(f"trainer {scale}", loops.trainer, {**case, "scale": scale}) for scale in loops.SEVEN]
    rows: list[dict[str, Any]] = []
    for number, some in enumerate((trained[:4], trained[4:8], trained[8:])):  # eleven at once would not fit everywhere
        with running([trained[1], *some] if trained[1] not in some else some) as group:
            found = by_turns(group, steps=_steps(16), repeats=repeats, warm=16)
            rows += [{"what": "sandwich", "group": number, **row} for row in found]
    return rows


def same_step(case: dict[str, Any], repeats: int) -> list[dict[str, Any]]:
    """Return the blocks of the same step: three batch sizes, two precisions, three ways."""
    rows: list[dict[str, Any]] = []
    for dtype in ("bfloat16", "float32"):
        for size in (8, 32, 128):
            own = {**case, "batches": "examples", "same": True, "batch_size": size, "dtype": dtype, "keep": None}
            ways = [("capgap", loops.capgap, own), ("trainer", loops.trainer, own)]
            if importlib.util.find_spec("textbrewer"):
                ways.append(("textbrewer", loops.textbrewer, own))
            else:
                print("textbrewer is not installed: left out", file=sys.stderr)
            with running(ways) as group:
                found = by_turns(group, steps=max(8, 960 // size), repeats=repeats, warm=max(8, 960 // size))
            rows += [{"what": "step", "batch": size, "precision": dtype, **row} for row in found]
    return rows


def bounds(case: dict[str, Any]) -> dict[str, float]:
    """Return the ratios that matrix products alone would give."""
    costs = loops.Made(loops.Case(**case)).costs
    assert costs is not None
    whole, target = costs.teacher, costs.scales[0.1]
    every = sum(costs.scales.values())
    drawn = costs.sandwich_of_a_step(2) - whole
    loop = len(costs.scales) * whole + 3 * every
    return {
        "student": (whole + 3 * target) / (3 * target),
        "student filled": EPOCHS * (whole + 3 * target) / (whole + EPOCHS * 3 * target),
        "live": loop / (whole + 3 * every), "kept": loop / (whole / EPOCHS + 3 * every),
        "sampled live": loop / (whole + drawn), "sampled": loop / (whole / EPOCHS + drawn),
    }  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """How many times as long a peer takes for the same work."""

    what: str
    peer: str
    times: pd.Series
    """One for each repeat."""
    bound: float | None = None


def compared(frame: pd.DataFrame) -> list[Comparison]:
    """Return every comparison that the rows hold."""
    bound = frame[frame["what"] == "bound"].set_index(["dataset", "bound_of"])["bound"]
    found: list[Comparison] = []
    for name, own in frame[frame["what"] == "student"].groupby("dataset"):
        found += _students(str(name), own, bound[name])
    for name, own in frame[frame["what"] == "sandwich"].groupby("dataset"):
        filling = frame[(frame["variant"] == "filling") & (frame["dataset"] == name)]
        found += _sandwiches(str(name), own, (filling[unit_of(frame)] / filling["tokens"]).median(), bound[name])
    steps = frame[frame["what"] == "step"]
    for (dtype, size), own in steps.groupby(["precision", "batch"]) if len(steps) else ():
        for peer in sorted(set(own["variant"]) - {"capgap"}):
            found.append(Comparison(f"one step, {dtype}, batch {int(size)}", peer, ratio(own, peer, "capgap")))
    return found


def _students(name: str, own: pd.DataFrame, bound: pd.Series) -> list[Comparison]:
    each = {}
    for variant in ("capgap", "trainer", "filling"):
        rows = own[own["variant"] == variant].set_index("repeat")
        each[variant] = rows[unit_of(own)] / rows["tokens"]
    filled = EPOCHS * each["trainer"] / (EPOCHS * each["capgap"] + each["filling"])
    wall = ratio(own, "trainer", "capgap", unit="wall_seconds")
    return [
        Comparison(f"student, {name}", "trainer", each["trainer"] / each["capgap"], bound["student"]),
        Comparison(f"student and keeping, {name}", "trainer", filled, bound["student filled"]),
        Comparison(f"student, {name}, by the clock", "trainer", wall),
    ]


def _sandwiches(name: str, own: pd.DataFrame, filling: float, bound: pd.Series) -> list[Comparison]:
    """Return what each way takes beside all loops together; both are measured in terms of what ``kept`` then takes."""
    cost = own.assign(each=own[unit_of(own)] / own["tokens"]).set_index(["group", "repeat"])
    kept = cost[cost["variant"] == "kept"]["each"]
    rest = filling / EPOCHS / kept.median()
    times = cost.assign(each=cost["each"] / kept).reset_index()
    of = {str(v): rows.groupby("repeat")["each"].median() for v, rows in times.groupby("variant")}
    loop = pd.concat([of[f"trainer {scale}"] for scale in loops.SEVEN], axis=1).sum(axis=1)
    return [
        Comparison(
            f"sandwich of seven, {way}, {name}", "seven trainers", loop / (of[way] + (0.0 if "live" in way else rest)),
            bound[way],
        )
        for way in ("live", "kept", "sampled live", "sampled")
    ]  # fmt: skip


def line(frame: pd.DataFrame) -> str:
    """Return what the rows show, as a table for the README."""
    names = {"trainer": "a `Trainer` loop", "seven trainers": "seven `Trainer` loops", "textbrewer": "TextBrewer"}
    lines = ["| what is trained | against | times as fast | bound by products |", "|---|---|---|---|"]
    for each in compared(frame):
        bound = "-" if each.bound is None else f"{each.bound:.2f}"
        lines.append(f"| {each.what} | {names[each.peer]} | {told(each.times)} | {bound} |")
    first, own = frame.iloc[0], frame[(frame["what"] == "student") & (frame["variant"] == "capgap")]
    padded = own.groupby("dataset")[["tokens", "places"]].sum()
    shares = ", ".join(f"{name} {100 * (1 - row['tokens'] / row['places']):.1f}%" for name, row in padded.iterrows())
    lines.append(
        f"\nMedians (lowest to highest) of {TIMES[unit_of(frame)]} for a token, {int(frame['repeat'].max()) + 1} "
        f"repeats by turns, {int(first['threads'])} thread of an {first['processor']}, torch {first['torch']}, "
        f"transformers {first['transformers']}; bfloat16 unless said otherwise. Padding in capgap's batches: {shares}."
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and publish where that is asked for."""
    parser = parser_of(__doc__)
    parser.add_argument(
        "--more", action="append", help="another, of which all rows are trained on; -: none; without it MRPC"
    )
    parser.add_argument("--only", choices=["student", "sandwich", "step"], action="append")
    given = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    data = given.data or shared("data", "glue", "sst-2")
    teacher = given.teacher or shared("weights", "all-MiniLM-L6-v2")
    more = [name for name in given.more if name != "-"] if given.more else [shared("data", "glue", "mrpc")]
    only = given.only or ["student", "sandwich", "step"]
    with tempfile.TemporaryDirectory() as temporary:
        rows: list[dict[str, Any]] = []
        for dataset, count in [(data, given.rows), *((name, None) for name in more)]:
            case = {
                "dataset": dataset, "teacher": teacher, "root": given.root or temporary, "rows": count,
                "threads": given.threads,
            }  # fmt: skip
            name = Path(dataset).name
            own: list[dict[str, Any]] = []
            own += student(case, given.repeats) if "student" in only else []
            first = dataset == data
            own += sandwich(case, given.repeats) if first and "sandwich" in only else []
            own += same_step(case, given.repeats) if first and "step" in only else []
            own += [
                {"what": "bound", "bound_of": of, "bound": value, "variant": "bound", "repeat": 0}
                for of, value in bounds(case).items()
            ]
            rows += [{"dataset": name, **row} for row in own]
            print(f"{name}: {len(own)} rows", file=sys.stderr, flush=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = {
        "device": str(device), "processor": machine.name(device), "threads": given.threads, "torch": torch.__version__,
        "transformers": transformers.__version__,
    }  # fmt: skip
    frame = pd.DataFrame([{**row, **facts} for row in rows])
    print(line(frame))
    if given.publish:
        publish(NAME, frame.to_dict("records"), line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
