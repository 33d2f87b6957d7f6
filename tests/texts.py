"""Small texts for language models that tests share, drawn from a seed."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from capgap_core.build import build
from capgap_core.lm_text import read_text
from capgap_core.loading import Cache
from capgap_core.progress import Silent
from capgap_core.recipes import Execution
from capgap_core.records import Reference
from capgap_core.stages import text as text_stage

WORDS = "the sun and the moon go round while the old clock counts every hour of the long day".split()


def write_text(folder: Path, *, documents: int = 120, seed: int = 0) -> Path:
    """Write a jsonl of sentences from two sources."""
    draw = np.random.default_rng(seed)
    lines = [
        {"text": " ".join(draw.choice(WORDS, 12)), "source": ("day", "night")[i % 2], "path": f"{i}"}
        for i in range(documents)
    ]
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf8")
    return path


def text_recipe(root: Path, path: Path, **changes: Any) -> text_stage.Recipe:
    """Return the recipe of the stage ``text`` for a file, by bytes."""
    cache = root / "cache"
    content = read_text(str(path), seed=0, cache=Cache(cache)).digest
    source = text_stage.Source(dataset=str(path), splits=None, cache=str(cache), tokenizer=None)
    held = {"content": content, "column": None, "tokenizer": "bytes", "vocabulary": None, "seed": 0, "source": source}
    return text_stage.Recipe(**{**held, **changes})


def text_of(root: Path, path: Path, **changes: Any) -> Reference:
    """Return the finished stage ``text`` of a file."""
    recipe = text_recipe(root, path, **changes)
    return build("text", recipe, {}, execution=Execution(root=str(root), threads=1), progress=Silent())
