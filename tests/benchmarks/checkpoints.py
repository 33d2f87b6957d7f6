"""What keeping the state of a training costs: blocks of steps with a checkpoint at the end and without, by turns.

A machine's speed drifts by more than what a checkpoint a minute costs, so that whole runs could not show it: blocks of
some seconds that follow one another are compared, the one with the checkpoint first and last in turn.

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
from capgap_core.outputs import computed  # noqa: E402
from capgap_core.progress import Silent  # noqa: E402
from capgap_core.recipes import Execution  # noqa: E402
from capgap_core.records import Reference  # noqa: E402
from flows.results import with_table, write  # noqa: E402

NAME, FILE, README = "checkpoints", ROOT / "artifacts" / "published" / "benchmarks.parquet", ROOT / "README.md"
SIZES = {"layers": 6, "hidden": 384, "heads": 12, "neurons": 1536, "vocabulary": 30522, "labels": 2}
BATCH = 32
EVERY = Execution().checkpoint_seconds


class Turns(checkpoints.Checkpoints):
    """Keeps the state at the end of one of each two blocks of steps."""

    def __init__(self, folder: Path, size: int) -> None:
        super().__init__(folder, every=1.0, machine={}, progress=Silent())
        self._size, self._step = size, 0
        self.seconds = 0.0
        """Of the newest one."""

    def due(self) -> bool:
        self._step += 1
        return self._step % self._size == 0 and keeps((self._step - 1) // self._size)

    def save(self, *args: Any) -> None:
        begun = time.monotonic()
        super().save(*args)
        self.seconds = time.monotonic() - begun

    @property
    def size(self) -> int:
        """Bytes of the newest checkpoint."""
        return sum(path.stat().st_size for path in max(self._folder.glob("step-*")).iterdir())


def keeps(block: int) -> bool:
    """Return whether a block ends with a checkpoint: the first of every other pair, the second of the rest."""
    return (block % 2 == 0) == (block // 2 % 2 == 0)


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


def blocks(part: Examples, size: int, count: int, folder: Path, execution: Execution) -> list[dict[str, Any]]:
    """Train for so many blocks of steps; return a row for each."""
    dtype = machine.precision("auto", machine.device_of(execution), hidden=SIZES["hidden"])
    how = training.Training(
        steps=size * count, learning_rate=1e-4, batch_size=BATCH, room=None, per_epoch=len(part) // BATCH,
        micro_batch=BATCH, weight_decay=0.01, warmup=0.1, clip=5.0, dtype=dtype, seed=1,
    )  # fmt: skip
    data = Reference(stage="data", identity="", code="", digest="", path="", summary={"task": "classification"})
    rows: list[dict[str, Any]] = []
    with machine.ready(execution, seed=1) as device, tempfile.TemporaryDirectory(dir=folder) as place:
        facts = {
            "benchmark": NAME, "steps": size, "dtype": how.dtype, "device": str(device),
            "processor": machine.name(device), "threads": machine.threads_of(execution), "torch": torch.__version__,
        }  # fmt: skip
        model = bert.scratch(**SIZES).to(device).train()
        keeper = Turns(Path(place), size)
        loss_of = steps.task_loss(computed(bert, model, how.dtype, device), data)
        cpu, wall = time.process_time(), time.monotonic()
        for step in training.train(model, part, how, loss_of, device=device, stage=NAME, keeper=keeper):
            if step.step % size:
                continue
            block = step.step // size - 1
            kept = keeps(block)
            spent = {"cpu_seconds": time.process_time() - cpu, "wall_seconds": time.monotonic() - wall}
            saved = (
                {"save_seconds": keeper.seconds, "bytes": keeper.size} if kept else {"save_seconds": 0.0, "bytes": 0}
            )
            rows.append({"pair": block // 2, "variant": "kept" if kept else "none", **spent, **saved, **facts})
            cpu, wall = time.process_time(), time.monotonic()
    return rows


def line(frame: pd.DataFrame) -> str:
    """Return what the pairs show, as an item for the README's list."""
    own = frame[frame["benchmark"] == NAME]
    kept, none = (own[own["variant"] == variant] for variant in ("kept", "none"))
    both = kept.merge(none, on="pair", suffixes=("", "_none"))
    extra = {unit: both[f"{unit}_seconds"] - both[f"{unit}_seconds_none"] for unit in ("cpu", "wall")}
    first, saving = kept.iloc[0], kept["save_seconds"]
    share, size = 100 * saving.median() / EVERY, first["bytes"] / 1e6
    return (
        f"* One in {EVERY:.0f} seconds costs {share:.1f}% of the time: for 22.7 million parameters ({size:.0f} MB)\n"
        f"  saving took {told(saving)}. A block of {first['steps']:.0f} steps with it at the end took\n"
        f"  {told(extra['wall'])} longer than the one beside it without ({told(extra['cpu'])} of CPU time):\n"
        f"  medians (lowest to highest, with the machine's own drift) of {len(both)} pairs, by turns; "
        f"{first['dtype']}, {first['threads']:.0f} threads of an\n  {first['processor']}; `make bench`."
    )


def told(values: "pd.Series[float]") -> str:
    """Return seconds with their spread."""
    return f"{values.median():.2f} s ({values.min():.2f} to {values.max():.2f})"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, publish the rows, and write the line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=6.0, help="about how long a block takes")
    parser.add_argument("--threads", type=int, default=None)
    given = parser.parse_args(argv)
    execution = Execution(threads=given.threads)
    with tempfile.TemporaryDirectory(dir=ROOT / "artifacts") as name:
        folder = Path(name)
        part = examples(folder)
        trial = blocks(part, 20, 4, folder, execution)  # warms up, too
        size = max(1, round(20 * given.seconds / min(row["wall_seconds"] for row in trial)))
        rows = blocks(part, size, 2 * (given.pairs + 1), folder, execution)[2:]  # the first pair begins cold
    held = [pq.read_table(FILE).to_pandas()] if FILE.is_file() else []
    frame = pd.concat([*(old[old["benchmark"] != NAME] for old in held), pd.DataFrame(rows)], ignore_index=True)
    write(FILE, frame)
    README.write_text(with_table(README.read_text(encoding="utf8"), line(frame), name=NAME), encoding="utf8")
    print(line(frame))
    return 0


if __name__ == "__main__":
    sys.exit(main())
