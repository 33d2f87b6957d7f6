"""The first layers of a teacher, with its embeddings and head: where a student of fewer layers begins (MixKD)."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from capgap_core import models
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Made


class Recipe(BaseModel):
    """What moves the student's first weights, beside the teacher."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    layers: int | None
    """Null: half of the teacher's, at least one."""


def run(
    recipe: Recipe, inputs: Mapping[str, Input], out_dir: Path, *, execution: Execution, progress: Progress
) -> Made:
    """Write ``model/``."""
    adapter = models.family(recipe.family)
    teacher = models.load(adapter, inputs["teacher"])
    whole = adapter.shape_of(teacher.config).layers
    model = adapter.first_layers(teacher, recipe.layers or max(1, whole // 2))
    models.save(model, models.model_folder(inputs["teacher"]), out_dir / "model")
    return Made(summary={"shape": vars(adapter.shape_of(model.config)), "of_layers": whole})
