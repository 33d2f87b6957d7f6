"""What an epoch of distillation costs with mixtures, beside plain distillation on the same batches.

``python tests/benchmarks/mixtures.py``; ``--publish`` as in ``distillation.py``. The student has half the teacher's
layers; the teacher's predictions of the examples are kept, of mixtures it is asked at every step.

The bounds are ratios of matrix products alone: a mixture goes forward and back through the student (6 FLOPs a weight
and token, as the example itself does), and forward through the teacher (2) where that is asked about it.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "5000")

import loops
import pandas as pd
import torch
from turns import by_turns, parser_of, publish, ratio, running, shared, told

from capgap_core import machine

NAME = "mixtures"
BOUNDS = {"kd_sm": 2.0, "kd_tmkd": 2.0 + 2 / 3, "mixkd": 2.0 + 2 / 3}
"""Times the products of ``kd``, whose student has half the teacher's layers: 3s, and 3s or 2s + 3s for a mixture."""


def rows_of(case: dict[str, Any], repeats: int) -> list[dict[str, Any]]:
    """Return the blocks of plain distillation and of the arms with mixtures, by turns."""
    ways = [(arm, loops.mixing, {"arm": arm, "case": case}) for arm in ("kd", *BOUNDS)]
    with running(ways) as group:
        return by_turns(group, steps=32, repeats=repeats, warm=32)


def line(frame: pd.DataFrame) -> str:
    """Return what the rows show, as a table for the README."""
    lines = ["| arm | times as long as `kd` | by products |", "|---|---|---|"]
    lines += [f"| `{arm}` | {told(ratio(frame, arm, 'kd'))} | {bound:.2f} |" for arm, bound in BOUNDS.items()]
    first = frame.iloc[0]
    lines.append(
        f"\nMedians (lowest to highest) of the CPU time of {int(frame['repeat'].max()) + 1} repeats by turns on the "
        f"same batches, {first['dataset']}, {int(first['threads'])} thread of an {first['processor']}, "
        f"torch {first['torch']}."
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and publish where that is asked for."""
    parser = parser_of(__doc__)
    given = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    data = given.data or shared("data", "glue", "sst-2")
    with tempfile.TemporaryDirectory() as temporary:
        case = {
            "dataset": data, "teacher": given.teacher or shared("weights", "all-MiniLM-L6-v2"), "rows": given.rows,
            "root": given.root or temporary, "threads": given.threads,
        }  # fmt: skip
        rows = rows_of(case, given.repeats)
    facts = {
        "dataset": Path(data).name, "processor": machine.name(torch.device("cpu")), "threads": given.threads,
        "torch": torch.__version__,
    }  # fmt: skip
    frame = pd.DataFrame([{**row, **facts} for row in rows])
    print(line(frame))
    if given.publish:
        publish(NAME, frame.to_dict("records"), line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
