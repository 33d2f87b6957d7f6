"""Choose the assistant by its λ-tradeoff on the selection part (MiniDisc, Selection)."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from capgap_core import tables, tradeoff
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Made, Reference
from capgap_core.tradeoff import Option


class Recipe(BaseModel):
    """What moves the choice."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lam: float
    metric_scale: Literal["raw", "normalised"]
    metric: str
    target: float
    achieved: dict[str, float]
    """Nominal scale → share of the prunable parameters that its plan keeps."""
    chance: float
    """The metric of the best constant predictor on the selection part."""
    assistant: float | None = None
    """The candidate that is taken whatever its t; null: the one of the best t."""


def run(
    recipe: Recipe, inputs: Mapping[str, Input], out_dir: Path, *, execution: Execution, progress: Progress
) -> Made:
    """Write ``tradeoff``; the summary holds the chosen scale, and beside one that was asked for that of the best t."""
    candidates = inputs["candidates"]
    assert isinstance(candidates, Reference)
    rows = {r["scale"]: r for r in tables.read(candidates.table("metrics")) if r["metric"] == recipe.metric}
    options = [
        Option(scale=scale, achieved=recipe.achieved[str(scale)], metric=row["value"], stderr=row["stderr"])
        for scale, row in rows.items()
        if scale < 1.0
    ]
    choice = tradeoff.choose(
        options,
        target=recipe.target,
        lam=recipe.lam,
        metric_scale=recipe.metric_scale,
        teacher=rows[1.0]["value"],
        chance=recipe.chance,
    )
    tables.write(out_dir / "tradeoff.parquet", "tradeoff", [asdict(row) for row in choice.rows])
    progress.message(f"assistant: scale {recipe.assistant or choice.scale}")
    summary = {
        "chosen_scale": choice.scale, "margin": choice.margin, "within_error": choice.within_error,
        "assistant_preferred": choice.assistant_preferred, "target_from": choice.target_from,
    }  # fmt: skip
    if recipe.assistant is not None:  # nothing leads by a margin where nothing was chosen
        summary |= {"chosen_scale": recipe.assistant, "margin": None, "within_error": None, "best_scale": choice.scale}
    return Made(summary=summary)
