"""Train a language model on text: alone from scratch, or as the student of a teacher from wherever it begins."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedModel

from capgap_core import checkpoints, lm_losses, lm_model, lm_parts, models, steps
from capgap_core.kept_outputs import Kind
from capgap_core.lm_recipes import LmObjective, Sizes
from capgap_core.lm_teaching import BATCH, Keeping, asked
from capgap_core.machine import ready
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Made, Reference
from capgap_core.training import Training, train


class Kept(BaseModel):
    """Which file the teacher's outputs are read from: what they say does not depend on it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int = 0
    """Rows that are in it; fewer than the student sees: as many as that."""


class Recipe(BaseModel):
    """What moves a model, beside the text, its teacher and what it begins as."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scratch: Sizes | None
    """Null where it begins as the input ``start``, or its slice at a scale of its plan."""
    length: int
    """Tokens of a row."""
    rows: int
    """Rows of the training part that are seen, the first of them: epochs are passes over these."""
    keep: Kind | None = None
    """The type in which the teacher's last hidden states are kept, to be asked for once; null: at every step."""
    held_out_rows: int | None = None
    """Rows of each part that it is measured on, evenly spread; null: all."""
    objective: LmObjective
    training: Training
    seed: int
    """Draws the first weights."""
    source: Kept = Kept()
    family: str = "llama"
    """Of the teacher and of what it begins as."""


def run(
    recipe: Recipe, inputs: Mapping[str, Input], out_dir: Path, *, execution: Execution, progress: Progress
) -> Made:
    """Write ``model/``, ``steps``, and ``held_out``: what it loses on each part that it has not seen, by source."""
    text = inputs["text"]
    assert isinstance(text, Reference)
    training = recipe.training
    with ready(execution, seed=training.seed) as device:
        model = models.moved(_start(recipe, inputs, text), device)
        rows = lm_parts.rows(text, "train", recipe.length, first=recipe.rows)
        ask = None
        if recipe.objective.prediction:
            where = Keeping(execution=execution, progress=progress, device=device)
            most = -(-max(recipe.rows, recipe.source.rows) // BATCH) * BATCH
            kept = lm_parts.rows(text, "train", recipe.length, first=most)
            ask = asked(recipe.family, inputs["teacher"], kept, dtype=training.dtype, keep=recipe.keep, where=where)
        loss_of = lm_losses.loss_of(model, ask, recipe.objective, dtype=training.dtype)
        keeper = checkpoints.beside(out_dir, execution, progress)
        log = steps.Log(out_dir / "steps.parquet", training.steps, progress)
        model.train()
        taken = train(model, rows, training, loss_of, device=device, stage="pretrain", keeper=keeper)
        done, tokens = log.follow(taken)
        found = lm_parts.measured(model, text, recipe.length, most=recipe.held_out_rows, device=device)
        lm_parts.write(out_dir / "held_out.parquet", found)
        models.save(models.moved(model.eval(), "cpu"), text.folder / "model", out_dir / "model")
    return Made(summary=_summary(model, rows.lengths.sum().item(), tokens, found), steps_trained=done, tokens=tokens,
                resumed=keeper.resumed)  # fmt: skip


def _start(recipe: Recipe, inputs: Mapping[str, Input], text: Reference) -> PreTrainedModel:
    if recipe.scratch is None:
        return models.load(models.family(recipe.family), inputs["start"])
    facts = text.summary
    return lm_model.scratch(
        recipe.scratch, vocabulary=facts["vocabulary"], context=recipe.length, end=facts["end"], seed=recipe.seed
    )


def _summary(
    model: PreTrainedModel, unique: int, tokens: int, found: list[lm_parts.Measured]
) -> dict[str, float | int]:
    """Return sizes, tokens, and the loss on all of the valid and the test part."""
    facts = lm_parts.stated(model, found)
    return {
        **facts, "tokens": tokens, "unique_tokens": min(unique, tokens), "epochs": round(tokens / unique, 4),
        "tokens_per_parameter": round(tokens / facts["non_embedding"], 4),
    }  # fmt: skip
