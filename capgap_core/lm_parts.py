"""Parts of the stage ``text`` as rows, and what a model loses on those that it has not seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from capgap_core import lm_model, lm_tokens, models, tables
from capgap_core.errors import InputFaults
from capgap_core.lm_batches import LmRows
from capgap_core.lm_losses import ALL, HeldOut, held_out
from capgap_core.lm_rows import Stream
from capgap_core.records import Reference

HELD_OUT = ("valid", "test")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a model loses on the documents of one source, or on all of a part."""

    part: str
    source: str | None
    """Null for all of them."""
    held_out: HeldOut


def rows(text: Reference, part: str, length: int, *, first: int | None = None) -> LmRows:
    """Return a part as rows of so many tokens.

    Parameters
    ----------
    first
        Only so many rows, from the beginning; null: all.
    """
    table = pq.read_table(text.table(part))
    lists = table["input_ids"].combine_chunks()
    starts, ids = lists.offsets.to_numpy(), lists.values.to_numpy()
    if first is not None:
        ids = ids[: first * length + 1]
    return LmRows(Stream(ids, starts, length))


def measured(
    model: PreTrainedModel, text: Reference, length: int, *, most: int | None, device: torch.device
) -> list[Measured]:
    """Return what a model loses on the valid and the test part, of each source and of all.

    Parameters
    ----------
    most
        Rows of a part that are measured on, evenly spread; null: all.
    """
    sizes, names = _byte_lengths(text), text.summary["sources"]
    found: list[Measured] = []
    for part in HELD_OUT:
        sources = pq.read_table(text.table(part), columns=["source"])["source"].to_numpy()
        lost = held_out(model, rows(text, part, length), sources, sizes, device=device, most=most)
        told = {source: one for source, one in lost.items() if source == ALL or len(lost) > 2}
        found += [
            Measured(part=part, source=None if source == ALL else names[source], held_out=one)
            for source, one in told.items()
        ]
    return found


def stated(model: PreTrainedModel, found: Sequence[Measured]) -> dict[str, float | int]:
    """Return the sizes of a model, and what it loses on all of each part, as a summary has them."""
    every, inside = lm_model.parameters(model)
    losses = {f"nats_{row.part}": row.held_out.nats for row in found if row.source is None}
    return {"parameters": every, "non_embedding": inside, **losses}


def write(path: Path, found: Sequence[Measured]) -> None:
    """Write the table ``held_out``, sorted."""
    lines = [{"part": row.part, "source": row.source, **vars(row.held_out)} for row in found]
    tables.write(path, "held_out", sorted(lines, key=lambda line: (line["part"], line["source"] or "")))


def _byte_lengths(text: Reference) -> np.ndarray | None:
    tokenizer = models.load_tokenizer(text.folder / "model")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    try:
        return lm_tokens.byte_lengths(tokenizer)
    except InputFaults:  # a tokenizer whose tokens stand for no fixed bytes: the loss is told for a token alone
        return None
