"""Texts without labels, which the teacher labels, added to the training rows."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from capgap_core import models, scoring, tables, tokens
from capgap_core.batches import Examples
from capgap_core.errors import InputFaults, StageFailed
from capgap_core.loading import Cache
from capgap_core.machine import ready
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Made, Reference
from capgap_core.stages.part import with_train
from capgap_core.unlabelled import read_unlabelled


class Source(BaseModel):
    """Where the texts lie; what they hold is in the recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    cache: str


class Recipe(BaseModel):
    """What moves the rows, beside the teacher."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    content: str
    """Digest of the texts."""
    columns: tuple[str, ...]
    max_length: int
    source: Source


def run(
    recipe: Recipe, inputs: Mapping[str, Input], out_dir: Path, *, execution: Execution, progress: Progress
) -> Made:
    """Write the tables of a data stage with more rows in ``train``, and its tokenizer.

    A new row has the class that the teacher gives most to, or the teacher's score, as its label. What stands in another
    part, to the token and in either order of a pair, is left out: nothing that is measured on may be learned from.
    """
    data = inputs["data"]
    assert isinstance(data, Reference)
    where = recipe.source
    try:
        found = read_unlabelled(where.path, recipe.columns, cache=Cache(Path(where.cache)))
    except InputFaults as error:
        raise StageFailed("pseudo_labels", f"{where.path} cannot be read any more", "Start the run again.") from error
    if found.content != recipe.content:
        raise StageFailed("pseudo_labels", f"{where.path} changed after the run began", "Start the run again.")
    others = [name for name in data.summary["rows"] if name != "train"]
    tokenizer = models.load_tokenizer(data.folder / "model")
    encoded = tokens.encode(tokenizer, found.texts, max_length=recipe.max_length)
    special = set(tokenizer.all_special_ids)
    known: set[frozenset[tuple[int, ...]]] = set()
    for name in others:
        held = pq.read_table(data.table(name)).to_pydict()
        known |= {_said(*row, special) for row in zip(held["input_ids"], held["token_type_ids"], strict=True)}
    rows = zip(encoded["input_ids"], encoded["token_type_ids"], strict=True)
    fresh = [i for i, (ids, types) in enumerate(rows) if _said(ids, types, special) not in known]
    train = pq.read_table(data.table("train"))
    if fresh:
        chosen = {name: [values[i] for i in fresh] for name, values in encoded.items()}
        first = 1 + int(np.asarray(train["row"]).max())
        columns = {"row": [first + i for i in fresh], "label": [0.0] * len(fresh), **chosen}
        adapter = models.family(recipe.family)
        with ready(execution) as device:
            model = models.load(adapter, inputs["teacher"])
            columns["label"] = _labels(adapter, model, columns, data, device)
        train = pa.concat_tables([train, pa.table(columns, schema=train.schema)])
    progress.message(f"{len(fresh)} of {len(encoded['input_ids'])} texts labelled by the teacher")
    counts = {"pseudo_labelled": len(fresh), "in_other_parts": len(encoded["input_ids"]) - len(fresh)}
    return Made(summary={**with_train(data, train, out_dir), **counts})


def _labels(
    family: ModuleType, model: nn.Module, columns: dict[str, list[Any]], data: Reference, device: torch.device
) -> list[float]:
    """Return what a teacher says of each row: the class it gives most to, or its score."""
    regression = data.summary["task"] == "regression"
    with tempfile.TemporaryDirectory() as place:
        tables.write_columns(Path(place) / "rows.parquet", "examples", columns)
        part = Examples(Path(place) / "rows.parquet", pad=data.summary["pad"], regression=regression)
    logits = scoring.logits_of(family, model, part, device=device)
    return (logits[:, 0] if regression else logits.argmax(1)).astype(float).tolist()


def _said(ids: list[int], types: list[int], special: set[int]) -> frozenset[tuple[int, ...]]:
    """Return the one or two texts of a row, whatever their order."""
    whole: tuple[list[int], list[int]] = ([], [])
    for token, kind in zip(ids, types, strict=True):
        if token not in special:
            whole[kind > 0].append(token)
    return frozenset(map(tuple, whole))
