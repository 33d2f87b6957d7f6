"""A causal language model that a user has, as a stage: looked at beside the text, and measured on what is held out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer

from capgap_core import lm_parts, models
from capgap_core.errors import Fault, InputFaults, StageFailed, fault
from capgap_core.given_files import content_of
from capgap_core.given_forms import FORMS
from capgap_core.machine import ready
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Made, Reference
from capgap_core.shapes import SLIMMED

UNKNOWN = {"tokens": None, "unique_tokens": None, "epochs": None, "tokens_per_parameter": None}
"""What ``pretrain`` says of a model that it has trained, and nobody of one that is given."""


class Recipe(BaseModel):
    """What moves the model and what it loses, beside the text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    content: str
    """Digest of the model's files (``given_files.content_of``)."""
    length: int
    """Tokens of a row."""
    held_out_rows: int | None = None
    """Rows of each part that it is measured on, evenly spread; null: all."""
    source: str
    """Its folder."""


def run(
    recipe: Recipe, inputs: Mapping[str, Input], out_dir: Path, *, execution: Execution, progress: Progress
) -> Made:
    """Write ``model/``, and ``held_out``: what it loses on the valid and the test part of the text, by source.

    Raises
    ------
    InputFaults
        With all in which it does not go with the text.
    StageFailed
        Its files have changed, or are not whole.
    """
    text, folder = inputs["text"], Path(recipe.source)
    assert isinstance(text, Reference)
    if content_of(folder) != recipe.content:
        raise StageFailed("given_lm", f"files of {folder} changed after the run began", "Start the run again.")
    if faults := _faults(folder, models.read_config(folder), recipe, text):
        raise InputFaults(faults)
    adapter = models.family(recipe.family)
    with ready(execution) as device:
        model = models.moved(adapter.load_language(folder, stage="given_lm"), device)
        found = lm_parts.measured(model, text, recipe.length, most=recipe.held_out_rows, device=device)
        models.save(models.moved(model, "cpu"), text.folder / "model", out_dir / "model")
    lm_parts.write(out_dir / "held_out.parquet", found)
    return Made(summary={**lm_parts.stated(model, found), **UNKNOWN})


def _faults(folder: Path, config: dict[str, Any], recipe: Recipe, text: Reference) -> list[Fault]:
    """Return everything in which a model does not go with the text, as far as its small files say."""
    kind = str(config.get("model_type"))
    form = FORMS.get(kind.removeprefix(SLIMMED))
    if form is None or form.family != recipe.family:
        kinds = ", ".join(name for name, form in FORMS.items() if form.family == recipe.family)
        return [fault("model", str(folder), f"is a {kind}, none of {kinds}", "Give a model of one of these.")]
    sizes, faults = {**form.sizes, **config}, []
    ids, known = text.summary["vocabulary"], sizes["vocab_size"]
    if known < ids:
        rule = f"its embeddings have {known} entries, and the text has ids up to {ids - 1}"
        faults.append(fault("model", str(folder), rule, "Read the text with the model's own tokenizer."))
    if (positions := sizes["max_position_embeddings"]) < recipe.length:
        rule = f"rows have so many tokens, and the model has {positions} positions"
        faults.append(fault("length", recipe.length, rule, f"Give {positions} or fewer."))
    own = folder / "tokenizer.json"
    if own.is_file() and not faults and _pieces(own) != _pieces(text.folder / "model" / own.name):
        rule = "its tokenizer has other pieces than the one that the text was read with"
        faults.append(fault("model", str(folder), rule, "Read the text with the model's own tokenizer."))
    return faults


def _pieces(path: Path) -> dict[str, int]:
    return Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
