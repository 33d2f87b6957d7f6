"""Texts without labels, which the teacher labels, added to the training rows."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from capgap_core import models, scoring, tables, tokens
from capgap_core.batches import Examples
from capgap_core.errors import InputFaults, StageFailed
from capgap_core.loading import Cache
from capgap_core.machine import ready
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Made, Reference
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
    shutil.copytree(data.folder / "model", out_dir / "model")
    others = [name for name in data.summary["rows"] if name != "train"]
    for name in others:
        shutil.copyfile(data.table(name), out_dir / f"{name}.parquet")
    tokenizer = models.load_tokenizer(out_dir / "model")
    encoded = tokens.encode(tokenizer, found.texts, max_length=recipe.max_length)
    special = set(tokenizer.all_special_ids)
    known: set[frozenset[tuple[int, ...]]] = set()
    for name in others:
        held = pq.read_table(data.table(name)).to_pydict()
        known |= {_said(*row, special) for row in zip(held["input_ids"], held["token_type_ids"], strict=True)}
    rows = zip(encoded["input_ids"], encoded["token_type_ids"], strict=True)
    fresh = [i for i, (ids, types) in enumerate(rows) if _said(ids, types, special) not in known]
    labelled = out_dir / "train.parquet"
    whole = pq.read_table(data.table("train"))
    if fresh:
        first = 1 + int(np.asarray(whole["row"]).max())
        columns = {name: [values[i] for i in fresh] for name, values in encoded.items()}
        columns |= {"row": [first + i for i in fresh], "label": [0.0] * len(fresh)}
        tables.write_columns(labelled, "examples", columns)
        part = Examples(labelled, pad=data.summary["pad"], regression=data.summary["task"] == "regression")
        with ready(execution) as device:
            model = models.load(models.family(recipe.family), inputs["teacher"])
            logits = scoring.logits_of(model, part, device=device)
        labels = logits[:, 0] if data.summary["task"] == "regression" else logits.argmax(1)
        columns["label"] = labels.astype(float).tolist()
        tables.write_columns(labelled, "examples", columns)
        whole = pa.concat_tables([whole, pq.read_table(labelled)])
    pq.write_table(whole, labelled, compression="zstd", row_group_size=65536)
    progress.message(f"{len(fresh)} of {len(encoded['input_ids'])} texts labelled by the teacher")
    summary = {
        **data.summary,
        "rows": {**data.summary["rows"], "train": len(whole)},
        "tokens": {**data.summary["tokens"], "train": len(whole["input_ids"].combine_chunks().flatten())},
        "pseudo_labelled": len(fresh),
        "in_other_parts": len(encoded["input_ids"]) - len(fresh),
    }
    return Made(summary=summary)


def _said(ids: list[int], types: list[int], special: set[int]) -> frozenset[tuple[int, ...]]:
    """Return the one or two texts of a row, whatever their order."""
    both = zip(ids, types, strict=True)
    whole: tuple[list[int], list[int]] = ([], [])
    for token, kind in both:
        if token not in special:
            whole[kind > 0].append(token)
    return frozenset(map(tuple, whole))
