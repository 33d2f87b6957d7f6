"""A causal language model that a user has, as a stage: looked at beside the text, and measured on what is held out."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from capgap_core import lm_parts, models
from capgap_core.errors import InputFaults, StageFailed
from capgap_core.given_files import content_of
from capgap_core.lm_beside import Read, misfits, pieces_of
from capgap_core.machine import ready
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Made, Reference

UNKNOWN = {"tokens": None, "unique_tokens": None, "epochs": None, "tokens_per_parameter": None}
"""What ``pretrain`` says of a model that it has trained, and nobody of one that is given."""


class Recipe(BaseModel):
    """What moves the model and what it loses, beside the text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    content: str
    """Digest of the model's files (``given_files.content_of``)."""
    length: int
    """Tokens of a row."""
    held_out_rows: int | None = None
    """Rows of each part that it is measured on, evenly spread; null: all."""
    source: str
    """Its folder."""


def run(
    recipe: Recipe, inputs: Mapping[str, Input], out_dir: Path, *, execution: Execution, progress: Progress
) -> Made:
    """Write ``model/``, and ``held_out``: what it loses on the valid and the test part of the text, by source.

    Raises
    ------
    InputFaults
        With all in which it does not go with the text.
    StageFailed
        Its files have changed, or are not whole.
    """
    text, folder = inputs["text"], Path(recipe.source)
    assert isinstance(text, Reference)
    if content_of(folder) != recipe.content:
        raise StageFailed("given_lm", f"files of {folder} changed after the run began", "Start the run again.")
    pieces = pieces_of(text.folder / "model" / "tokenizer.json")
    read = Read(pieces=pieces, ids=text.summary["vocabulary"], length=recipe.length)
    if faults := misfits(folder, models.read_config(folder), read, family=recipe.family):
        raise InputFaults(faults)
    adapter = models.family(recipe.family)
    with ready(execution) as device:
        model = models.moved(adapter.load_language(folder, stage="given_lm"), device)
        found = lm_parts.measured(model, text, recipe.length, most=recipe.held_out_rows, device=device)
        models.save(models.moved(model, "cpu"), text.folder / "model", out_dir / "model")
    lm_parts.write(out_dir / "held_out.parquet", found)
    return Made(summary={**lm_parts.stated(model, found), **UNKNOWN})
