"""A share of the training rows, with all other parts as they are: what a student is given where data are scarce."""

import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
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
    whole = pq.read_table(data.table("train"))
    order = random.Random(recipe.seed).sample(range(len(whole)), len(whole))
    return Made(summary=with_train(data, whole.take(sorted(order[: recipe.rows])), out_dir))


def with_train(data: Reference, train: pa.Table, out_dir: Path) -> dict[str, Any]:
    """Write the tables of a data stage with other rows in ``train``, and its tokenizer; return the summary."""
    shutil.copytree(data.folder / "model", out_dir / "model")
    for name in data.summary["rows"]:
        if name != "train":
            shutil.copyfile(data.table(name), out_dir / f"{name}.parquet")
    pq.write_table(train, out_dir / "train.parquet", compression="zstd", row_group_size=65536)
    tokens = len(train["input_ids"].combine_chunks().flatten())
    return {
        **data.summary,
        "rows": {**data.summary["rows"], "train": len(train)},
        "tokens": {**data.summary["tokens"], "train": tokens},
    }
