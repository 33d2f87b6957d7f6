"""The teacher of a stage: loaded, and asked live or once for all, as the stage's recipe says."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from capgap_core import fingerprint, losses, machine, models, targets
from capgap_core.batches import Examples
from capgap_core.contents import content_digest
from capgap_core.kept_outputs import KeptOutputs, Kind, What
from capgap_core.outputs import Computed, computed
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, ModelInput
from capgap_core.targets import Ask
from capgap_core.training import Training


def asked(
    family: str, item: Input, examples: Examples, training: Training, *, keep: Kind | None, execution: Execution,
    progress: Progress, hidden: bool = True,
) -> Ask:  # fmt: skip
    """Return what gives a teacher's hidden states and logits for a batch of these examples.

    Parameters
    ----------
    item
        The teacher: a stage's model, or a slice of it.
    keep
        The type in which its hidden states are kept on disk, for this stage and any other; null: it is asked at every
        step. Where they are to be kept and are not there yet, this is where it is asked for all of them.
    hidden
        Whether hidden states are wanted, too, and not the logits alone.
    """
    adapter, device = models.family(family), machine.device_of(execution)
    teacher, way = frozen(family, item, training, device)
    shape = adapter.shape_of(teacher.config)
    matched = losses.matched_layers(shape.layers) if hidden else ()
    ask = targets.live(way, layers=matched)
    if keep is None:
        return ask
    assert execution.root is not None
    code, _ = fingerprint.hashed(["targets", f"families.{family}"])
    what = What(
        teacher=content_digest(item), code=code, layers=matched, width=shape.hidden, labels=shape.labels,
        computed=training.dtype, kind=keep,
    )  # fmt: skip
    facts = {"device": str(device), "processor": machine.name(device), "threads": machine.threads_of(execution)}
    outputs = KeptOutputs(
        Path(execution.root), what, examples, by=_name_of(item), machine=facts, verify=execution.verify,
        progress=progress,
    )  # fmt: skip
    return targets.kept(ask, examples, outputs, device=device, progress=progress)


def frozen(family: str, item: Input, training: Training, device: torch.device) -> tuple[PreTrainedModel, Computed]:
    """Return a teacher that nothing moves, its weights in the precision of the training, and the way to compute it."""
    adapter = models.family(family)
    teacher = models.moved(models.load(adapter, item), device).requires_grad_(False)
    machine.keep_in(teacher, training.dtype)
    return teacher, computed(adapter, teacher, training.dtype, device)


def _name_of(item: Input) -> str:
    made = item.reference if isinstance(item, ModelInput) else item
    return f"{made.stage}-{made.identity}-{made.code}"
