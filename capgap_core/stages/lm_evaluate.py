"""What one language model, or a slice of one, loses on the held-out parts of a text."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from capgap_core import lm_parts, models
from capgap_core.machine import ready
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Made, Reference


class Recipe(BaseModel):
    """What moves the losses, beside the text and the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    length: int
    """Tokens of a row."""
    held_out_rows: int | None = None
    """Rows of each part that it is measured on, evenly spread; null: all."""


def run(
    recipe: Recipe, inputs: Mapping[str, Input], out_dir: Path, *, execution: Execution, progress: Progress
) -> Made:
    """Write ``held_out``: what the input ``model`` loses on the valid and the test part of ``text``, by source."""
    text = inputs["text"]
    assert isinstance(text, Reference)
    with ready(execution) as device:
        model = models.moved(models.load(models.family(recipe.family), inputs["model"]), device)
        found = lm_parts.measured(model, text, recipe.length, most=recipe.held_out_rows, device=device)
    lm_parts.write(out_dir / "held_out.parquet", found)
    return Made(summary=dict(lm_parts.stated(model, found)))
