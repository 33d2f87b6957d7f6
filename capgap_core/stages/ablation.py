"""What each part of MixKD's loss is worth: every arm's student on data nobody tuned on, beside what it has seen."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from capgap_core import metrics, report_mixkd, study, tables
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Made, Reference

AGAINST = "mixkd"
"""The arm that the others are held against."""
LOSSES = {
    "cross_entropy": "loss_labels", "squared_error": "loss_labels", "prediction": "loss_prediction",
    "mixed_cross_entropy": "loss_mixed_labels", "mixed_squared_error": "loss_mixed_labels",
    "mixed_prediction": "loss_mixed_prediction",
}  # fmt: skip
"""Term of a training → its column."""


class ArmFact(BaseModel):
    """What is known of an arm before its student is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: str
    arm: str
    teacher: str
    """The role of its teacher."""
    matched: Literal["epochs", "tokens"]
    rows: int
    steps: int
    examples: int
    """Seen, each as often as it was."""
    passes: int
    """Examples and mixtures that went forward and back through the student."""
    flops: float


class Recipe(BaseModel):
    """What moves the report, beside the stages."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    seed: int
    teacher_rows: Literal["all", "same"]
    accepted: bool
    arms: tuple[ArmFact, ...]
    device: str
    command: str


def run(
    recipe: Recipe, inputs: Mapping[str, Input], out_dir: Path, *, execution: Execution, progress: Progress
) -> Made:
    """Write ``report.md``, ``ablation`` and the figure."""
    stages = {name: item for name, item in inputs.items() if isinstance(item, Reference)}
    rows = [row_of(fact, recipe.arms, stages) for fact in recipe.arms]
    rows.sort(key=lambda row: -row["n_train"])  # within a share, in the order of the arms
    tables.write(out_dir / "ablation.parquet", "ablation", rows)
    data = stages["data"].summary
    name = Path(recipe.dataset).name if os.path.isabs(recipe.dataset) else recipe.dataset
    facts = report_mixkd.Facts(
        dataset=name, metric=data["metric"], split=data["eval_name"], n=rows[0]["n"], seed=recipe.seed,
        device=recipe.device, constant=data["constant"]["evaluation"],
        teacher_rows=recipe.teacher_rows, accepted=recipe.accepted, rows=rows, command=recipe.command,
    )  # fmt: skip
    png = None
    if find_spec("matplotlib") is not None:
        from capgap_core import plots_mixkd  # noqa: PLC0415 - needs matplotlib

        png = plots_mixkd.arms(rows, metric=data["metric"])
        (out_dir / "arms.png").write_bytes(png)
    (out_dir / "report.md").write_text(report_mixkd.compose(facts, png), encoding="utf8")
    return Made(summary={"arms": [row["role"] for row in rows]})


def row_of(fact: ArmFact, arms: tuple[ArmFact, ...], stages: Mapping[str, Reference]) -> dict[str, Any]:
    """Return an arm's row of the table ``ablation``; ``difference`` is that of ``AGAINST`` minus this arm."""
    data = stages["data"].summary
    own, seen = stages[f"evaluate_{fact.role}"], stages[f"seen_{fact.role}"]
    found, known = _score(own, data["metric"]), _score(seen, data["metric"])
    logits, labels = _predictions(own)
    whole = next((a.role for a in arms if a.arm == AGAINST and a.rows == fact.rows), None)
    apart: dict[str, float] = {}
    if whole is not None and whole != fact.role:
        theirs, _ = _predictions(stages[f"evaluate_{whole}"])
        d = study.compare_models(data["metric"], theirs, logits, labels)
        apart = {"difference": d.value, "low": d.low, "high": d.high}
    classes = data["task"] == "classification"
    return {
        "role": fact.role, "arm": fact.arm, "matched": fact.matched, "n_train": fact.rows, "metric": data["metric"],
        "value": found["value"], "stderr": found["stderr"], "n": found["n"], "seen": known["value"],
        "gap": known["value"] - found["value"], **apart, "steps": fact.steps, "examples": fact.examples,
        "calibration_error": metrics.calibration_error(logits, labels) if classes else None,
        "passes": fact.passes, "training_flops": fact.flops,
        "teacher_value": _score(stages[f"evaluate_{fact.teacher}"], data["metric"])["value"],
        **_losses(stages[f"student_{fact.role}"]),
    }  # fmt: skip


def _losses(student: Reference) -> dict[str, float]:
    """Return each term of a training's loss before its weight, a mean over the last tenth of its steps."""
    rows = tables.read(student.table("steps"))
    last = max(row["step"] for row in rows)
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["step"] > 0.9 * last:
            found.setdefault(LOSSES[row["term"]], []).append(row["value"])
    return {name: float(np.mean(values)) for name, values in found.items()}


def _score(evaluation: Reference, metric: str) -> dict[str, Any]:
    return next(row for row in tables.read(evaluation.table("metrics")) if row["metric"] == metric)


def _predictions(evaluation: Reference) -> tuple[np.ndarray, np.ndarray]:
    """Return logits ``(n, c)`` and labels ``(n,)``."""
    rows = tables.read(evaluation.table("predictions"))
    return np.array([r["logits"] for r in rows], dtype=np.float32), np.array([r["label"] for r in rows])
