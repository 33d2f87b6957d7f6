"""Read text for language models, tokenise it once, and keep its documents in three parts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from capgap_core import hmm, lm_tokens, tables, tokens
from capgap_core.documents import Document
from capgap_core.errors import StageFailed
from capgap_core.given_files import tokenizer_of
from capgap_core.lm_text import read_text
from capgap_core.loading import Cache
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Made

Part = Literal["train", "dev", "test"]


class Source(BaseModel):
    """Where the text and the tokenizer lie; what they hold is in the recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    splits: dict[Part, str] | None
    cache: str
    tokenizer: str | None
    """The folder of a tokenizer that is given."""
    synthetic_bytes: int | None = None
    """Of the training part of ``hmm``."""


class Recipe(BaseModel):
    """What moves the parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    content: str
    """Digest of the text."""
    column: str | None
    tokenizer: str
    """``bytes``, ``trained``, or the digest of the files of one that is given."""
    vocabulary: int | None
    """Tokens of a tokenizer that is trained here."""
    seed: int
    """Draws what is held out where no part is, and the order of the documents."""
    source: Source


def run(
    recipe: Recipe, inputs: Mapping[str, Input], out_dir: Path, *, execution: Execution, progress: Progress
) -> Made:
    """Write ``train``, ``valid`` and ``test`` as token ids, and the tokenizer."""
    where = recipe.source
    text = read_text(
        where.dataset, column=recipe.column, splits=where.splits, seed=recipe.seed, cache=Cache(Path(where.cache)),
        synthetic_bytes=where.synthetic_bytes,
    )  # fmt: skip
    if text.digest != recipe.content:
        raise StageFailed("text", "the text has changed since the run began", "Start the run again.")
    tokenizer = _tokenizer(recipe, [document.text for document in text.parts["train"]])
    tokens.save(tokenizer, out_dir / "model", given=where.tokenizer)
    sources = sorted({document.source for documents in text.parts.values() for document in documents})
    counts: dict[str, int] = {}
    for part, documents in text.parts.items():
        counts[part] = _write(out_dir / f"{part}.parquet", tokenizer, documents, sources)
        progress.message(f"{part}: {len(documents):,} documents, {counts[part]:,} tokens")
    summary = {
        "sources": sources, "tokens": counts, "bytes": text.sizes, "vocabulary": lm_tokens.vocabulary_of(tokenizer),
        "documents": {part: len(documents) for part, documents in text.parts.items()}, "empty": text.empty,
        "repeated": text.repeated, "end": tokenizer.eos_token_id, "notes": list(text.notes),
    }  # fmt: skip
    if where.dataset == hmm.NAME:
        summary["source_nats"] = hmm.source_nats(text.parts)
    return Made(summary=summary)


def _tokenizer(recipe: Recipe, texts: list[str]) -> lm_tokens.PreTrainedTokenizerFast:
    if recipe.tokenizer == "bytes":
        return lm_tokens.byte_tokenizer()
    if recipe.tokenizer == "trained":
        return lm_tokens.trained_bpe(texts, recipe.vocabulary or 0)
    assert recipe.source.tokenizer is not None
    if tokenizer_of(Path(recipe.source.tokenizer)) != recipe.tokenizer:
        raise StageFailed("text", "the tokenizer's files changed after the run began", "Start the run again.")
    return lm_tokens.given(recipe.source.tokenizer)


def _write(
    path: Path, tokenizer: lm_tokens.PreTrainedTokenizerFast, documents: list[Document], sources: list[str]
) -> int:
    """Write the documents of a part in their order; return the tokens."""
    ids, starts = lm_tokens.encode(tokenizer, (document.text for document in documents))
    numbers = {source: number for number, source in enumerate(sources)}
    columns = {
        "document": np.arange(len(documents)), "source": [numbers[document.source] for document in documents],
        "input_ids": pa.LargeListArray.from_arrays(pa.array(starts), pa.array(ids.astype(np.int32))),
    }  # fmt: skip
    tables.write_columns(path, "documents", columns)
    return len(ids)
