"""One model on one part of the data nobody tuned on: metrics, predictions and sizes, in fp32."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from capgap_core import flops, models, scoring, tables
from capgap_core.machine import ready
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Made, ModelInput, Reference


class Recipe(BaseModel):
    """What moves an evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    split: str
    scales: tuple[float, ...]
    """The sub-networks to evaluate where the model holds several; empty: the model as it is."""
    length: int
    """Tokens of the example for which FLOPs are counted."""


def run(
    recipe: Recipe, inputs: Mapping[str, Input], out_dir: Path, *, execution: Execution, progress: Progress
) -> Made:
    """Write ``metrics``, ``predictions`` and ``sizes``; a model as it is stands at scale 1."""
    data, item = inputs["data"], inputs["model"]
    assert isinstance(data, Reference)
    reference = item.reference if isinstance(item, ModelInput) else item
    chosen: list[tuple[float, Input]] = [(s, ModelInput(reference=reference, scale=s)) for s in recipe.scales]
    part = scoring.examples(data, recipe.split)
    metrics: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    sizes: list[dict[str, Any]] = []
    for done, (scale, model_input) in enumerate(chosen or [(1.0, item)], start=1):
        adapter = models.family(recipe.family)
        with ready(execution) as device:
            model = models.load(adapter, model_input)
            logits = scoring.logits_of(adapter, model, part, device=device)
        metrics += scoring.rows_from(logits, part.labels, data, recipe.split, scale=scale)
        predictions += _predictions(scale, part.rows, part.labels, logits)
        shape, kept = adapter.shape_of(model.config), models.kept_by(adapter, model)
        every, outside = flops.parameters(adapter, model)
        cost = round(flops.forward_flops(adapter, shape, kept, recipe.length))
        sizes.append(
            {
                "scale": scale,
                "parameters": every,
                "non_embedding": outside,
                "flops": cost,
                "length": recipe.length,
                "megabytes": flops.megabytes(model),
            }
        )
        progress.update(done, max(1, len(chosen)), "models evaluated")
    scoring.write_metrics(out_dir, metrics)
    tables.write(out_dir / "predictions.parquet", "predictions", predictions)
    tables.write(out_dir / "sizes.parquet", "sizes", sorted(sizes, key=lambda r: r["scale"]))
    return Made()


def _predictions(scale: float, rows: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"scale": scale, "row": int(row), "label": float(label), "logits": values.tolist()}
        for row, label, values in zip(rows, labels, logits, strict=True)
    ]
