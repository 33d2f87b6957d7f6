"""A share of the training rows, with all other parts as they are: what a student is given where data are scarce."""

import random
import shutil
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Made, Reference


class Recipe(BaseModel):
    """What moves the share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    seed: int


def run(
    recipe: Recipe, inputs: Mapping[str, Input], out_dir: Path, *, execution: Execution, progress: Progress
) -> Made:
    """Write the tables of a data stage with fewer rows in ``train``, and its tokenizer.

    A smaller share of the same seed is part of a larger one.
    """
    data = inputs["data"]
    assert isinstance(data, Reference)
    shutil.copytree(data.folder / "model", out_dir / "model")
    for name in data.summary["rows"]:
        if name != "train":
            shutil.copyfile(data.table(name), out_dir / f"{name}.parquet")
    whole = pq.read_table(data.table("train"))
    order = random.Random(recipe.seed).sample(range(len(whole)), len(whole))
    taken = whole.take(sorted(order[: recipe.rows]))
    pq.write_table(taken, out_dir / "train.parquet", compression="zstd", row_group_size=65536)
    tokens = len(taken["input_ids"].combine_chunks().flatten())
    summary = {
        **data.summary,
        "rows": {**data.summary["rows"], "train": len(taken)},
        "tokens": {**data.summary["tokens"], "train": tokens},
    }
    return Made(summary=summary)
