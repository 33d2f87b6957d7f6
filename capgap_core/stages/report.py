"""Gather what the stages found, and write it as a report, a table of results and figures."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from capgap_core import study, tables
from capgap_core.facts import Candidate, Data, Difference, Facts, Score, Size, StageFact
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Made, Reference
from capgap_core.report import compose

SAME_SHAPE = ("student", "direct", "direct_flops", "slimmed")
"""Roles whose models have the target's shape, and so its FLOPs and latency."""


class Recipe(BaseModel):
    """What moves the report, beside the stages."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    seed: int
    protocol: Literal["capgap", "paper"]
    lam: float
    metric_scale: Literal["raw", "normalised"]
    scale: float
    device: str
    spent: dict[str, float]
    """Arm → FLOPs of training that only this arm has to pay."""
    command: str
    words: dict[str, list[str] | str]
    """What the data set's record says in words, which no digest covers."""
    latency: str | None
    """The identity of the timings, which no digest covers."""


def run(
    recipe: Recipe, inputs: Mapping[str, Input], out_dir: Path, *, execution: Execution, progress: Progress
) -> Made:
    """Write ``report.md``, ``results`` and the figures."""
    stages = {name: item for name, item in inputs.items() if isinstance(item, Reference)}
    found = Findings(stages, scale=recipe.scale)
    rows = [{**row, "role": role, "training_flops": recipe.spent.get(role)} for role, row in found.results()]
    tables.write(out_dir / "results.parquet", "results", rows)
    facts = _facts(recipe, stages, found)
    figures = _figures(facts, stages)
    for name, png in figures.items():
        (out_dir / name).write_bytes(png)
    (out_dir / "report.md").write_text(compose(facts, figures), encoding="utf8")
    return Made(summary={"differences": [dict(d) for d in facts["differences"]]})


class Findings:
    """The tables of the stages, by role."""

    def __init__(self, stages: Mapping[str, Reference], *, scale: float) -> None:
        self.metric: str = stages["data"].summary["metric"]
        self.chosen: float = stages["tradeoff"].summary["chosen_scale"]
        self._stages = stages
        self._latency = tables.read(stages["latency"].table("timing")) if "latency" in stages else []
        candidate = stages["evaluate_candidate"]
        self.sources: dict[str, tuple[Reference, float]] = {"assistant": (candidate, self.chosen)}
        for role in ("teacher", *SAME_SHAPE):
            if f"evaluate_{role}" in stages:
                self.sources[role] = (stages[f"evaluate_{role}"], 1.0)
        self._scales = {"teacher": 1.0, "assistant": self.chosen, **dict.fromkeys(SAME_SHAPE, scale)}

    def _rows(self, role: str, table: str) -> list[dict[str, Any]]:
        reference, scale = self.sources[role]
        return [row for row in tables.read(reference.table(table)) if row["scale"] == scale]

    def metrics(self, role: str) -> dict[str, dict[str, Any]]:
        """Return metric → row of the table ``metrics`` on the evaluation part."""
        return {row["metric"]: row for row in self._rows(role, "metrics")}

    def score(self, role: str) -> Score:
        """Return the primary metric of a role."""
        row = self.metrics(role)[self.metric]
        return Score(value=row["value"], stderr=row["stderr"])

    def size(self, role: str) -> Size:
        """Return the four sizes of a role's model."""
        (row,) = self._rows(role, "sizes")
        times = {str(r["batch"]): r["milliseconds"] for r in self._latency if r["scale"] == self._scales[role]}
        held = {name: row[name] for name in ("parameters", "non_embedding", "flops", "length", "megabytes")}
        return Size(**held, latency_ms=times or None)

    def logits(self, role: str) -> tuple[np.ndarray, np.ndarray]:
        """Return logits ``(n, c)`` and labels ``(n,)``."""
        rows = self._rows(role, "predictions")
        return np.array([r["logits"] for r in rows], dtype=np.float32), np.array([r["label"] for r in rows])

    def results(self) -> list[tuple[str, dict[str, Any]]]:
        """Return (role, row) of the table ``results``."""
        found = []
        for role in sorted(self.sources):
            size = self.size(role)
            shared = {name: size[name] for name in ("parameters", "non_embedding", "flops")}
            for row in self.metrics(role).values():
                found.append((role, {**row, **shared, "scale": self._scales[role]}))
        return found

    def differences(self) -> list[Difference]:
        """Return student minus each control, with its paired interval over examples."""
        found = []
        for against in study.AGAINST:
            if against not in self.sources:
                continue
            ours, labels = self.logits("student")
            theirs, _ = self.logits(against)
            d = study.compare_models(self.metric, ours, theirs, labels)
            needed = study.seeds_needed(d.spread, d.value)
            found.append(Difference(against=against, value=d.value, low=d.low, high=d.high, seeds_needed=needed))
        return found


def candidate_rows(stages: Mapping[str, Reference]) -> list[Candidate]:
    """Return the rows of the tradeoff with the standard error of each metric."""
    metric = stages["data"].summary["metric"]
    errors = {
        r["scale"]: r["stderr"] for r in tables.read(stages["candidates"].table("metrics")) if r["metric"] == metric
    }
    return [
        Candidate(
            scale=r["scale"], achieved=r["achieved"], metric=r["metric_value"], stderr=errors[r["scale"]],
            tradeoff=r["tradeoff"], chosen=r["chosen"], target=r["target"],
            wins_from=r["wins_from"], wins_to=r["wins_to"],
        )
        for r in tables.read(stages["tradeoff"].table("tradeoff"))
    ]  # fmt: skip


def _facts(recipe: Recipe, stages: Mapping[str, Reference], found: Findings) -> Facts:
    data, choice = stages["data"].summary, stages["tradeoff"].summary
    teacher = tables.read(stages["teacher"].table("metrics"))
    on_selection = next(r["value"] for r in teacher if r["metric"] == found.metric)
    name = Path(recipe.dataset).name if os.path.isabs(recipe.dataset) else recipe.dataset
    n = int(found.metrics("teacher")[found.metric]["n"])
    return Facts(
        title=f"MiniDisc: {name} at scale {recipe.scale:g}", dataset=name, task=data["task"],
        metric=found.metric, split=data["eval_name"], n=n, protocol=recipe.protocol, seed=recipe.seed,
        device=recipe.device, target=recipe.scale, lam=recipe.lam, metric_scale=recipe.metric_scale,
        candidates=candidate_rows(stages), chosen=found.chosen, best=choice.get("best_scale"), margin=choice["margin"],
        within_error=choice["within_error"], assistant_preferred=choice["assistant_preferred"],
        target_from=choice["target_from"], scores={role: found.score(role) for role in found.sources},
        constant=data["constant"]["evaluation"], differences=found.differences(),
        sizes={role: found.size(role) for role in found.sources}, spent=recipe.spent, teacher_on_selection=on_selection,
        selection_seen=stages["teacher"].summary["selection_seen"], data=_data(data),
        stages=[
            StageFact(name=name, stage=ref.stage, identity=ref.identity, code=ref.code)
            for name, ref in stages.items() if name != "latency"
        ],
        lineage=_lineage(stages),
        student_path=str(stages["student"].folder / "model"), remote_code=True, command=recipe.command,
    )  # fmt: skip


def _lineage(stages: Mapping[str, Reference]) -> list[tuple[str, str]]:
    """Return arrows from the data to the report, as far as the stages of this run go."""
    arrows = [
        ("data", "teacher"), ("teacher", "importance"), ("importance", "sandwich"), ("sandwich", "candidates"),
        ("candidates", "tradeoff"), ("tradeoff", "student"), ("sandwich", "student"), ("importance", "direct"),
        ("importance", "direct_flops"), ("importance", "slimmed"),
    ]  # fmt: skip
    return [(a, b) for a, b in arrows if b in stages or b in ("sandwich", "slimmed")]


def _data(summary: Mapping[str, Any]) -> Data:
    cuts = summary["cuts"]
    cut = cuts.get("selection") or cuts.get("evaluation") or {}
    return Data(
        rows=summary["rows"], groups=cut.get("groups", 0), largest_group=cut.get("largest_group", 0),
        overlap=summary["overlap"], how=cut.get("how", "the files given"), notes=summary["notes"],
    )  # fmt: skip


def _figures(facts: Facts, stages: Mapping[str, Reference]) -> dict[str, bytes]:
    """Return file name → PNG; none where matplotlib is not installed, which a report can do without."""
    if find_spec("matplotlib") is None:
        return {}
    from capgap_core import plots  # noqa: PLC0415 - needs matplotlib

    constant, metric = facts["constant"], facts["metric"]
    span = 1.0
    if facts["metric_scale"] == "normalised":
        span = facts["teacher_on_selection"] - stages["data"].summary["constant"]["selection"]
    trained = {name: stages[name] for name in ("teacher", "student", "direct", "direct_flops") if name in stages}
    curves = {name: _curve(ref.table("steps")) for name, ref in trained.items() if ref.table("steps").is_file()}
    drawn = {
        "arms.png": plots.arms(facts["scores"], constant=constant, metric=metric, split=facts["split"], n=facts["n"]),
        "tradeoff.png": plots.tradeoff(
            facts["candidates"],
            lam=facts["lam"],
            metric=metric,
            teacher=facts["teacher_on_selection"],
            span=span,
            best="chosen TA" if facts["best"] is None else "best t; another TA was asked for",
        ),
    }
    return {**drawn, "curves.png": plots.curves(curves)} if curves else drawn


def _curve(path: Path) -> list[tuple[int, float]]:
    """Return (step, sum of the loss's terms)."""
    points: dict[int, float] = {}
    for row in tables.read(path):
        points[row["step"]] = points.get(row["step"], 0.0) + row["value"]
    return sorted(points.items())
