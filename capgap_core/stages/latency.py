"""Milliseconds of a forward pass of each size, on this machine, in fp32."""

import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from capgap_core import models, slimming, tables
from capgap_core.machine import ready
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Made, Reference

BATCHES = (1, 32)
REPEATS = 7
SECONDS = 1.0


class Recipe(BaseModel):
    """What moves the milliseconds; the machine's own state does too, which is why no digest covers them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    scales: tuple[float, ...]
    length: int
    device: str
    threads: int
    machine: str
    dtype: str = "float32"


def run(
    recipe: Recipe, inputs: Mapping[str, Input], out_dir: Path, *, execution: Execution, progress: Progress
) -> Made:
    """Write ``timing``: the median, lowest and highest of several passes; scale 1 is the teacher."""
    source = inputs["importance"]
    assert isinstance(source, Reference)
    adapter, plans = models.family(recipe.family), models.plans_of(source)
    rows = []
    with ready(execution) as device:
        teacher = models.load(adapter, source)
        shape = adapter.shape_of(teacher.config)
        for done, scale in enumerate((*recipe.scales, 1.0), start=1):
            model = teacher if scale == 1.0 else slimming.slim(adapter, teacher, shape, plans[scale])
            model = models.moved(model.eval(), device)
            for batch in BATCHES:
                times = milliseconds(model, batch, recipe.length, device)
                middle, low, high = statistics.median(times), min(times), max(times)
                rows.append({"scale": scale, "batch": batch, "milliseconds": middle, "low": low, "high": high})
            progress.update(done, len(recipe.scales) + 1, "sizes timed")
    tables.write(out_dir / "timing.parquet", "timing", sorted(rows, key=lambda r: (r["scale"], r["batch"])))
    return Made()


def milliseconds(model: nn.Module, batch: int, length: int, device: torch.device) -> list[float]:
    """Return the milliseconds of several forward passes on ``batch`` examples of ``length`` tokens, after a warm-up."""
    ids = torch.zeros(batch, length, dtype=torch.long, device=device)
    mask = torch.ones_like(ids)
    times: list[float] = []
    with torch.inference_mode():
        model(input_ids=ids, attention_mask=mask)
        began = time.perf_counter()
        while len(times) < REPEATS and (len(times) < 3 or time.perf_counter() - began < SECONDS):
            _wait(device)
            start = time.perf_counter()
            model(input_ids=ids, attention_mask=mask)
            _wait(device)
            times.append(1e3 * (time.perf_counter() - start))
    return times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
