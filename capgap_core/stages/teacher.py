"""The teacher: trained from scratch, fine-tuned from what is given, or accepted as it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedModel

from capgap_core import checkpoints, models, scoring, steps
from capgap_core.machine import ready
from capgap_core.outputs import computed
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Made, Reference
from capgap_core.training import Training, train


class Scratch(BaseModel):
    """The sizes of a teacher that is trained from scratch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int
    hidden: int
    heads: int
    neurons: int


class Recipe(BaseModel):
    """What moves the teacher."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    mode: Literal["scratch", "finetune", "accept"]
    content: str | None
    """Digest of the given model's files; null from scratch."""
    scratch: Scratch | None
    training: Training | None
    """Null where the teacher is accepted."""
    seed: int
    source: str | None


def run(
    recipe: Recipe, inputs: Mapping[str, Input], out_dir: Path, *, execution: Execution, progress: Progress
) -> Made:
    """Write ``model/`` and its metric on the selection part; ``steps`` where it was trained."""
    data = inputs["data"]
    assert isinstance(data, Reference)
    adapter = models.family(recipe.family)
    with ready(execution, seed=recipe.seed) as device:
        model = models.moved(_start(recipe, data), device)
        done, tokens, resumed = 0, 0, ()
        training = recipe.training
        if training is not None:
            examples = scoring.examples(data, "train")
            loss_of = steps.task_loss(computed(adapter, model, training.dtype, device), data)
            keeper = checkpoints.beside(out_dir, execution, progress)
            log = steps.Log(out_dir / "steps.parquet", training.steps, progress)
            model.train()
            taken = train(model, examples, training, loss_of, device=device, stage="teacher", keeper=keeper)
            done, tokens = log.follow(taken)
            resumed = keeper.resumed
        model = models.moved(model.eval(), "cpu")
        models.set_labels(model, data.summary["labels"])
        models.save(model, data.folder / "model", out_dir / "model")
        rows = scoring.metric_rows(adapter, model, data, "selection", scale=1.0, device=device)
        scoring.write_metrics(out_dir, rows)
    seen = "no" if recipe.mode != "accept" else "unknown"
    shape = adapter.shape_of(model.config)
    summary = {"mode": recipe.mode, "selection_seen": seen, "layers": shape.layers, "hidden": shape.hidden}
    summary |= steps.padded(training, done, tokens) if training is not None else {}
    return Made(summary=summary, steps_trained=done, tokens=tokens, resumed=resumed)


def _start(recipe: Recipe, data: Reference) -> PreTrainedModel:
    adapter = models.family(recipe.family)
    labels = max(1, len(data.summary["labels"]))
    if recipe.scratch is not None:
        sizes = recipe.scratch.model_dump()
        return adapter.scratch(vocabulary=data.summary["vocabulary"], labels=labels, **sizes)
    assert recipe.source is not None
    assert recipe.content is not None
    head = None if recipe.mode == "accept" else labels
    return models.given(
        adapter, recipe.source, recipe.content, stage="teacher", labels=head, pad=data.summary["pad"], seed=recipe.seed
    )
