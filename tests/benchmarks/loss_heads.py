"""What the loss over a large vocabulary costs, and how far its gradients are off: ours and others', by turns.

Every way of computing it runs in a process of its own, with the same inputs, and one step of each follows one step of
the next, so that a machine whose speed drifts is the same for all. A step is the loss and its backward pass from the
hidden states of both models, a quarter of the rows masked; the gradients are those of the mean over the others.

* ``ours``: ``capgap_core.vocabulary_losses``.
* ``dense``: the whole logits of both models, masked rows left out after the product, softmax in fp32.
* ``liger``: Liger's chunked JSD with beta 0, as its operations stand; ``liger compiled``: as torch.compile makes it.
* ``trl``: the loss of TRL's GKDTrainer with beta 0, on whole logits.

Liger and TRL are taken from the folder that ``--peers`` names, else from where Python looks; where one is not, its rows
are left out: ``pip install --no-deps --target DIR liger-kernel==0.8.5 trl==1.16.0``. ``--publish`` writes the rows to
``artifacts/published/benchmarks.parquet``, too, and their summary into the README.

On a GPU (``--device cuda``) the sizes are those of a batch there, in bfloat16, and the times those of CUDA events.
"""

import argparse
import ctypes
import importlib
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from turns import Clock, publish, unit_of

from capgap_core import machine, vocabulary_losses, vocabulary_sums

NAME = "loss_heads"
SIZES = ((32000, 512), (151936, 256))
"""Entries of the vocabulary, and rows."""
GPU_SIZES = ((32000, 8192), (151936, 8192))
PRECISIONS = ("highest", "medium")
"""What ``torch.set_float32_matmul_precision`` is given. Where the processor has no bf16 matrix units both are fp32."""
GAPS = (1.0, 0.1, 0.03)
KEPT = ("vocabulary", "precision", "variant", "extra_mib", "hidden_error", "weight_error")
VARIANTS, MIXED = ("ours", "dense", "liger", "liger compiled", "trl"), "ours, weights fp32"
"""In the last one only the hidden states are bf16, as with autocast."""
NAMES = {"ours": "capgap", "dense": "whole logits", "liger": "Liger", "liger compiled": "Liger, compiled", "trl": "TRL"}
CHUNK = 128
"""Rows that Liger takes at once: its default of 1024 would be all."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What one row measures."""

    vocabulary: int
    rows: int
    precision: str = PRECISIONS[0]
    dtype: str = "float32"
    hidden: int = 256
    teacher_hidden: int = 512
    gap: float | None = None
    """The teacher is the student with so much noise beside its head; ``None``: the two have nothing in common."""
    threads: int = 1
    device: str = "cpu"


@dataclass(frozen=True)
class Inputs:
    """Both models at their last linear map: hidden states ``(r, h)`` and weights ``(v, h)``."""

    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    keep: Tensor


def inputs(case: Case) -> Inputs:
    """Draw them; in place, so that what a process needed at most is what it holds."""
    draw, dtype = torch.Generator().manual_seed(0), getattr(torch, case.dtype)

    def normal(rows: int, width: int, scale: float = 1.0) -> Tensor:
        return torch.randn(rows, width, generator=draw).mul_(scale)

    hidden = normal(case.rows, case.hidden)
    weight = normal(case.vocabulary, case.hidden, case.hidden**-0.5)
    if case.gap is None:
        other = normal(case.rows, case.teacher_hidden)
        theirs = normal(case.vocabulary, case.teacher_hidden, case.teacher_hidden**-0.5)
    else:
        other, theirs = hidden, normal(case.vocabulary, case.hidden, case.gap * case.hidden**-0.5).add_(weight)
    drawn = [x.to(case.device, dtype).detach() for x in (hidden, weight, other, theirs)]
    keep = torch.arange(case.rows, device=case.device) % 4 != 0
    return Inputs(drawn[0].requires_grad_(), *drawn[1:], keep=keep)


def ours(x: Inputs) -> Tensor:
    """Return the mean over the kept rows, as the others below do."""
    teacher = vocabulary_sums.Head(x.teacher_hidden, x.teacher_weight)
    return vocabulary_losses.linear_divergence(x.hidden, x.weight, teacher, keep=x.keep) / x.keep.sum()


def dense(x: Inputs) -> Tensor:
    with torch.no_grad():
        teacher = x.teacher_hidden @ x.teacher_weight.T
    student = x.hidden @ x.weight.T
    log_q, log_p = (F.log_softmax(z[x.keep].float(), dim=-1) for z in (student, teacher))
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def loss_of(variant: str, folder: str | None) -> Callable[[Inputs], Tensor]:
    if variant == "dense" or variant.startswith("ours"):
        return dense if variant == "dense" else ours
    sys.path[:0] = [folder] if folder else []
    if variant == "trl":
        divergence = importlib.import_module("trl.experimental.gkd").GKDTrainer.generalized_jsd_loss

        def of(x: Inputs) -> Tensor:
            with torch.no_grad():
                teacher = x.teacher_hidden @ x.teacher_weight.T
            labels = torch.where(x.keep, 0, -100)
            return divergence((x.hidden @ x.weight.T)[None], teacher[None], labels[None], beta=0.0)

        return of
    loss = importlib.import_module("liger_kernel.chunked_loss").LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=variant == "liger compiled", chunk_size=CHUNK
    )
    return lambda x: loss(x.hidden, x.weight, x.teacher_hidden, x.teacher_weight, torch.where(x.keep, 0, -100))


def truth(x: Inputs) -> tuple[Tensor, Tensor]:
    """Return the gradients in fp64."""
    w, w_t = x.weight.detach().double(), x.teacher_weight.double()
    to_hidden, to_weight = torch.zeros_like(x.hidden, dtype=torch.float64), torch.zeros_like(w)
    for rows in x.keep.nonzero()[:, 0].split(64):
        h = x.hidden.detach()[rows].double()
        d = torch.softmax(h @ w.T, -1) - torch.softmax(x.teacher_hidden[rows].double() @ w_t.T, -1)
        d /= x.keep.sum()
        to_hidden[rows] = d @ w
        to_weight.addmm_(d.T, h)
    return to_hidden, to_weight


class Bench:
    """One variant at one case, in a process of its own."""

    def __init__(self, variant: str, case: Case, folder: str | None) -> None:
        torch.set_num_threads(case.threads)
        torch.set_float32_matmul_precision(case.precision)
        self._loss, x, self._device = loss_of(variant, folder), inputs(case), case.device
        weights = [y.detach().float() if variant == MIXED else y for y in (x.weight, x.teacher_weight)]
        self._inputs = replace(x, weight=weights[0].requires_grad_(), teacher_weight=weights[1])

    def step(self) -> dict[str, float]:
        """Return the time of one step, after which the gradients are there."""
        self._inputs.hidden.grad = self._inputs.weight.grad = None
        clock = Clock(self._device)
        self._loss(self._inputs).backward()
        return clock.spent()

    def memory(self) -> dict[str, float]:
        """Return what a step needs at most beside its inputs, its gradients included."""
        self._inputs.hidden.grad = self._inputs.weight.grad = None
        if self._device != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            self.step()
            return {"extra_mib": (torch.cuda.max_memory_allocated() - held) / 2**20}
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is the present again
        begun = resident("VmRSS")
        self.step()
        return {"extra_mib": (resident("VmHWM") - begun) / 1024}

    def errors(self) -> dict[str, float]:
        """Return the errors of a step's gradients beside their size."""
        self.step()
        x = self._inputs
        pairs: Any = zip((x.hidden.grad, x.weight.grad), truth(x), strict=True)
        hidden, weight = (float((a.double() - b).norm() / b.norm()) for a, b in pairs)
        return {"hidden_error": hidden, "weight_error": weight, "grad_error": max(hidden, weight)}


def resident(what: str) -> int:
    """Return the memory of this process in KiB; ``ru_maxrss`` would begin with that of the process it came from."""
    lines = Path("/proc/self/status").read_text(encoding="utf8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))


def serve(pipe: Connection, *given: Any) -> None:
    """Do what is asked through the pipe; begin by saying why that is not possible, or nothing."""
    try:
        bench = Bench(*given)
        bench.step()  # compiles, reserves and warms up
    except (ImportError, RuntimeError) as error:
        return pipe.send(f"{type(error).__name__}: {error}")
    pipe.send(None)
    while asked := pipe.recv():
        pipe.send(getattr(bench, asked)())
    return None


def measured(names: Sequence[str], case: Case, folder: str | None, *, steps: int) -> list[dict[str, Any]]:
    """Return a row for each step of each variant, or for no steps one for each variant with its errors alone."""
    context, pipes = multiprocessing.get_context("spawn"), {}
    with ExitStack() as stack:
        for name in names:
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, name, case, folder))
            process.start()
            stack.callback(process.join)
            if (reason := here.recv()) is None:
                pipes[name] = here
                stack.callback(here.send, None)
            else:
                say(f"{name} is left out: {reason}")

        def answer(name: str, asked: str) -> dict[str, Any]:
            pipes[name].send(asked)
            return pipes[name].recv()

        known = {name: {"variant": name, "repeat": 0, **asdict(case), **answer(name, "errors")} for name in pipes}
        if not steps:
            return [*known.values()]
        known = {name: {**row, **answer(name, "memory")} for name, row in known.items()}
        turns = [(repeat, name) for repeat in range(steps) for name in list(pipes)[:: -1 if repeat % 2 else 1]]
        return [{**known[name], "repeat": repeat, **answer(name, "step")} for repeat, name in turns]


@cache
def say(text: str) -> None:
    print(text, file=sys.stderr)


def rows_of(repeats: int, threads: int, folder: str | None = None, device: str = "cpu") -> list[dict[str, Any]]:
    """Return a row for each step of each variant and size, and one for each measurement of errors alone."""
    facts = {"benchmark": NAME, "steps": 1, "masked": 0.25, "torch": torch.__version__}
    facts.update(processor=machine.name(torch.device(device)))
    found, own = [], {"threads": threads, "device": device}
    gpu = device != "cpu"
    if gpu:
        own.update(dtype="bfloat16", hidden=1024, teacher_hidden=4096)
    for (v, r), precision in product(GPU_SIZES if gpu else SIZES, PRECISIONS[: 1 if gpu else 2]):
        found += measured(VARIANTS, Case(vocabulary=v, rows=r, precision=precision, **own), folder, steps=repeats)
    for gap, dtype in product(GAPS, ("float32", "bfloat16")):
        (v, r), *_ = SIZES
        case = Case(vocabulary=v, rows=r, dtype=dtype, gap=gap, threads=threads, device=device)
        names = [*VARIANTS[:3], *([MIXED] if dtype == "bfloat16" else [])]
        found += measured(names, case, folder, steps=0)
    return [{**row, **facts} for row in found]


def summary(frame: Any) -> pd.DataFrame:
    """Return the times with their spread, and the memory, of each variant at each size and precision, beside ours."""
    timed, shown, unit = frame[(frame["benchmark"] == NAME) & frame["gap"].isna()], [], unit_of(frame)
    for _, rows in timed.groupby(["vocabulary", "precision"], sort=False):
        median, first = rows.groupby("variant")[unit].median(), rows.drop_duplicates("variant")
        least = first.set_index("variant")["extra_mib"]["ours"]
        for row in first.to_dict("records"):
            own = rows[rows["variant"] == row["variant"]]
            told = {"seconds": spread(own[unit]), "by_the_clock": spread(own["wall_seconds"])}
            ratios = {"times_ours": median[row["variant"]] / median["ours"], "ours_of_it": least / row["extra_mib"]}
            shown.append({**{name: row[name] for name in KEPT}, **told, **ratios})
    return pd.DataFrame(shown)


def spread(values: Any) -> str:
    return f"{values.median():.3f} s ({values.min():.3f} to {values.max():.3f})"


def tables(frame: Any) -> str:
    """Return both tables: times and memory, and the errors by type and by how close the models are."""
    errors = frame[(frame["benchmark"] == NAME) & frame["gap"].notna()]
    wide = errors.pivot_table(index=["dtype", "variant"], columns="gap", values=[*KEPT[-2:]], sort=False)
    timed = summary(frame).to_string(index=False, float_format="{:.3g}".format)
    return f"{timed}\n\n{wide.to_string(float_format='{:.2e}'.format)}"


def line(frame: Any) -> str:
    """Return what the rows show at the first precision, as a table for the README."""
    shown: Any = summary(frame)
    shown = shown[shown["precision"] == PRECISIONS[0]]
    lines = ["| vocabulary | way | a step | times as long | memory beside the inputs | gradients off by |"]
    lines += ["|---|---|---|---|---|---|"]
    for row in shown.to_dict("records"):
        worst = max(row["hidden_error"], row["weight_error"])
        cells = (f"{row['vocabulary']:,.0f}", NAMES.get(row["variant"], row["variant"]), row["seconds"],
                 f"{row['times_ours']:.2f}", f"{row['extra_mib']:,.0f} MiB", f"{worst:.0e}")  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    timed = frame[frame["gap"].isna()]
    own, rows = timed.iloc[0], ", ".join(f"{n:,}" for n in sorted(set(timed["rows"].astype(int))))
    whose = "GPU" if unit_of(frame) == "device_seconds" else "CPU"
    lines.append(
        f"\n{whose} time of a loss and its gradients, medians (lowest to highest) of {frame['repeat'].max() + 1:.0f} "
        f"steps by turns; {own['dtype']}, {rows} rows, "
        f"a quarter of them masked, {own['threads']:.0f} thread of an {own['processor']}; off from fp64, beside "
        "their norm."
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; publish the rows and write the line where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", metavar="DIR", help="where Liger and TRL are installed")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--publish", action="store_true", help="write the rows and the README's line, too")
    given = parser.parse_args(argv)
    rows = rows_of(given.repeats, given.threads, given.peers, given.device)
    print(tables(pd.DataFrame(rows)))
    if given.publish:
        publish(NAME, rows, line)
    print(line(pd.DataFrame(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
