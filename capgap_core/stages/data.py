"""Cut the data set into its parts and tokenise each once."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from capgap_core import metrics, splits, tables, tokens
from capgap_core.corpus import Corpus, Part, read_corpus
from capgap_core.errors import StageFailed
from capgap_core.progress import Progress
from capgap_core.recipes import DataRecipe, Execution, Task
from capgap_core.records import Input, Made

PARTS = ("train", "calibration", "selection", "evaluation")
SHARE = 10
"""A part cut from train is at most the tenth part of it."""


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
    corpus = read_corpus(where.dataset, task=where.task, data=where.data, split=where.split, cache=Path(where.cache))
    if corpus.digest != recipe.content:
        raise StageFailed("data", "the data set has changed since the run began", "Start the run again.")
    parts, facts = cut_parts(corpus, recipe)
    progress.message(", ".join(f"{name} {len(part.labels)}" for name, (part, _) in parts.items()))
    if where.tokenizer is None:
        tokenizer = tokens.trained(
            parts["train"][0].texts, vocabulary=recipe.vocabulary or 0, max_length=recipe.max_length
        )
    else:
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


Cut = dict[str, tuple[Part, list[int]]]
"""Part → its texts and labels, and the row of each in the file it comes from."""


def cut_parts(corpus: Corpus, recipe: Recipe) -> tuple[Cut, dict[str, Any]]:
    """Return the four parts, and what is known of how they were cut."""
    whole = corpus.parts["train"]
    rows: Sequence[int] = range(len(whole.labels))
    facts: dict[str, Any] = {"notes": [], "cuts": {}}
    parts: Cut = {}
    if "eval" in corpus.parts:
        given = corpus.parts["eval"]
        parts["evaluation"] = (given, list(range(len(given.labels))))
    else:
        chosen, rows = _cut(whole, rows, _tenth(rows, len(rows)), recipe, facts, "evaluation")
        parts["evaluation"] = (_take(whole, chosen), chosen)
    if recipe.protocol == "paper":
        parts["selection"] = parts["calibration"] = parts["evaluation"]
        facts["notes"].append("protocol=paper: importance, choice and report all read the evaluation part")
    else:
        if "selection" in corpus.parts:
            given = corpus.parts["selection"]
            parts["selection"] = (given, list(range(len(given.labels))))
        else:
            chosen, rows = _cut(whole, rows, _tenth(rows, recipe.selection_rows), recipe, facts, "selection")
            parts["selection"] = (_take(whole, chosen), chosen)
        chosen, rows = _calibration(whole, rows, _tenth(rows, recipe.calibration_rows), recipe.seed + 2)
        parts["calibration"] = (_take(whole, chosen), chosen)
    if recipe.train_rows is not None and recipe.train_rows < len(rows):
        rows = sorted(random.Random(recipe.seed).sample(list(rows), recipe.train_rows))
    parts["train"] = (_take(whole, rows), list(rows))
    facts["overlap"] = _overlap(parts)
    return {name: parts[name] for name in PARTS}, facts


def _tenth(rows: Sequence[int], most: int) -> int:
    return max(1, min(most, len(rows) // SHARE))


def _take(part: Part, rows: Sequence[int]) -> Part:
    texts = tuple([column[i] for i in rows] for column in part.texts)
    return Part(texts=texts, labels=[part.labels[i] for i in rows], files=part.files)


def _cut(
    whole: Part, rows: Sequence[int], size: int, recipe: Recipe, facts: dict[str, Any], name: str
) -> tuple[list[int], list[int]]:
    """Cut a part by group out of some rows; note how."""
    here = _take(whole, rows)
    salt = PARTS.index(name)
    classes = [int(label) for label in here.labels] if recipe.task == "classification" else None
    cut = splits.cut(here.texts, rows=size, seed=recipe.seed + salt, labels=classes)
    facts["cuts"][name] = {
        "how": cut.how, "groups": cut.groups, "largest_group": cut.largest_group, "left_out": len(cut.dropped),
    }  # fmt: skip
    if cut.dropped:
        facts["notes"].append(f"{len(cut.dropped)} training rows overlap the {name} part and were left out")
    return [rows[i] for i in cut.part], [rows[i] for i in cut.train]


def _calibration(whole: Part, rows: Sequence[int], size: int, seed: int) -> tuple[list[int], list[int]]:
    """Draw calibration rows; equal texts stay on one side, since importance is not a score of anything."""
    keys: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        keys.setdefault(tuple(column[row] for column in whole.texts), []).append(row)
    order = list(keys)
    random.Random(seed).shuffle(order)
    chosen: set[int] = set()
    for key in order:
        if len(chosen) >= size:
            break
        chosen.update(keys[key])
    return sorted(chosen), [row for row in rows if row not in chosen]


def _overlap(parts: Cut) -> dict[str, int]:
    """Return how many rows of each held-out part overlap a training row."""
    train = parts["train"][0].texts
    return {name: splits.overlapping(parts[name][0].texts, train) for name in ("selection", "evaluation")}


def _constants(metric: str, parts: Cut) -> dict[str, float]:
    train = np.asarray(parts["train"][0].labels)
    return {
        name: metrics.constant(metric, train, np.asarray(parts[name][0].labels)) for name in ("selection", "evaluation")
    }
