"""A model's predictions on a part of the data, in fp32, and what they are worth."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from capgap_core import metrics, tables
from capgap_core.batches import Examples
from capgap_core.records import Reference

BATCH = 128


def examples(data: Reference, part: str) -> Examples:
    """Return a part of the data stage."""
    return Examples(data.table(part), pad=data.summary["pad"], regression=data.summary["task"] == "regression")


def logits_of(family: ModuleType, model: nn.Module, part: Examples, *, device: torch.device) -> np.ndarray:
    """Return ``(n, c)`` fp32 logits in the order of the part; no autocast, no dropout."""
    model = model.eval().to(device)
    rows: list[np.ndarray] = []
    places: list[np.ndarray] = []
    with torch.inference_mode():
        for batch in part.in_order(BATCH):
            rows.append(model(**batch.to(device).named(family.INPUTS)).logits.float().cpu().numpy())
            places.append(batch.index)
    logits = np.concatenate(rows)
    ordered = np.empty_like(logits)
    ordered[np.concatenate(places)] = logits
    return ordered


def metric_rows(
    family: ModuleType, model: nn.Module, data: Reference, split: str, *, scale: float, device: torch.device
) -> list[dict[str, Any]]:
    """Return the rows of the table ``metrics`` of one model on one part."""
    part = examples(data, split)
    return rows_from(logits_of(family, model, part, device=device), part.labels, data, split, scale=scale)


def rows_from(
    logits: np.ndarray, labels: np.ndarray, data: Reference, split: str, *, scale: float
) -> list[dict[str, Any]]:
    """Return the rows of the table ``metrics`` for logits ``(n, c)`` and labels ``(n,)``."""
    name = data.summary["metric"]
    values, errors = metrics.measure(name, logits, labels), metrics.standard_error(name, logits, labels)
    n = len(labels)
    return [
        {"scale": scale, "split": split, "metric": key, "value": value, "stderr": errors.get(key), "n": n}
        for key, value in values.items()
    ]


def write_metrics(out_dir: Path, rows: list[dict[str, Any]]) -> None:
    """Write the table ``metrics``, sorted."""
    tables.write(
        out_dir / "metrics.parquet", "metrics", sorted(rows, key=lambda r: (r["scale"], r["split"], r["metric"]))
    )
