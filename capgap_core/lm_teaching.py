"""The teacher of a language model: asked live, or once for all its students and kept on disk.

What is kept is its last hidden state at each place, from which its output matrix makes all it says. The rows that are
kept are the first of the training part, as many as the student with most of them needs, so that all students of a
teacher read one file. They are asked for in blocks of ``BATCH``, whole at the end too, so that what is kept of a row
depends on no other student.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from capgap_core import fingerprint, lm_model, machine, models
from capgap_core.contents import content_digest
from capgap_core.kept_outputs import KeptOutputs, Kind, What
from capgap_core.lm_batches import LmBatch, LmRows
from capgap_core.lm_losses import AskLm
from capgap_core.machine import Precision
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, ModelInput
from capgap_core.vocabulary_sums import Head

BATCH = 16
"""Rows that a teacher is asked for at once; what is kept is of a multiple of so many."""


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """Where a stage runs, and who is told."""

    execution: Execution
    progress: Progress
    device: torch.device


def asked(family: str, item: Input, rows: LmRows, *, dtype: Precision, keep: Kind | None, where: Keeping) -> AskLm:
    """Return what gives a teacher's last hidden states for a batch of rows.

    Parameters
    ----------
    item
        The teacher: a stage's model, or a slice of it.
    rows
        Those that are kept, of which the student's are the first.
    keep
        The type in which they are kept; null: the teacher is asked at every step.
    """
    teacher = models.moved(models.load(models.family(family), item), where.device).requires_grad_(False)
    machine.keep_in(teacher, dtype)
    output = teacher.get_output_embeddings()
    assert isinstance(output, nn.Linear)

    def live(batch: LmBatch) -> Head:
        with torch.no_grad():
            return lm_model.said(teacher, batch, dtype=dtype)

    if keep is None:
        return live
    code, _ = fingerprint.hashed(["lm_teaching", f"families.{family}"])
    what = What(
        teacher=content_digest(item), code=code, layers=(-1,), width=output.in_features, labels=0, computed=dtype,
        kind=keep,
    )  # fmt: skip
    outputs = _outputs(what, item, rows, where)
    with outputs.filling() as pieces:
        for piece in pieces:
            _fill(outputs, piece, rows, live, where)
    machine.give_back()
    hidden, _ = outputs.tensors()

    def from_kept(batch: LmBatch) -> Head:
        places = batch.index[:, None] * rows.length + np.arange(rows.length)
        found = hidden[torch.from_numpy(places.ravel()), 0]
        return Head(found.to(where.device), output.weight, output.bias)

    return from_kept


def _outputs(what: What, item: Input, rows: LmRows, where: Keeping) -> KeptOutputs:
    execution, device = where.execution, where.device
    assert execution.root is not None
    facts = {"device": str(device), "processor": machine.name(device), "threads": machine.threads_of(execution)}
    made = item.reference if isinstance(item, ModelInput) else item
    return KeptOutputs(
        Path(execution.root), what, rows, by=f"{made.stage}-{made.identity}-{made.code}", machine=facts,
        verify=execution.verify, progress=where.progress,
    )  # fmt: skip


def _fill(outputs: KeptOutputs, piece: np.ndarray, rows: LmRows, live: AskLm, where: Keeping) -> None:
    """Ask for one piece, and keep it."""
    found = torch.empty(len(piece) * rows.length, *outputs.shape, dtype=outputs.dtype)
    first, last = int(piece[0]), int(piece[-1])
    for start in range(first // BATCH * BATCH, last + 1, BATCH):
        block = np.arange(start, min(start + BATCH, len(rows)))
        said = live(rows.batch(block).to(where.device))
        assert isinstance(said, Head)
        inside = (block >= first) & (block <= last)
        held = said.hidden.to("cpu", outputs.dtype).view(len(block), rows.length, -1)[torch.from_numpy(inside)]
        place = (max(start, first) - first) * rows.length
        found[place : place + held.shape[0] * rows.length, 0] = held.flatten(0, 1)
    outputs.write(piece, found, torch.empty(len(piece), 0))
    where.progress.update(int(piece[-1]) + 1, len(rows), "the teacher's outputs")
