"""Language models of random weights, and as stages, that tests share."""

from pathlib import Path
from typing import Any

import builders

from capgap_core.build import build
from capgap_core.given_files import content_of
from capgap_core.lm_recipes import ALONE, Sizes
from capgap_core.progress import Silent
from capgap_core.recipes import Execution
from capgap_core.records import Reference
from capgap_core.stages import given_lm, pretrain

LENGTH = 32
"""Tokens of a row."""
BYTES = 257
"""Ids of the tokenizer of bytes."""


def stage(root: Path, name: str, recipe: Any, **inputs: Any) -> Reference:
    """Return a finished stage."""
    return build(name, recipe, inputs, execution=Execution(root=str(root), threads=1), progress=Silent())


def folder_of(folder: Path, kind: str = "llama", **changes: Any) -> Path:
    """Write a language model of random weights, without a tokenizer."""
    builders.decoder(kind, language=True, **{"vocabulary": BYTES, **changes}).save_pretrained(folder)
    return folder


def given(root: Path, text: Reference, folder: Path, **changes: Any) -> Reference:
    """Return the finished stage ``given_lm`` of a folder."""
    held = {"family": "llama", "content": content_of(folder), "length": LENGTH, "source": str(folder)}
    recipe = given_lm.Recipe(**{**held, **changes})
    return stage(root, "given_lm", recipe, text=text)


def learned(
    root: Path, text: Reference, inputs: Any, *, steps: int, scratch: Sizes | None = None, **changes: Any
) -> Reference:
    """Return the finished stage ``pretrain`` of a few steps, from the text alone unless ``changes`` say otherwise."""
    training = builders.training(steps=steps, per_epoch=20, weight_decay=0.0, clip=1.0, learning_rate=5e-3)
    how = {"objective": ALONE, **changes}
    recipe = pretrain.Recipe(scratch=scratch, length=LENGTH, rows=160, training=training, seed=1, **how)
    return stage(root, "pretrain", recipe, text=text, **inputs)
