"""How long a step of distilling a decoder takes, and what memory it needs: capgap, TRL's GKD, and whole logits.

``python tests/benchmarks/decoders.py``; ``--publish`` as in ``distillation.py``. Models have random weights: what is
computed does not depend on them. TRL is a peer of ``pip install -e '.[bench]'``. ``--device cuda`` measures a student
of 0.36 and a teacher of 1.2 billion parameters over 151,936 entries on a GPU, in seconds of CUDA events;
``--small`` tries everything with tiny models: its figures mean nothing.

* ``step``: capgap and each other way by turns, in processes of their own, which all have to have the same losses and
  norms of gradients. ``capgap, kept`` reads the last hidden states of the teacher, as a stage does in later epochs and
  for further students; the others ask it in every step. TRL runs as it comes, with fp32 products sent to oneDNN, which
  capgap asks itself, and with activations computed again in the backward pass (its default). Memory is the peak since
  both models had been loaded. ``products`` are square ones in the same precision, as fast as this machine multiplies:
  the share of it that a step makes of its products with weights; those of attention are left out.
* ``attention``: a small language model on rows of 128, with capgap's attention for short rows on a CPU and without.
"""

import argparse
import ctypes
import gc
import importlib.util
import math
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "5000")

import pandas as pd
import torch
import transformers
from lm_loops import WAYS, Case
from loss_heads import resident
from turns import by_turns, publish, ratio, running, told, unit_of

from capgap_core import machine
from capgap_core.lm_recipes import Sizes

NAME = "decoders"
STUDENT = {"layers": 4, "hidden": 256, "heads": 4, "kv_heads": 4, "neurons": 704}
TEACHER = {"layers": 6, "hidden": 384, "heads": 6, "kv_heads": 6, "neurons": 1024}
GPU_STUDENT = {"layers": 24, "hidden": 896, "heads": 14, "kv_heads": 2, "neurons": 4864}
GPU_TEACHER = {"layers": 26, "hidden": 1536, "heads": 12, "kv_heads": 2, "neurons": 8960}
TINY = {"layers": 2, "hidden": 32, "heads": 2, "kv_heads": 2, "neurons": 64}
ALONE = {"layers": 4, "hidden": 64, "heads": 4, "kv_heads": 4, "neurons": 176}
"""Of the model whose attention is measured."""
WHOLE, KERNEL = "whole products", "torch's kernel"
"""What its attention is made of."""
KEPT, PRODUCTS = "capgap, kept", "products"
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    KEPT: ("capgap", {}),
    "TRL": ("trl", {"onednn": False}),
    "TRL, oneDNN": ("trl", {}),
    "TRL, checkpointing": ("trl", {"checkpointing": True}),
    "whole logits": ("whole logits", {}),
}
"""What capgap is measured beside: the way, and how its case differs."""
SAME = {"float32": 1e-4, "bfloat16": 1e-2}
"""How far losses, and norms of gradients, may be apart: what rounding makes of two steps."""
SIDE = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the matrices of ``products``."""


def cases(device: str, root: str, threads: int, *, rows: int, small: bool) -> list[Case]:
    """Return what is trained on a machine."""
    own: dict[str, Any] = {"root": root, "device": device, "threads": threads}
    if small:
        tiny = {"student": TINY, "teacher": {**TINY, "hidden": 48}, "vocabulary": 5000, "rows": 2, "length": 32}
        return [Case(**tiny, **own, dtype=dtype) for dtype in ("float32", "bfloat16")]
    if device != "cpu":
        own.update(student=GPU_STUDENT, teacher=GPU_TEACHER, rows=16, length=1024)
        return [Case(**own, vocabulary=151_936, dtype="bfloat16")]
    own.update(student=STUDENT, teacher=TEACHER, rows=rows, length=256)
    fast = machine.precision("auto", torch.device("cpu"), hidden=STUDENT["hidden"])
    return [
        Case(**own, vocabulary=v, dtype=dtype) for v in (32_000, 4096) for dtype in dict.fromkeys(("float32", fast))
    ]


def variants(case: Case, left_out: Sequence[str]) -> dict[str, tuple[str, Case]]:
    """Return name → way and case, capgap first, of what can run here."""
    changed = {**OTHERS, KEPT: ("capgap", {"keep": case.dtype})}
    others = {
        name: (way, replace(case, **changes))
        for name, (way, changes) in changed.items()
        if name not in left_out
        and (way != "trl" or importlib.util.find_spec("trl"))
        and not (name == "TRL, oneDNN" and _same(case))
    }
    return {"capgap": ("capgap", case), **others}


def _same(case: Case) -> bool:
    """Return whether it makes no difference to TRL where fp32 products go."""
    return case.device != "cpu" or case.dtype != "float32"


def flops(case: Case, variant: str) -> float:
    """Return the FLOPs of a step's products with weights: 2 a weight and token forward, 4 back; 1 MAC is 2."""
    of = {which: Sizes(**getattr(case, which)) for which in ("student", "teacher")}
    head = {which: case.vocabulary * sizes.hidden for which, sizes in of.items()}
    inside = {which: sizes.parameters() - (2 * sizes.layers + 1) * sizes.hidden for which, sizes in of.items()}
    asked = 0 if variant == KEPT else inside["teacher"]
    return case.rows * case.length * (6.0 * (inside["student"] + head["student"]) + 2.0 * (asked + head["teacher"]))


def side(case: Case) -> int:
    """Return the rows and columns of the matrices of ``products``."""
    return SIDE[torch.device(case.device).type]


def products(gate: Any, given: dict[str, Any]) -> None:
    """Multiply square matrices, and nothing else."""
    case = Case(**given)
    with machine.ready(case.execution):
        shape, kind = (side(case), side(case)), machine.KINDS[case.dtype]
        a, b = (torch.randn(shape, device=case.device).to(kind) for _ in range(2))
        gate.ready()
        while True:
            torch.mm(a, b)
            gate.step(examples=1, tokens=1, places=1)


class Peak:
    """A gate that also says the memory of this process, or its GPU, at most since models have been loaded."""

    def __init__(self, gate: Any, *, gpu: bool) -> None:
        self._gate, self._gpu, self._begun = gate, gpu, 0.0
        self.facts: dict[str, Any] = gate.facts

    def ready(self, model: Any = None) -> None:
        """Forget what there has been."""
        gc.collect()
        if self._gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self._begun = torch.cuda.memory_allocated() / 2**20
        else:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the peak is the present again
            self._begun = resident("VmRSS") / 1024
        self._gate.ready(model)

    def step(self, **counts: int) -> None:
        """Look, and pass the step on."""
        peak = torch.cuda.max_memory_allocated() / 2**20 if self._gpu else resident("VmHWM") / 1024
        self.facts.update(peak_mib=peak, extra_mib=peak - self._begun)
        self._gate.step(**counts)


def watched(gate: Any, given: dict[str, Any]) -> None:
    """Train in one way."""
    WAYS[given["way"]](Peak(gate, gpu=given["case"]["device"] != "cpu"), given["case"])


def steps_of(case: Case, repeats: int, left_out: Sequence[str]) -> list[dict[str, Any]]:
    """Return the blocks of all ways and of products alone, by turns; on a GPU those of capgap and one other at a time.

    What does not fit into a GPU is left out, and that is said.

    Raises
    ------
    RuntimeError
        A way has other losses or gradients than capgap, so that something else would be timed.
    """
    named, gpu = variants(case, left_out), case.device != "cpu"
    of_one = {name: flops(case, name) for name in named} | {PRODUCTS: 2.0 * side(case) ** 3}
    groups = [["capgap", name] for name in list(named)[1:]] if gpu else [list(named)]
    rows: list[dict[str, Any]] = []
    for number, names in enumerate(groups):
        ways = [(name, watched, {"way": named[name][0], "case": asdict(named[name][1])}) for name in names]
        try:
            with running([*ways, (PRODUCTS, products, asdict(case))]) as group:
                found = by_turns(group, steps=lambda name: _block(name, gpu=gpu), repeats=repeats, warm=1)
        except RuntimeError as error:
            if not gpu or "out of memory" not in str(error):
                raise
            print(f"{' and '.join(names)}: out of memory, left out", file=sys.stderr, flush=True)
            continue
        refuse_others(found, SAME[case.dtype])
        rows += [{**row, "repeat": row["repeat"] + number * repeats} for row in found]
    return [{"what": "step", **row, "flops": row["steps"] * of_one[row["variant"]]} for row in rows]


def _block(name: str, *, gpu: bool) -> int:
    """Return the steps of a block."""
    if name == PRODUCTS:
        return 8
    return 5 if gpu else 1


def refuse_others(rows: Sequence[dict[str, Any]], most: float) -> None:
    """Raise where a way has another loss or norm of its gradient than capgap in the same step."""
    ours = {row["repeat"]: row for row in rows if row["variant"] == "capgap"}
    for row in (row for row in rows if row["variant"] != PRODUCTS):
        for what in ("loss", "norm"):
            if not math.isclose(row[what], ours[row["repeat"]][what], rel_tol=most):
                raise RuntimeError(f"{row['variant']}: {what} {row[what]}, capgap's {ours[row['repeat']][what]}")


def attention(root: str, threads: int, repeats: int) -> list[dict[str, Any]]:
    """Return the blocks of a small language model, its attention made of whole products and by torch's kernel."""
    case = Case(root=root, student=ALONE, vocabulary=256, rows=32, length=128, threads=threads)
    ways = {WHOLE: case, KERNEL: replace(case, longest=0)}
    with running([(name, WAYS["capgap"], asdict(own)) for name, own in ways.items()]) as group:
        found = by_turns(group, steps=4, repeats=repeats, warm=2)
    return [{"what": "attention", **row, **facts_of(case)} for row in found]


def facts_of(case: Case) -> dict[str, Any]:
    """Return what every row of a case says."""
    sizes = {which: Sizes(**given).parameters() for which in ("student", "teacher") if (given := getattr(case, which))}
    return {
        "vocabulary": case.vocabulary, "precision": case.dtype, "batch": case.rows, "length": case.length, **sizes,
    }  # fmt: skip


def line(frame: pd.DataFrame) -> str:
    """Return what the rows show, as a table for the README."""
    unit = unit_of(frame)
    lines = [
        "| vocabulary | precision | way | tokens a second | times as long | memory beside the models | of the peak |"
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    for (size, dtype), own in frame[frame["what"] == "step"].groupby(["vocabulary", "precision"], sort=False):
        rate = {name: rows["flops"] / rows[unit] for name, rows in own.set_index("repeat").groupby("variant")}
        for name in [name for name in dict.fromkeys(own["variant"]) if name != PRODUCTS]:
            mine = own[own["variant"] == name]
            times = told(ratio(own, name, "capgap", unit=unit)) if name != "capgap" else "1"
            speed = (mine["tokens"] / mine[unit]).median()
            share = 100 * (rate[name] / rate[PRODUCTS]).median()
            cells = (
                f"{size:,.0f}",
                dtype,
                name,
                f"{speed:,.0f}",
                times,
                f"{mine['extra_mib'].max():,.0f} MiB",
                f"{share:.0f}%",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_notes(frame, unit)])


def _notes(frame: pd.DataFrame, unit: str) -> list[str]:
    own, short = frame[frame["what"] == "step"], frame[frame["what"] == "attention"]
    count = own.groupby(["vocabulary", "precision", "variant"]).size().min()
    first, whose = own.iloc[0], "the GPU's time" if unit == "device_seconds" else "CPU time"
    notes = [
        f"Medians (lowest to highest) of {whose}, {count} repeats by turns on the same "
        f"batches; a student of {first['student'] / 1e6:,.1f} and a teacher of {first['teacher'] / 1e6:,.1f} million "
        f"parameters beside their embeddings, {first['batch']:.0f} x {first['length']:.0f} tokens a step; the peak is "
        f"that of square products in the same precision; {int(first['threads'])} thread of an {first['processor']}, "
        f"torch {first['torch']}, transformers {first['transformers']}, TRL {first['trl']}."
    ]  # fmt: skip
    if len(short):
        one = short.iloc[0]
        notes.append(
            f"\nWhere torch's kernel makes the attention, a step of a language model of {one['student'] / 1e3:,.0f}k "
            f"parameters on {one['batch']:.0f} rows of {one['length']:.0f} takes "
            f"{told(ratio(short, KERNEL, WHOLE, unit=unit))} times as long."
        )
    return notes


def rows_of(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Return every row that is asked for."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as root:
        for case in cases(given.device, root, given.threads, rows=given.rows, small=given.small):
            for which in ("student", "teacher"):
                case.made(which)
            found = steps_of(case, given.repeats, given.leave_out)
            rows += [{**row, **facts_of(case)} for row in found]
            print(f"{case.vocabulary:,} entries, {case.dtype}: {len(found)} rows", file=sys.stderr, flush=True)
        if given.device == "cpu":
            rows += attention(root, given.threads, given.repeats)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and publish where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=8, help="of 256 tokens in a step, on a CPU (%(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--leave-out", choices=OTHERS, action="append", default=[], metavar="WAY")
    parser.add_argument("--small", action="store_true", help="tiny models, to see that it runs")
    parser.add_argument("--publish", action="store_true", help="write the rows, and the README's table of them")
    given = parser.parse_args(argv)
    if given.small and given.publish:
        parser.error("--small measures nothing that could be published")
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # which the server of the next line does not take over
    multiprocessing.set_forkserver_preload(["lm_loops", "loss_heads", "trl.experimental.gkd"])
    if not importlib.util.find_spec("trl"):
        print("TRL is not installed: left out", file=sys.stderr)
    rows = rows_of(given)
    device = torch.device(given.device)
    facts = {
        "device": given.device, "processor": machine.name(device), "threads": given.threads,
        "torch": torch.__version__, "transformers": transformers.__version__, "trl": _version("trl"),
    }  # fmt: skip
    frame = pd.DataFrame([{**row, **facts} for row in rows])
    print(line(frame))
    if given.publish:
        publish(NAME, frame.to_dict("records"), line)
    return 0


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "-"


if __name__ == "__main__":
    sys.exit(main())
