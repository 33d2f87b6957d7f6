"""What the time of each training stage is spent on, and how cost grows with the data.

``python tests/benchmarks/stages.py``; ``--publish`` as in
``distillation.py``.

* The share of products: the seconds that a step's matrix products take alone, at the same shapes and in the same
  precision, counted for real tokens only, over the seconds of the step. 1 is nothing but products and nothing padded.
* What the rest is spent on, by torch's profiler.
* Seconds for a token and the peak of memory with 1,000 to 60,000 examples, and with one epoch and five.
"""

import argparse
import os
import resource
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import loops
import pandas as pd
import torch
from turns import Gate, by_turns, publish, running, shared, told

from capgap_core import machine, models

NAME = "stages"
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
                pairs.append(tuple(torch.randn(*shape, generator=draw).to(dtype) for shape in shapes))
    with machine.ready(made.execution):
        gate.ready()
        while True:
            for x, weight, gradient in pairs:
                torch.mm(x, weight.T)
                torch.mm(gradient, weight)
                torch.mm(gradient.T, x)
            gate.step(examples=1, tokens=room, places=room)


def profiled(gate: Gate, given: dict[str, Any]) -> None:
    """Send the share of a stage's steps that each kind of operation takes."""
    stage, case = given["stage"], given["case"]

    class Profiling(Exception):
        pass

    class Watched:
        def __init__(self) -> None:
            self.count = 0
            self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])

        def ready(self, **_: Any) -> None:
            return

        def step(self, **_: Any) -> None:
            self.count += 1
            if self.count == 20:
                self.profile.start()
            if self.count == 32:
                self.profile.stop()
                raise Profiling

    watched = Watched()
    try:
        STAGES[stage](watched, case)  # pyright: ignore[reportArgumentType]
    except Profiling:
        spent = {event.key: event.self_cpu_time_total for event in watched.profile.key_averages()}
    total = sum(spent.values())
    shares = {kind: sum(spent.get(name, 0.0) for name in names) / total for kind, names in KINDS.items()}
    gate.ready(**shares, rest=1.0 - sum(shares.values()))


def shares(case: dict[str, Any], repeats: int) -> list[dict[str, Any]]:
    """Return the blocks of each stage beside those of its products, and the profiles."""
    rows: list[dict[str, Any]] = []
    for stage, training in STAGES.items():
        given = {"stage": stage, "case": case}
        with running([(stage, training, case), (f"products of {stage}", products, given)]) as pair:
            rows += [{"what": "share", **row} for row in by_turns(pair, steps=20, repeats=repeats, warm=20)]
        with running([(stage, profiled, given)]) as (one,):
            rows += [
                {"what": "profile", "variant": stage, "repeat": 0, "kind": kind, "share": share}
                for kind, share in one.facts.items()
            ]
    return rows


def measured(gate: Gate, given: dict[str, Any]) -> None:
    """Train a student for some epochs' steps, and send how large the process became."""
    steps, case = given["steps"], given["case"]

    class Counted:
        count = 0

        def ready(self, **_: Any) -> None:
            return

        def step(self, **_: Any) -> None:
            self.count += 1
            if self.count == steps:
                raise StopIteration

    try:
        loops.capgap(Counted(), case)  # pyright: ignore[reportArgumentType]
    except (StopIteration, RuntimeError):
        gate.ready(mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def growth(case: dict[str, Any], repeats: int) -> list[dict[str, Any]]:
    """Return the blocks of a student with ever more examples, and the peak of memory with one epoch and five."""
    ways = []
    for rows in (1000, 10_000, 60_000):
        ways.append((f"{rows} examples", loops.capgap, {**case, "rows": rows, "teacher_epochs": 0.02}))
    with running(ways) as group:
        found = [{"what": "growth", **row} for row in by_turns(group, steps=60, repeats=repeats, warm=60)]
    for epochs in (1, 5):
        given = {"steps": 300 * epochs, "case": case}
        with running([(f"{epochs} epochs", measured, given)]) as (one,):
            found.append({"what": "memory", "variant": f"{epochs} epochs", "repeat": 0, **one.facts})
    return found


def line(frame: pd.DataFrame) -> str:
    """Return what the rows show, as items for the README's list."""
    lines = []
    share = frame[frame["what"] == "share"]
    for stage in STAGES:
        own = {v: share[share["variant"] == v].set_index("repeat") for v in (stage, f"products of {stage}")}
        each = {v: rows["cpu_seconds"] / rows["steps"] for v, rows in own.items()}
        real = (own[stage]["tokens"] / own[stage]["places"]).mean()
        part = real * each[f"products of {stage}"] / each[stage]
        kinds = frame[(frame["what"] == "profile") & (frame["variant"] == stage)].set_index("kind")["share"]
        spent = ", ".join(f"{kind} {100 * value:.0f}%" for kind, value in kinds.sort_values(ascending=False).items())
        lines.append(f"* {stage}: {told(pd.Series(part))} of a step are products of real tokens. Profile: {spent}.")
    growth = frame[frame["what"] == "growth"]
    if len(growth):
        each = growth.assign(each=1e6 * growth["cpu_seconds"] / growth["tokens"]).groupby("variant", sort=False)["each"]
        times = ", ".join(f"{name} {told(values, 1)}" for name, values in each)
        memory = frame[frame["what"] == "memory"].set_index("variant")["mib"]
        peaks = ", ".join(f"{name} {value:,.0f} MiB" for name, value in memory.items())
        lines.append(f"* A student's microseconds for a token: {times}. Peak of memory: {peaks}.")
    first = frame.iloc[0]
    lines.append(
        f"* CPU time, medians (lowest to highest) of {int(share['repeat'].max()) + 1} repeats by turns; scale 0.1, "
        f"{int(first['threads'])} thread of an {first['processor']}, torch {first['torch']}."
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and publish where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a data set as capgap takes it; without it SST-2 below CAPGAP_SHARED")
    parser.add_argument("--teacher", help="an encoder, as capgap takes it; without it all-MiniLM-L6-v2 there")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--root", help="a store to begin from and to keep; a temporary one without")
    parser.add_argument("--no-growth", action="store_true")
    parser.add_argument("--publish", action="store_true")
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
        rows += [] if given.no_growth else growth(case, given.repeats)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = {
        "device": str(device),
        "processor": machine.name(device),
        "threads": given.threads,
        "torch": torch.__version__,
    }
    frame = pd.DataFrame([{**row, **facts} for row in rows])
    print(line(frame))
    if given.publish:
        publish(NAME, frame.to_dict("records"), line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
