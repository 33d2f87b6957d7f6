"""Models in and out of folders: load a stage's model or a slice of it, and save one that others can load."""

import importlib
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from capgap_core import plan, slimming, tables
from capgap_core.errors import StageFailed
from capgap_core.given_files import content_of
from capgap_core.records import Input, ModelInput, Reference
from capgap_core.shapes import SLIMMED, Kept, Shape

# A new head on a bare encoder is what is asked for, not what a user has to be warned of.
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()


def family(name: str) -> ModuleType:
    """Return the adapter of a model family; see ``capgap_core/families``."""
    return importlib.import_module(f"capgap_core.families.{name}")


def model_folder(item: Input) -> Path:
    """Return the folder of an input's model."""
    reference = item.reference if isinstance(item, ModelInput) else item
    return reference.folder / "model"


def load(adapter: ModuleType, item: Input) -> PreTrainedModel:
    """Load a stage's model in fp32, evaluation mode, on CPU: all of it, or really slimmed to the input's scale."""
    folder = model_folder(item)
    slimmed = read_config(folder).get("model_type", "").startswith(SLIMMED)
    model: PreTrainedModel = adapter.load_slimmed(folder) if slimmed else adapter.load(folder)
    if isinstance(item, ModelInput) and item.scale is not None:
        kept = kept_of(item.reference, item.scale)
        model = slimming.slim(adapter, model, adapter.shape_of(model.config), kept)
    return model.eval()


def moved(model: PreTrainedModel, device: torch.device | str) -> PreTrainedModel:
    """Move a model to a device, and return it; transformers hides the types of its own ``to``."""
    nn.Module.to(model, device)
    return model


def plans_of(reference: Reference) -> dict[float, dict[str, list[int]]]:
    """Return scale → what each layer keeps, from a stage's table ``plan``."""
    return plan.from_rows(tables.read(reference.table("plan")))


def kept_of(reference: Reference, scale: float) -> Kept:
    """Return what each layer keeps at a scale of a stage's plan."""
    return plans_of(reference)[scale]


def kept_by(adapter: ModuleType, model: PreTrainedModel) -> Kept:
    """Return what each layer of a loaded model keeps."""
    shape: Shape = adapter.shape_of(model.config)
    heads, neurons = getattr(model.config, "kept_heads", None), getattr(model.config, "kept_neurons", None)
    full = shape.full()
    return {"heads": heads or full["heads"], "neurons": neurons or full["neurons"]}


def save(model: PreTrainedModel, tokenizer_folder: Path, folder: Path) -> None:
    """Save weights as safetensors, config and tokenizer, so that ``from_pretrained`` loads the folder.

    The tokenizer's files are copied as they are; a slimmed model takes its modelling file along.
    """
    model.save_pretrained(folder, safe_serialization=True)
    for name in TOKENIZER_FILES:
        if (tokenizer_folder / name).is_file():
            shutil.copyfile(tokenizer_folder / name, folder / name)


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerBase:
    """Load a tokenizer; its fast form, since slow ones cannot be made reproducible files of."""
    return AutoTokenizer.from_pretrained(folder, use_fast=True)


def read_config(folder: Path) -> dict[str, Any]:
    """Return a model folder's config as plain JSON."""
    return json.loads((folder / "config.json").read_text(encoding="utf8"))


def set_labels(model: PreTrainedModel, labels: list[str]) -> None:
    """Write the label names into a model's config, so that its pipeline speaks of them."""
    model.config.id2label = dict(enumerate(labels)) if labels else {0: "score"}
    model.config.label2id = {name: i for i, name in model.config.id2label.items()}


def given(
    adapter: ModuleType, source: str, content: str, *, stage: str, labels: int | None, pad: int, seed: int
) -> PreTrainedModel:
    """Load a model that a user gave, as it is or with a new head.

    Parameters
    ----------
    content
        The digest of its files when the run began.
    labels
        Of the new head; null: its own head stays.
    pad
        The token that is padding, which a decoder has to know: it answers at the last other one.

    Raises
    ------
    StageFailed
        Its files have changed, or are not whole.
    """
    if content_of(Path(source)) != content:
        raise StageFailed(stage, f"files of {source} changed after the run began", "Start the run again.")
    if labels is None:
        model = adapter.load_given(source, new_head=False)
    else:
        model = adapter.load_given(source, new_head=True, num_labels=labels)
        new_head(model, adapter, seed=seed)
    if adapter.CAUSAL:
        model.config.pad_token_id = model.get_input_embeddings().padding_idx = pad
    return model


def new_head(model: PreTrainedModel, adapter: ModuleType, *, seed: int) -> None:
    """Draw the weights of the classification head from their seed, whatever else has been drawn before."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        name = adapter.HEAD.removesuffix(".weight")
        head = model.get_submodule(name)
        assert isinstance(head, nn.Linear)
        head.weight.normal_(0.0, model.config.initializer_range, generator=generator)
        if head.bias is not None:
            head.bias.zero_()
