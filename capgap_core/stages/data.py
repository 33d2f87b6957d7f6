"""Cut the data set into its parts and tokenise each once."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from capgap_core import metrics, tables, tokens
from capgap_core.errors import StageFailed
from capgap_core.given_files import tokenizer_of
from capgap_core.loading import Cache
from capgap_core.parts import Cut, Cutting, cut_parts, overlap
from capgap_core.progress import Progress
from capgap_core.reading import read_corpus
from capgap_core.recipes import DataRecipe, Execution, Task
from capgap_core.records import Input, Made


class Source(BaseModel):
    """Where the data set and the tokenizer lie; what they hold is in the recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    task: Task
    data: DataRecipe
    split: str
    cache: str
    tokenizer: str | None


class Recipe(BaseModel):
    """What moves the parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    content: str
    """Digest of the data set's content."""
    tokenizer: str
    """Digest of the tokenizer's files, or ``trained``."""
    vocabulary: int | None
    """Word pieces of a tokenizer that is trained here; null where one is given."""
    task: Literal["classification", "regression"]
    metric: str
    columns: tuple[str, ...]
    split: str
    max_length: int
    train_rows: int | None
    selection_rows: int
    calibration_rows: int
    seed: int
    protocol: Literal["capgap", "paper"]
    source: Source


def run(
    recipe: Recipe, inputs: Mapping[str, Input], out_dir: Path, *, execution: Execution, progress: Progress
) -> Made:
    """Write ``train``, ``calibration``, ``selection`` and ``evaluation`` as token ids, and the tokenizer."""
    where = recipe.source
    cache = Cache(Path(where.cache))
    corpus = read_corpus(where.dataset, task=where.task, data=where.data, split=where.split, cache=cache)
    if corpus.digest != recipe.content:
        raise StageFailed("data", "the data set has changed since the run began", "Start the run again.")
    asked = {field.name: getattr(recipe, field.name) for field in fields(Cutting)}
    parts, facts = cut_parts(corpus, Cutting(**asked))
    facts["overlap"] = overlap(parts, recipe.protocol)
    progress.message(", ".join(f"{name} {len(part.labels)}" for name, (part, _) in parts.items()))
    if where.tokenizer is None:
        tokenizer = tokens.trained(
            parts["train"][0].texts, vocabulary=recipe.vocabulary or 0, max_length=recipe.max_length
        )
    else:
        if tokenizer_of(Path(where.tokenizer)) != recipe.tokenizer:
            raise StageFailed("data", "the tokenizer's files changed after the run began", "Start the run again.")
        tokenizer = tokens.given(where.tokenizer)
    tokens.save(tokenizer, out_dir / "model", given=where.tokenizer)
    lengths: dict[str, int] = {}
    for name, (part, rows) in parts.items():
        encoded = tokens.encode(tokenizer, part.texts, max_length=recipe.max_length)
        lengths[name] = sum(map(len, encoded["input_ids"]))
        columns = {"row": rows, "label": [float(x) for x in part.labels], **encoded}
        tables.write_columns(out_dir / f"{name}.parquet", "examples", columns)
    summary = {
        "task": corpus.task,
        "metric": corpus.metric,
        "labels": list(corpus.labels),
        "columns": [*corpus.text_columns, corpus.label_column],
        "eval_name": corpus.eval_name,
        "rows": {name: len(rows) for name, (_, rows) in parts.items()},
        "tokens": lengths,
        "vocabulary": len(tokenizer),
        "pad": tokenizer.pad_token_id,
        "constant": _constants(corpus.metric, parts),
        "notes": [*corpus.notes, *facts.pop("notes")],
        **facts,
    }
    return Made(summary=summary)


def _constants(metric: str, parts: Cut) -> dict[str, float]:
    train = np.asarray(parts["train"][0].labels)
    return {
        name: metrics.constant(metric, train, np.asarray(parts[name][0].labels)) for name in ("selection", "evaluation")
    }
