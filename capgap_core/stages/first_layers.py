"""The first layers of a model, with its embeddings: where a student of fewer layers begins (MixKD)."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from capgap_core import models
from capgap_core.machine import ready
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Made, Reference


class Pretrained(BaseModel):
    """A given model, as it is before it is fine-tuned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    content: str
    """Digest of its files."""
    source: str
    seed: int
    """Draws the head, which it does not have for this task."""


class Recipe(BaseModel):
    """What moves the student's first weights, beside the teacher."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    layers: int | None
    """Null: half of what there are, at least one."""
    pretrained: Pretrained | None = None
    """Null: they are the fine-tuned teacher's, with its head."""


def run(
    recipe: Recipe, inputs: Mapping[str, Input], out_dir: Path, *, execution: Execution, progress: Progress
) -> Made:
    """Write ``model/``, from the input ``teacher``, or from what was given and the labels of the input ``data``."""
    adapter = models.family(recipe.family)
    if recipe.pretrained is None:
        whole, words = models.load(adapter, inputs["teacher"]), models.model_folder(inputs["teacher"])
    else:
        data, given = inputs["data"], recipe.pretrained
        assert isinstance(data, Reference)
        labels, words = data.summary["labels"], data.folder / "model"
        with ready(execution, seed=given.seed):  # a pooler that is missing is drawn
            whole = models.given(
                adapter, given.source, given.content, stage="first_layers", labels=max(1, len(labels)),
                pad=data.summary["pad"], seed=given.seed,
            )  # fmt: skip
        models.set_labels(whole, labels)
    layers = adapter.shape_of(whole.config).layers
    model = adapter.first_layers(whole, recipe.layers or max(1, layers // 2))
    models.save(model, words, out_dir / "model")
    return Made(summary={"shape": adapter.shape_of(model.config).stated(), "of_layers": layers})
