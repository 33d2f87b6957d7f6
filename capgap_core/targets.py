"""What a teacher says of the training examples: asked at every step, or once for all of them and kept."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from capgap_core import machine
from capgap_core.batches import Batch, Examples
from capgap_core.kept_outputs import KeptOutputs
from capgap_core.outputs import Computed
from capgap_core.progress import Progress

ROOM = 2048
"""Tokens of a batch in which a teacher is asked for all examples."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A teacher's outputs on a batch."""

    hidden: Tensor
    """The matched hidden states as rows ``(r, l, h)``; what stands at padding is arbitrary."""
    logits: Tensor
    """``(n, c)``."""


Ask = Callable[[Batch], Target]


def live(teacher: Computed, *, layers: Sequence[int]) -> Ask:
    """Return what runs a teacher, which has to be in evaluation mode, on every batch."""

    def ask(batch: Batch) -> Target:
        with torch.no_grad():
            output = teacher(batch)
        none = output.hidden[0][:, None][:, :0]
        hidden = torch.stack([output.hidden[i] for i in layers], dim=1) if layers else none
        return Target(hidden=hidden, logits=output.logits)

    return ask


def kept(ask: Ask, examples: Examples, outputs: KeptOutputs, *, device: torch.device, progress: Progress) -> Ask:
    """Ask for what ``outputs`` lack now, and return what answers from them.

    The examples of each piece are asked for in one fixed order, so that the answers do not depend on the training's.
    """
    with outputs.filling() as pieces:
        for piece in pieces:
            progress.update(int(piece[0]), len(examples), "the teacher's outputs")
            begin = int(examples.starts[piece[0]])
            hidden = torch.zeros(int(examples.starts[piece[-1] + 1]) - begin, *outputs.shape, dtype=outputs.dtype)
            logits = torch.zeros(len(piece), outputs.labels)
            for batch in _asked(examples, piece, device):
                answer = ask(batch)
                places, real = examples.places(batch.index)
                rows = answer.hidden.to("cpu", outputs.dtype)[: real.size]
                hidden[torch.from_numpy(places[real] - begin)] = rows[torch.from_numpy(real.ravel())]
                logits[torch.from_numpy(batch.index - piece[0])] = answer.logits.float().cpu()
            outputs.write(piece, hidden, logits)
            progress.update(int(piece[-1]) + 1, len(examples), "the teacher's outputs")
    machine.give_back()
    hidden, logits = outputs.tensors()

    def answer_from_kept(batch: Batch) -> Target:
        places = batch.rows(torch.from_numpy(examples.places(batch.index)[0]))
        found = hidden[places]
        return Target(hidden=found.to(device), logits=logits[torch.from_numpy(batch.index)].to(device))

    return answer_from_kept


def _asked(examples: Examples, piece: np.ndarray, device: torch.device) -> Iterator[Batch]:
    for index in examples.cut(piece, ROOM):
        yield examples.batch(index, room=ROOM).to(device)
