"""The metric of every candidate, of the target and of the teacher on the selection part."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from capgap_core import models, scoring
from capgap_core.machine import ready
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Made, ModelInput, Reference


class Recipe(BaseModel):
    """What moves the candidates' metrics."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str


def run(
    recipe: Recipe, inputs: Mapping[str, Input], out_dir: Path, *, execution: Execution, progress: Progress
) -> Made:
    """Write ``metrics``; the teacher is the row at scale 1."""
    data, sandwich, teacher = inputs["data"], inputs["sandwich"], inputs["teacher"]
    assert isinstance(data, Reference)
    assert isinstance(sandwich, Reference)
    adapter = models.family(recipe.family)
    rows = []
    with ready(execution) as device:
        whole = models.load(adapter, teacher)
        rows += scoring.metric_rows(adapter, whole, data, "selection", scale=1.0, device=device)
        scales = sandwich.summary["scales"]
        for done, scale in enumerate(scales, start=1):
            model = models.load(adapter, ModelInput(reference=sandwich, scale=scale))
            rows += scoring.metric_rows(adapter, model, data, "selection", scale=scale, device=device)
            progress.update(done, len(scales), "candidates scored")
    scoring.write_metrics(out_dir, rows)
    return Made()
