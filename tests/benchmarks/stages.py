"""What the time of each training stage is spent on, and how cost grows with the data.

``python tests/benchmarks/stages.py``; ``--publish`` as in
``distillation.py``.

* The share of products: the seconds that a step's matrix products take alone, at the same shapes and in the same
  precision, counted for real tokens only, over the seconds of the step. 1 is nothing but products and nothing padded.
* What the rest is spent on, by torch's profiler.
* Seconds for a token and the peak of memory with 1,000 to 60,000 examples, with one epoch and five, and with one
  candidate and seven.
* What each stage takes beside training: the whole method with trainings of a single step.
"""

import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import loops
import pandas as pd
import torch
from turns import Gate, by_turns, parser_of, publish, running, shared, told, unit_of

from capgap_core import machine, models
from capgap_core.chain import minidisc
from capgap_core.recipes import DataRecipe, Execution, SandwichRecipe, StudentRecipe, TeacherRecipe

NAME = "stages"
ONE_STEP = 1e-6
"""Epochs of which one step is made."""
KINDS = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "random numbers": ("aten::random_", "aten::ge", "aten::bernoulli_"),
    "normalisation": ("aten::native_layer_norm", "aten::native_layer_norm_backward"),
    "softmax and GELU": ("aten::_softmax", "aten::_softmax_backward_data", "aten::gelu", "aten::gelu_backward"),
    "AdamW": ("aten::_fused_adamw_", "aten::lerp_", "aten::addcdiv_", "aten::linalg_vector_norm", "aten::sqrt"),
    "copies and casts": ("aten::copy_", "aten::cat", "aten::index", "aten::index_select", "aten::_index_put_impl_"),
}
"""What torch's operations are for; all others, and Python itself, are the rest."""
STAGES = {"teacher": loops.teacher, "sandwich": loops.sandwich, "student": loops.capgap}
OTHER = "teacher, float32"
"""The teacher stage in the other precision, to show that auto takes the one that is faster."""


def products(gate: Gate, given: dict[str, Any]) -> None:
    """Multiply what a step of the stage multiplies, forward and backward, and nothing else."""
    stage, case = given["stage"], loops.Case(**given["case"])
    made = loops.Made(case)
    assert made.shape is not None
    plans = models.plans_of(made.importance)
    scales = {"teacher": [None], "sandwich": list(case.scales), "student": [case.scale]}[stage]
    room, dtype = made.training.room or 0, machine.KINDS[made.training.dtype]
    draw = torch.Generator().manual_seed(0)
    pairs = []
    for scale in scales:
        kept = made.shape.full() if scale is None else plans[scale]
        for layer in range(made.shape.layers):
            heads, neurons = kept["heads"][layer] * made.shape.head_size, kept["neurons"][layer]
            for width, depth in ((3 * heads, made.shape.hidden), (made.shape.hidden, heads),
                                 (neurons, made.shape.hidden), (made.shape.hidden, neurons)):  # fmt: skip
                shapes = ((room, depth), (width, depth), (room, width))
                pairs.append(tuple(torch.randn(*shape, generator=draw).to(made.device, dtype) for shape in shapes))
    with machine.ready(made.execution):
        gate.ready()
        while True:
            for x, weight, gradient in pairs:
                torch.mm(x, weight.T)
                torch.mm(gradient, weight)
                torch.mm(gradient.T, x)
            gate.step(examples=1, tokens=room, places=room)


class Enough(Exception):
    """Ends a training that has been seen enough of."""


def profiled(gate: Gate, given: dict[str, Any]) -> None:
    """Send the share of a stage's steps that each kind of operation takes."""
    stage, case = given["stage"], given["case"]

    class Watched:
        keeper = None

        def __init__(self) -> None:
            self.count, self.wall = 0, 0.0
            self.profile = torch.profiler.profile()  # the CPU, and a GPU where there is one

        def ready(self, *_: Any, **__: Any) -> None:
            return

        def step(self, **_: Any) -> None:
            self.count += 1
            if self.count == 20:
                _wait()
                self.profile.start()
                self.wall = time.perf_counter()
            if self.count == 32:
                _wait()
                self.wall = time.perf_counter() - self.wall
                self.profile.stop()
                raise Enough

    watched = Watched()
    try:
        STAGES[stage](watched, case)  # pyright: ignore[reportArgumentType]
    except Enough:
        gpu = torch.cuda.is_available()
        events = watched.profile.key_averages()
        spent = {e.key: float(e.self_device_time_total if gpu else e.self_cpu_time_total) for e in events}
    total = 1e6 * watched.wall if gpu else sum(spent.values())  # a GPU that waits to be told what to do is in the rest
    shares = {kind: sum(spent.get(name, 0.0) for name in names) / total for kind, names in KINDS.items()}
    gate.ready(**shares, rest=1.0 - sum(shares.values()))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def shares(case: dict[str, Any], repeats: int) -> list[dict[str, Any]]:
    """Return the blocks of each stage beside those of its products, and the profiles."""
    rows: list[dict[str, Any]] = []
    for stage, training in STAGES.items():
        given = {"stage": stage, "case": case}
        ways = [(stage, training, case), (f"products of {stage}", products, given)]
        ways += [(OTHER, training, {**case, "dtype": "float32"})] if stage == "teacher" else []
        with running(ways) as group:
            found = by_turns(group, steps=20, repeats=repeats, warm=20)
            facts = {runner.name: runner.facts for runner in group}
            rows += [{"what": "share", **facts[row["variant"]], **row} for row in found]
        with running([(stage, profiled, given)]) as (one,):
            rows += [
                {"what": "profile", "variant": stage, "repeat": 0, "kind": kind, "share": share}
                for kind, share in one.facts.items()
            ]
    return rows


def measured(gate: Gate, given: dict[str, Any]) -> None:
    """Train for some steps, and send how large the process became."""
    steps, case = given["steps"], given["case"]

    class Counted:
        count, keeper = 0, None

        def ready(self, *_: Any, **__: Any) -> None:
            return

        def step(self, **_: Any) -> None:
            self.count += 1
            if self.count == steps:
                raise Enough

    try:
        STAGES[given["stage"]](Counted(), case)  # pyright: ignore[reportArgumentType]
    except Enough:
        gate.ready(mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def growth(case: dict[str, Any], repeats: int) -> list[dict[str, Any]]:
    """Return the blocks of a student with ever more examples, and peaks of memory by epochs and candidates."""
    ways = []
    for rows in (1000, 10_000, 60_000):
        ways.append((f"{rows:,} examples", loops.capgap, {**case, "rows": rows, "teacher_epochs": 0.02}))
    with running(ways) as group:
        found = [{"what": "growth", **row} for row in by_turns(group, steps=60, repeats=repeats, warm=60)]
    few = {**case, "scales": (0.5, 0.05), "teacher_epochs": 0.02}
    for variant, stage, own, steps in (
        ("student, 1 epoch", "student", case, 300), ("student, 5 epochs", "student", case, 1500),
        ("sandwich of 2", "sandwich", few, 60), ("sandwich of 7", "sandwich", {**case, "teacher_epochs": 0.02}, 60),
    ):  # fmt: skip
        with running([(variant, measured, {"stage": stage, "steps": steps, "case": own})]) as (one,):
            found.append({"what": "memory", "variant": variant, "repeat": 0, **one.facts})
    return found


def bare(gate: Gate, given: dict[str, Any]) -> None:
    """Run the whole method with trainings of one step, and send the seconds of every stage."""
    case = loops.Case(**given)
    with tempfile.TemporaryDirectory() as root:
        made = minidisc(
            dataset=case.dataset, teacher=case.teacher, data=DataRecipe(train_rows=case.rows),
            teacher_recipe=TeacherRecipe(epochs=ONE_STEP), sandwich=SandwichRecipe(epochs=ONE_STEP, outputs="live"),
            student=StudentRecipe(epochs=ONE_STEP, outputs="live", controls=False),
            run=Execution(root=root, threads=case.threads),
        )  # fmt: skip
        gate.ready(seconds={f"{one.stage} {role}".strip(): one.seconds for role, one in made.stages})


def overheads(case: dict[str, Any], repeats: int) -> list[dict[str, Any]]:
    """Return the seconds of each stage where nothing but a single step is trained."""
    rows: list[dict[str, Any]] = []
    for repeat in range(repeats):
        with running([("bare", bare, case)]) as (one,):
            rows += [
                {"what": "overhead", "variant": stage, "repeat": repeat, "wall_seconds": seconds}
                for stage, seconds in one.facts["seconds"].items()
            ]
    return rows


def line(frame: pd.DataFrame) -> str:
    """Return what the rows show, as items for the README's list."""
    unit, share = unit_of(frame), frame[frame["what"] == "share"]
    each = {str(variant): rows[unit] / rows["steps"] for variant, rows in share.set_index("repeat").groupby("variant")}
    lines = ["| stage | products of real tokens in a step | seconds for an epoch | what a step is spent on |"]
    lines += ["|---|---|---|---|"]
    for stage in STAGES:
        own = share[share["variant"] == stage].set_index("repeat")
        part = (own["tokens"] / own["places"]).mean() * each[f"products of {stage}"] / each[stage]
        kinds = frame[(frame["what"] == "profile") & (frame["variant"] == stage)].set_index("kind")["share"]
        spent = ", ".join(f"{kind} {100 * value:.0f}%" for kind, value in kinds.sort_values(ascending=False).items())
        epoch = told(each[stage] * own["per_epoch"], 1)
        lines.append(f"| {stage}, {own['dtype'].iloc[0]} | {told(pd.Series(part))} | {epoch} | {spent} |")
    lines += ["", f"* The teacher's step takes {told(each[OTHER] / each['teacher'])} times as long in float32."]
    growth = frame[frame["what"] == "growth"]
    if len(growth):
        cost = growth.assign(each=1e6 * growth[unit] / growth["tokens"]).groupby("variant", sort=False)["each"]
        times = ", ".join(f"{name} {told(values, 1)}" for name, values in cost)
        memory = frame[frame["what"] == "memory"].set_index("variant")["mib"]
        peaks = ", ".join(f"{name} {value:,.0f} MiB" for name, value in memory.items())
        lines += [f"* A student's microseconds for a token: {times}.", f"* Peak of memory: {peaks}."]
    bare = frame[frame["what"] == "overhead"]
    if len(bare):
        spent = ", ".join(
            f"{name} {rows.median():.1f}" for name, rows in bare.groupby("variant", sort=False)["wall_seconds"]
        )
        lines.append(f"* Seconds of each stage where a training is one step (by the clock): {spent}.")
    first = frame.iloc[0]
    whose = "GPU" if unit == "device_seconds" else "CPU"
    lines.append(
        f"* {whose} time, medians (lowest to highest) of {int(share['repeat'].max()) + 1} repeats by turns; scale 0.1, "
        f"{int(first['rows']):,} examples, {int(first['threads'])} thread of an {first['processor']}, torch "
        f"{first['torch']}."
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and publish where that is asked for."""
    parser = parser_of(__doc__)
    parser.add_argument("--no-growth", action="store_true")
    given = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    data = given.data or shared("data", "glue", "sst-2")
    teacher = given.teacher or shared("weights", "all-MiniLM-L6-v2")
    with tempfile.TemporaryDirectory() as temporary:
        case = {
            "dataset": data, "teacher": teacher, "root": given.root or temporary, "rows": given.rows,
            "threads": given.threads,
        }  # fmt: skip
        rows = shares(case, given.repeats)
        rows += [] if given.no_growth else [*growth(case, given.repeats), *overheads(case, 3)]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = {
        "device": str(device),
        "processor": machine.name(device),
        "threads": given.threads,
        "rows": given.rows,
        "torch": torch.__version__,
    }
    frame = pd.DataFrame([{**row, **facts} for row in rows])
    print(line(frame))
    if given.publish:
        publish(NAME, frame.to_dict("records"), line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
