"""What students are worth that capgap trains, beside those of a loop around Hugging Face's Trainer, and after how long.

``python tests/benchmarks/quality.py``; ``--publish`` as in ``distillation.py``.

* ``student``: the same slimmed student, teacher, loss, learning rate and number of epochs in both, whole trainings with
  their own schedules, for some seeds (order of the data and dropout). Each is measured on the evaluation part after
  every half epoch, off the clock. The time to an equal score is until that of the two which ends lower is first met.
* ``sandwich``: every sub-network on the evaluation part, trained in every step or drawn in each, for three epochs of
  fewer rows.
"""

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "5000")

import loops
import pandas as pd
import torch
import transformers
from turns import Gate, parser_of, publish, running, shared, told

from capgap_core import machine, models, scoring, slimming

NAME = "quality"
LOOKS = 2
"""Measurements in an epoch."""


class Looks:
    """Takes the place of a gate: measures the student now and then, and counts the seconds between."""

    def __init__(self, case: loops.Case, *, scales: Sequence[float] = ()) -> None:
        self.made = loops.Made(case)
        self.keeper, self.last = self, 0
        self.found: list[dict[str, Any]] = []
        self._scales, self._count, self._spent, self._every = scales, 0, 0.0, 10**9
        self._model: Any = None

    def ready(self, model: Any = None, **_: Any) -> None:
        """Take what is trained; the clock begins."""
        self._model, self._every = model, max(1, self.made.training.per_epoch // LOOKS)
        self._clock = time.process_time()

    def step(self, **_: Any) -> None:
        """Count a step; a loop that keeps no state is measured here."""
        self._count += 1
        if self._due(self._count) and (not self.found or self.found[-1]["step"] != self._count):
            self.measure(self._count)

    def _due(self, step: int) -> bool:
        return step % self._every == 0 and not self._scales

    def measure(self, step: int) -> None:
        """Measure what is trained, off the clock."""
        self._spent += time.process_time() - self._clock
        state = torch.random.get_rng_state()
        for scale in self._scales or [self.made.case.scale]:
            if self._scales:
                kept = models.plans_of(self.made.importance)[scale]
                model = slimming.slim(self.made.adapter, self._model, self.made.shape, kept)  # pyright: ignore
            else:
                model = self.made.student(scale)  # a fresh one: the Trainer has changed how its own computes
                model.load_state_dict(self._model.state_dict())
            where = {"scale": scale, "device": self.made.device}
            rows = scoring.metric_rows(self.made.adapter, model, self.made.data, "evaluation", **where)
            first = {"step": step, "epoch": step / self.made.training.per_epoch, "cpu_seconds": self._spent}
            self.found += [{**first, **{k: row[k] for k in ("scale", "metric", "value", "n")}} for row in rows]
        self._model.train()
        torch.random.set_rng_state(state)
        self._clock = time.process_time()

    def restore(self, *_: Any) -> list[Any]:
        """Return nothing: a training here begins anew."""
        return []

    def due(self) -> bool:
        """Return whether the step that is being taken is to be measured after."""
        return self._due(self._count + 1)

    def save(self, steps: Sequence[Any], _model: Any, optimizer: Any, _drawn: Any) -> None:
        """Measure where the state would be kept: all rows of lazy tables are brought up to it first."""
        optimizer.finish(steps[-1].step)
        self.measure(steps[-1].step)

    def tell(self, text: str) -> None:
        """Say a line."""
        print(text, file=sys.stderr)


def measured(gate: Gate, given: dict[str, Any]) -> None:
    """Train a student to its end, and send what was measured."""
    case = loops.Case(**given["case"], whole=True)
    looks = Looks(case, scales=case.scales if given["way"] == "sandwich" else ())
    {"capgap": loops.capgap, "trainer": loops.trainer, "sandwich": loops.sandwich}[given["way"]](
        looks,  # pyright: ignore[reportArgumentType]
        {**given["case"], "whole": True},
    )
    if not looks.found or looks.found[-1]["step"] != looks._count:
        looks.measure(looks._count)
    gate.ready(found=looks.found)


def one(way: str, case: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what is measured of one training, in a process of its own."""
    with running([(way, measured, {"way": way, "case": case})]) as (runner,):
        return runner.facts["found"]


def students(case: dict[str, Any], seeds: int) -> list[dict[str, Any]]:
    """Return the measurements of both ways for every seed, by turns."""
    rows: list[dict[str, Any]] = []
    for seed in range(1, seeds + 1):
        for way in ("capgap", "trainer") if seed % 2 else ("trainer", "capgap"):
            found = one(way, {**case, "seed": seed})
            rows += [{"what": "student", "variant": way, "seed": seed, **row} for row in found]
            print(f"{Path(case['dataset']).name}: {way}, seed {seed}", file=sys.stderr, flush=True)
    return rows


def sandwiches(case: dict[str, Any], seeds: int) -> list[dict[str, Any]]:
    """Return the last measurements of every sub-network, trained in every step or drawn."""
    rows: list[dict[str, Any]] = []
    for seed in range(1, seeds + 1):
        for name, sampled in (("all", None), ("sampled", 2)):
            found = one("sandwich", {**case, "seed": seed, "sampled": sampled})
            rows += [{"what": "sandwich", "variant": name, "seed": seed, "rows": case["rows"], **row} for row in found]
            print(f"sandwich: {name}, seed {seed}", file=sys.stderr, flush=True)
    return rows


def last_of(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of each training's last measurement."""
    return frame[frame["step"] == frame.groupby(["dataset", "variant", "seed"])["step"].transform("max")]


def times_to_equal(own: pd.DataFrame) -> pd.Series:
    """Return, for each seed, how many times as long the loop takes as capgap to the score both have met."""
    found = {}
    for seed, rows in own.groupby("seed"):
        target = last_of(rows)["value"].min()
        met = {way: r[r["value"] >= target]["cpu_seconds"].min() for way, r in rows.groupby("variant")}
        found[seed] = met["trainer"] / met["capgap"]
    return pd.Series(found)


def line(frame: pd.DataFrame) -> str:
    """Return what the rows show, as tables for the README."""
    shown = frame[frame["metric"] == frame.groupby("dataset")["metric"].transform("last")]
    text, students = [], shown[shown["what"] == "student"]
    if len(students):
        text += [
            "| student, 5 epochs | capgap | a `Trainer` loop | difference by seed | times as fast to an equal score |"
        ]
        text += ["|---|---|---|---|---|"]
    for name, own in students.groupby("dataset", sort=False):
        last = last_of(own).pivot_table(index="seed", columns="variant", values="value")
        less = last["capgap"] - last["trainer"]
        cells = [told(last[way], 3) for way in ("capgap", "trainer")]
        metric, n = own["metric"].iloc[0], int(own["n"].iloc[0])
        text.append(
            f"| {name}, {metric} of {n:,} | {cells[0]} | {cells[1]} | {told(less, 3)} | {told(times_to_equal(own))} |"
        )
    sandwich = shown[shown["what"] == "sandwich"]
    if len(sandwich):
        scales = sorted(sandwich["scale"].unique(), reverse=True)
        rows = int(sandwich["rows"].iloc[0])
        text += [
            "",
            f"| sandwich, {sandwich['dataset'].iloc[0]}, {rows:,} rows | "
            + " | ".join(f"{s:g}" for s in scales)
            + " |",
        ]
        text += ["|---" * (len(scales) + 1) + "|"]
        for name, own in last_of(sandwich).groupby("variant"):
            cells = [told(own[own["scale"] == s]["value"], 3) for s in scales]
            text.append(f"| {name} | " + " | ".join(cells) + " |")
    first = frame.iloc[0]
    text.append(
        f"\nMedians (lowest to highest) of {frame['seed'].nunique()} seeds, with one teacher; "
        f"{int(first['threads'])} thread of an {first['processor']}, torch {first['torch']}, transformers "
        f"{first['transformers']}."
    )
    return "\n".join(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and publish where that is asked for."""
    parser = parser_of(__doc__, repeats=False)
    parser.add_argument(
        "--more", action="append", help="another, of which all rows are trained on; -: none; without it MRPC"
    )
    parser.add_argument("--sandwich-rows", type=int, default=3000, help="training rows of the sandwich")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=["student", "sandwich"], action="append")
    given = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    data = given.data or shared("data", "glue", "sst-2")
    teacher = given.teacher or shared("weights", "all-MiniLM-L6-v2")
    more = [name for name in given.more if name != "-"] if given.more else [shared("data", "glue", "mrpc")]
    only = given.only or ["student", "sandwich"]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for dataset, count in [(data, given.rows), *((name, None) for name in more)]:
            case = {
                "dataset": dataset, "teacher": teacher, "root": given.root or temporary, "rows": count,
                "threads": given.threads,
            }  # fmt: skip
            own = students(case, given.seeds) if "student" in only else []
            if dataset == data and "sandwich" in only:
                own += sandwiches({**case, "rows": given.sandwich_rows, "epochs": 3.0}, given.seeds)
            rows += [{"dataset": Path(dataset).name, **row} for row in own]
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
