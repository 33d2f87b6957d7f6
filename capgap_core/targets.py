"""What a teacher says of the training examples: asked at every step, or once for all of them and remembered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capgap_core.batches import Batch, Examples
from capgap_core.machine import Context
from capgap_core.progress import Progress
from capgap_core.training import Training

REMEMBERED_BYTES = 5 * 2**30
"""Most memory for a teacher's outputs on all examples; a constant, so that no machine decides what is computed."""
WORTH = 1.5
"""Times that training has to see every example before the teacher's outputs are remembered."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A teacher's outputs on a batch."""

    hidden: tuple[Tensor, ...]
    """The matched hidden states, ``(n, t, h)`` each; what stands at padding is arbitrary."""
    logits: Tensor
    """``(n, c)``."""


Ask = Callable[[Batch], Target]


def live(teacher: nn.Module, *, layers: Sequence[int], context: Context) -> Ask:
    """Return what runs the teacher on every batch, without dropout or gradients."""
    teacher.eval().requires_grad_(False)

    def ask(batch: Batch) -> Target:
        with torch.no_grad(), context():
            output = teacher(**batch.inputs, output_hidden_states=True)
        return Target(hidden=tuple(output.hidden_states[i] for i in layers), logits=output.logits)

    return ask


def pays(examples: Examples, training: Training, *, numbers: int, device: torch.device) -> bool:
    """Return whether the teacher's outputs are to be remembered: on a CPU, if seen again and within memory.

    Parameters
    ----------
    numbers
        How many a teacher gives for a token: matched layers times width.
    """
    seen = training.steps * training.batch_size / len(examples)
    size = int(examples.lengths.sum()) * numbers * _kind(training).itemsize
    return device.type == "cpu" and seen >= WORTH and size <= REMEMBERED_BYTES


def remembered(ask: Ask, examples: Examples, training: Training, *, progress: Progress) -> Ask:
    """Ask for all examples now, and return what answers from memory.

    The examples are asked for in one fixed order, so that the answers do not depend on the training's. Hidden states
    are kept in the precision that the training computes in.
    """
    starts, hidden, logits = examples.starts, torch.empty(0), torch.empty(0)
    done = 0
    for batch in examples.in_order(training.batch_size):
        answer = ask(batch)
        real = batch.attention_mask.bool()
        if not done:
            width = answer.hidden[0].shape[-1]
            hidden = torch.zeros(int(starts[-1]), len(answer.hidden), width, dtype=_kind(training))
            logits = torch.zeros(len(examples), answer.logits.shape[-1])
        places, _ = examples.places(batch.index)
        hidden[torch.from_numpy(places)[real]] = torch.stack(answer.hidden, dim=2)[real].to(hidden.dtype)
        logits[torch.from_numpy(batch.index)] = answer.logits.float()
        done += len(batch.index)
        progress.update(done, len(examples), "the teacher's outputs")

    def answer_from_memory(batch: Batch) -> Target:
        places, _ = examples.places(batch.index)
        found = hidden[torch.from_numpy(places)]
        return Target(hidden=tuple(found.unbind(dim=2)), logits=logits[torch.from_numpy(batch.index)])

    return answer_from_memory


def _kind(training: Training) -> torch.dtype:
    return torch.bfloat16 if training.dtype == "bfloat16" else torch.float32
