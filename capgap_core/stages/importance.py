"""How much each head and neuron matters, the teacher reordered by it, and the plan at each scale."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from capgap_core import gates, losses, models, scoring
from capgap_core.batches import Batch, Examples
from capgap_core.gates import Scores, Slopes
from capgap_core.machine import ready
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Made, Reference
from capgap_core.shapes import AXES, Axis, Shape

EXAMPLES_AT_ONCE = 32


class Recipe(BaseModel):
    """What moves the importance and the plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    scales: tuple[float, ...]
    """The scales of the plan: the grid and the target."""
    batch_means: bool
    """The paper's way: absolute gradients of batch means, which depend on the batch size."""
    batch_size: int | None
    """Examples in a batch; null where it moves nothing but memory."""


def run(
    recipe: Recipe, inputs: Mapping[str, Input], out_dir: Path, *, execution: Execution, progress: Progress
) -> Made:
    """Write ``importance``, ``plan`` and ``model/``: the teacher with its units in descending importance."""
    data, teacher = inputs["data"], inputs["teacher"]
    assert isinstance(data, Reference)
    adapter = models.family(recipe.family)
    with ready(execution) as device:
        model = models.load(adapter, teacher)
        part = scoring.examples(data, "calibration")
        scores = importance(
            adapter,
            models.moved(model, device),
            part,
            adapter.shape_of(model.config),
            batch_size=recipe.batch_size or EXAMPLES_AT_ONCE,
            batch_means=recipe.batch_means,
            progress=progress,
        )
        told = gates.write(adapter, model, scores, recipe.scales, words=models.model_folder(teacher), out_dir=out_dir)
    return Made(summary={**told, "examples": len(part)})


def importance(
    adapter: ModuleType, model: nn.Module, part: Examples, shape: Shape, *, batch_size: int, batch_means: bool,
    progress: Progress, axes: Sequence[Axis] = AXES,
) -> Scores:  # fmt: skip
    """Return axis → ``(layers, units)``: the mean over examples of |dL/dgate|, fp32, in evaluation mode.

    Those of hidden are ``(1, hidden)``, those of layers ``(layers, 1)``.

    Each example has gates of its own, all one, so that one backward pass gives every example's gradient and the
    result does not depend on the batch size. ``batch_means`` takes the mean over batches of |dL_batch/dgate|
    instead, which is what the released code does. L is the task loss (MiniDisc, Specification).
    """
    model.eval().requires_grad_(False)
    device = next(model.parameters()).device

    def each() -> Iterator[tuple[Slopes, int]]:
        done = 0
        for batch in part.in_order(batch_size):
            n = len(batch.index)
            found = _slopes(adapter, model, batch.to(device), shape, axes, batch_means)
            yield found, 1 if batch_means else n
            done += n
            progress.update(done, len(part), "examples scored")

    return gates.mean_size(shape, each(), axes=axes)


def _slopes(
    adapter: ModuleType, model: nn.Module, batch: Batch, shape: Shape, axes: Sequence[Axis], batch_means: bool
) -> Slopes:
    """Return (layer, axis) → ``(n, units)`` gradients of each example's loss, or ``(1, units)`` of their mean."""

    def total() -> Tensor:
        logits = model(**batch.named(adapter.INPUTS)).logits
        if batch.labels.is_floating_point():
            return losses.squared_error(logits, batch.labels[:, None])
        return losses.cross_entropy(logits, batch.labels)

    found = gates.slopes(adapter, model, shape, len(batch.index), total, device=batch.labels.device, axes=axes)
    return {key: g.mean(dim=0, keepdim=True) for key, g in found.items()} if batch_means else found
