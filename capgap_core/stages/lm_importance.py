"""How much each unit of a language model matters, the model reordered by it, and the plan at each scale."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from transformers import PreTrainedModel

from capgap_core import gates, lm_parts, models, plan, tables
from capgap_core.errors import StageFailed
from capgap_core.gates import Scores, Slopes
from capgap_core.lm_batches import LmBatch, LmRows
from capgap_core.lm_model import said
from capgap_core.lm_slices import slices
from capgap_core.machine import ready
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Made, Reference
from capgap_core.shapes import AXES, SLIMMED, Axis
from capgap_core.vocabulary_losses import linear_cross_entropy

ROWS_AT_ONCE = 16


class Recipe(BaseModel):
    """What moves the importance and the plan, beside the text and the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    scales: tuple[float, ...]
    """The scales of the plan."""
    length: int
    """Tokens of a row."""
    rows: int = Field(ge=1)
    """Rows of the training part that are asked, evenly spread; more than there are: all."""
    axes: tuple[Axis, ...] = AXES
    """What goes at a scale: heads and neurons, and hidden, too, where it is named."""


def run(
    recipe: Recipe, inputs: Mapping[str, Input], out_dir: Path, *, execution: Execution, progress: Progress
) -> Made:
    """Write ``importance``, ``plan`` and ``model/``: the teacher with its units in descending importance.

    Raises
    ------
    StageFailed
        The teacher is a slimmed model, whose layers are unlike already.
    """
    text, teacher = inputs["text"], inputs["teacher"]
    assert isinstance(text, Reference)
    adapter = models.family(recipe.family)
    with ready(execution) as device:
        model = models.moved(models.load(adapter, teacher), device)
        if model.config.model_type.startswith(SLIMMED):
            raise StageFailed("lm_importance", "the model has been slimmed before", "Give the whole model.")
        rows = lm_parts.rows(text, "train", recipe.length)
        scores = importance(adapter, model, rows, most=recipe.rows, device=device, progress=progress, axes=recipe.axes)
        told = gates.write(adapter, model, scores, recipe.scales, words=models.model_folder(teacher), out_dir=out_dir)
        plans = plan.from_rows(tables.read(out_dir / "plan.parquet"))
        left = {str(scale): vars(one) for scale, one in slices(adapter, model, plans).items()}
    return Made(summary={**told, "rows": min(recipe.rows, len(rows)), "slices": left})


def importance(
    adapter: ModuleType, model: PreTrainedModel, rows: LmRows, *, most: int, device: torch.device, progress: Progress,
    axes: Sequence[Axis] = AXES,
) -> Scores:  # fmt: skip
    """Return axis → ``(layers, units)``: the mean over rows of |dL/dgate|, fp32, in evaluation mode.

    Those of hidden are ``(1, hidden)``.

    L is the mean cross-entropy of a row's targets that count; a row without any has no say. Each row has gates of its
    own, as each example has in ``stages/importance.py``.

    Parameters
    ----------
    most
        Only so many rows, evenly spread.
    """
    model.eval().requires_grad_(False)
    asked = min(most, len(rows))

    def each() -> Iterator[tuple[Slopes, int]]:
        done = 0
        for batch in rows.spread(ROWS_AT_ONCE, most=asked):
            counts = batch.keep.view(len(batch.index), -1).sum(dim=1)
            yield _slopes(adapter, model, batch.to(device), counts, axes), int((counts > 0).sum())
            done += len(batch.index)
            progress.update(done, asked, "rows scored")

    return gates.mean_size(adapter.shape_of(model.config), each(), axes=axes)


def _slopes(
    adapter: ModuleType, model: PreTrainedModel, batch: LmBatch, counts: Tensor, axes: Sequence[Axis]
) -> Slopes:
    """Return (layer, axis) → ``(n, units)`` gradients of the mean loss of each row, which has so many targets."""

    def total() -> Tensor:
        own = said(model, batch, dtype="float32")
        return linear_cross_entropy(own.hidden, own.weight, batch.targets, keep=batch.keep, bias=own.bias)

    device = batch.input_ids.device
    shape = adapter.shape_of(model.config)
    found = gates.slopes(adapter, model, shape, len(counts), total, device=device, axes=axes)
    each = counts.clamp(min=1).to(device)[:, None]
    return {key: gradient / each for key, gradient in found.items()}
