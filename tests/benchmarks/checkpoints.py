"""What keeping the state of a training costs: the same training with checkpoints and without, by turns.

``python tests/benchmarks/checkpoints.py`` writes its rows to ``artifacts/published/benchmarks.parquet`` and their
summary into the README. A BERT of the size of MiniLM (6 layers of width 384, 22.7 million parameters) is trained from
random weights on texts of random words: what a checkpoint costs depends on how large it is and not on what it holds.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from capgap_core import checkpoints, machine, steps, tables, training  # noqa: E402
from capgap_core.batches import Examples  # noqa: E402
from capgap_core.families import bert  # noqa: E402
from capgap_core.progress import Silent  # noqa: E402
from capgap_core.recipes import Execution  # noqa: E402
from capgap_core.records import Reference  # noqa: E402
from flows.results import with_table, write  # noqa: E402

NAME, FILE, README = "checkpoints", ROOT / "artifacts" / "published" / "benchmarks.parquet", ROOT / "README.md"
SIZES = {"layers": 6, "hidden": 384, "heads": 12, "neurons": 1536, "vocabulary": 30522, "labels": 2}
BATCH = 32


class Timed(checkpoints.Checkpoints):
    """Counts what it saves, and the seconds that it takes."""

    saves, seconds, size = 0, 0.0, 0

    def save(self, *args: Any) -> None:
        begun = time.monotonic()
        super().save(*args)
        self.seconds += time.monotonic() - begun
        self.saves += 1
        newest = max(self._folder.glob("step-*"))
        self.size = sum(path.stat().st_size for path in newest.iterdir())


def examples(folder: Path) -> Examples:
    draw = random.Random(0)
    lengths = [draw.randrange(5, 40) for _ in range(4000)]
    columns = {
        "row": list(range(len(lengths))), "label": [float(draw.randrange(2)) for _ in lengths],
        "input_ids": [[draw.randrange(1, SIZES["vocabulary"]) for _ in range(n)] for n in lengths],
        "token_type_ids": [[0] * n for n in lengths],
    }  # fmt: skip
    tables.write_columns(folder / "train.parquet", "examples", columns)
    return Examples(folder / "train.parquet", pad=0, regression=False)


def run(part: Examples, count: int, folder: Path, execution: Execution, *, every: float | None) -> dict[str, Any]:
    """Train for so many steps; return what it took."""
    how = training.Training(
        steps=count, learning_rate=1e-4, batch_size=BATCH, micro_batch=BATCH, weight_decay=0.01, warmup=0.1, clip=5.0,
        dtype=machine.precision("auto", machine.device_of(execution), hidden=SIZES["hidden"]), seed=1,
    )  # fmt: skip
    data = Reference(stage="data", identity="", code="", digest="", path="", summary={"task": "classification"})
    with machine.ready(execution, seed=1) as device, tempfile.TemporaryDirectory(dir=folder) as place:
        model = bert.scratch(**SIZES).to(device).train()
        keeper = Timed(Path(place), every=every, machine={}, progress=Silent()) if every else None
        loss_of = steps.task_loss(model, data, lambda: machine.autocast(device, how.dtype))
        cpu, wall = time.process_time(), time.monotonic()
        for last in training.train(model, part, how, loss_of, device=device, stage=NAME, keeper=keeper):
            tokens = last.tokens
        spent = {"cpu_seconds": time.process_time() - cpu, "wall_seconds": time.monotonic() - wall}
        kept = (keeper.saves, keeper.seconds, keeper.size) if keeper else (0, 0.0, 0)
    names = ("saves", "save_seconds", "bytes")
    return {
        "benchmark": NAME, "variant": f"every {every:g} s" if every else "none", **spent,
        **dict(zip(names, kept, strict=True)), "steps": count, "tokens": tokens, "dtype": how.dtype,
        "device": str(device), "processor": machine.name(device), "threads": machine.threads_of(execution),
        "torch": torch.__version__,
    }  # fmt: skip


def line(frame: pd.DataFrame) -> str:
    """Return what the pairs show, as a sentence for the README."""
    own = frame[frame["benchmark"] == NAME]
    kept, none = (own[own["variant"] != "none"], own[own["variant"] == "none"])
    both = kept.merge(none, on="pair", suffixes=("", "_none"))
    extra = {unit: 100 * (both[f"{unit}_seconds"] / both[f"{unit}_seconds_none"] - 1) for unit in ("cpu", "wall")}
    saving = 100 * kept["save_seconds"] / kept["wall_seconds"]
    first, took = kept.iloc[0], none["wall_seconds"].median()
    return (
        f"Measured in {len(both)} pairs of runs with and without, {first['steps']} steps and about {took:.0f} s\n"
        f"each, 22.7 million parameters, {first['bytes'] / 1e6:.0f} MB a checkpoint, {first['variant']} "
        f"({first['dtype']}, {first['threads']} threads of an {first['processor']}), as median\n"
        f"(lowest to highest): CPU time {told(extra['cpu'], '+')}, wall clock {told(extra['wall'], '+')};\n"
        f"{told(saving)} of the time is spent in saving. `make bench` measures it again."
    )


def told(values: "pd.Series[float]", sign: str = "") -> str:
    """Return per cents with their spread."""
    return f"{values.median():{sign}.1f}% ({values.min():{sign}.1f}% to {values.max():{sign}.1f}%)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pairs, or only write the line of those that are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=125.0, help="about how long a run takes")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between checkpoints")
    parser.add_argument("--threads", type=int, default=None)
    given = parser.parse_args(argv)
    execution = Execution(threads=given.threads)
    with tempfile.TemporaryDirectory(dir=ROOT / "artifacts") as name:
        folder = Path(name)
        part = examples(folder)
        trial = run(part, 100, folder, execution, every=None)  # warms up, too
        count = max(1, round(100 * given.seconds / trial["wall_seconds"]))
        rows = []
        for pair in range(given.pairs):
            for every in (given.every, None):
                rows.append({"pair": pair, **run(part, count, folder, execution, every=every)})
                print({k: rows[-1][k] for k in ("pair", "variant", "cpu_seconds", "wall_seconds", "save_seconds")})
    held = [pq.read_table(FILE).to_pandas()] if FILE.is_file() else []
    frame = pd.concat([*(old[old["benchmark"] != NAME] for old in held), pd.DataFrame(rows)], ignore_index=True)
    write(FILE, frame)
    README.write_text(with_table(README.read_text(encoding="utf8"), line(frame), name=NAME), encoding="utf8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
