"""Tiny models, examples and data sets that tests share, all drawn from a seed."""

import csv
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models as tokenizer_models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from capgap_core import build as building, tables
from capgap_core.batches import Examples
from capgap_core.families import bert as bert_family
from capgap_core.machine import Precision
from capgap_core.outputs import Computed, computed
from capgap_core.progress import Silent
from capgap_core.recipes import Execution
from capgap_core.records import Reference
from capgap_core.stages import tradeoff
from capgap_core.training import Training

WORDS = {
    "day": "sun light warm bright gold fire glow dawn".split(),
    "night": "moon dark cold dim blue ice shade dusk".split(),
}
FILLER = "the a of and on with from into near over".split()
VOCABULARY = 60

TINY: dict[str, Any] = {
    "data": {"selection_rows": 24, "calibration_rows": 16, "max_length": 16},
    "teacher_recipe": {
        "layers": 2, "hidden": 32, "heads": 4, "neurons": 64, "vocabulary": 300, "epochs": 8, "learning_rate": 3e-3,
    },
    "sandwich": {"grid": [0.75, 0.3], "epochs": 1, "learning_rate": 1e-3},
    "student": {"scale": 0.2, "epochs": 2, "learning_rate": 1e-3},
    "evaluate": {"length": 16, "latency": False},
}  # fmt: skip
"""Parameters of a run of seconds; the dataset and the store are missing."""


def bert(
    *, seed: int = 0, layers: int = 2, heads: int = 4, neurons: int = 64, labels: int = 3, dropout: float = 0.0
) -> BertForSequenceClassification:
    """Return a BERT of hidden size 32 in evaluation mode.

    No weight is left at 0 or 1: biases and LayerNorms are drawn too, and weights are large enough to matter.
    """
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=neurons, num_labels=labels, max_position_embeddings=128, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertForSequenceClassification(config)
        for name, parameter in model.named_parameters():
            middle = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            torch.nn.init.normal_(parameter, middle, 0.15)
    return model.eval()


def decoder(
    kind: str = "llama", *, seed: int = 0, keys: int = 2, group: int = 2, language: bool = False, labels: int = 3,
    layers: int = 2, vocabulary: int = VOCABULARY, **others: Any,
) -> PreTrainedModel:  # fmt: skip
    """Return a decoder of hidden size 32 in evaluation mode, drawn as ``bert`` is; ``group`` queries to each key."""
    sizes: dict[str, Any] = {"intermediate_size": 64, "num_key_value_heads": keys}
    if kind == "gpt2":  # whose config has other names, and the end of texts far outside this vocabulary
        sizes = {"n_inner": 64, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(
        kind, vocab_size=vocabulary, hidden_size=32, num_hidden_layers=layers, num_attention_heads=keys * group,
        max_position_embeddings=128, pad_token_id=0, num_labels=labels, **{**sizes, **others},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (AutoModelForCausalLM if language else AutoModelForSequenceClassification).from_config(config)
        for name, parameter in model.named_parameters():
            middle = 1.0 if name.endswith("weight") and ("norm" in name or ".ln_" in name) else 0.0
            torch.nn.init.normal_(parameter, middle, 0.15)
    model.config.architectures = [type(model).__name__]
    return model.eval()


def decoder_tokenizer(*, ends: bool = False, **special: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of characters and pairs of them in LLaMA's form, which comes without padding.

    ``ends``: it puts the end of texts behind each.
    """
    tokenizer = Tokenizer(tokenizer_models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    first = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - 4, special_tokens=first, show_progress=False)
    tokenizer.train_from_iterator([" ".join([*WORDS["day"], *WORDS["night"], *FILLER])], trainer)
    last = " </s>" if ends else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<s> $A{last}", pair=f"<s> $A <s>:1 $B:1{last}", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", **special
    )


def decoder_folder(folder: Path, kind: str = "llama", *, bare: bool = False, **others: Any) -> Path:
    """Write a decoder and its tokenizer, without padding; ``bare``: neither with a head nor with an output matrix."""
    model = decoder(kind, **others)
    model.config.pad_token_id = None
    (model.base_model if bare else model).save_pretrained(folder)  # pyright: ignore
    decoder_tokenizer().save_pretrained(folder)
    return folder


def way(model: PreTrainedModel, dtype: Precision = "float32") -> Computed:
    """Return how training computes a model on a CPU."""
    return computed(bert_family, model, dtype, torch.device("cpu"))


def training(**changes: Any) -> Training:
    """Return how a few steps are trained."""
    base = {
        "steps": 3, "learning_rate": 1e-3, "batch_size": 8, "room": None, "per_epoch": 3, "micro_batch": 8,
        "weight_decay": 0.01, "warmup": 0.1,
        "clip": 5.0, "dtype": "float32", "seed": 1,
    }  # fmt: skip
    return Training(**{**base, **changes})


def examples(folder: Path, rows: int = 24, *, seed: int = 0, labels: int = 3, regression: bool = False) -> Examples:
    """Return examples of 3 to 12 tokens."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(3, 13, size=rows)
    ids = [draw.integers(1, VOCABULARY, size=n).tolist() for n in lengths]
    path = folder / f"examples-{seed}-{rows}.parquet"
    answers = draw.normal(size=rows) if regression else draw.integers(0, labels, size=rows)
    columns = {
        "row": list(range(rows)), "label": [float(x) for x in answers], "input_ids": ids,
        "token_type_ids": [[0] * len(row) for row in ids],
    }  # fmt: skip
    tables.write_columns(path, "examples", columns)
    return Examples(path, pad=0, regression=regression)


TRADEOFF = tradeoff.Recipe(
    lam=0.2, metric_scale="raw", metric="accuracy", target=0.1, achieved={"0.1": 0.1, "0.3": 0.3, "0.5": 0.5},
    chance=0.5,
)  # fmt: skip


def scored(folder: Path) -> Reference:
    """Return a finished stage that the tradeoff can read."""
    given = folder / "given"
    given.mkdir()
    scores = ((0.1, 0.8), (0.3, 0.85), (0.5, 0.86), (1.0, 0.9))
    rows = [
        {"scale": s, "split": "selection", "metric": "accuracy", "value": v, "stderr": 0.01, "n": 100}
        for s, v in scores
    ]
    tables.write(given / "metrics.parquet", "metrics", rows)
    return Reference(stage="candidates", identity="a" * 64, code="b" * 16, digest="c" * 64, path=str(given))


def make_tradeoff(
    root: Path, candidates: Reference, recipe: tradeoff.Recipe = TRADEOFF, **execution: object
) -> Reference:
    """Build a tradeoff, the stage that needs no torch, in the store ``art``."""
    where = Execution.model_validate({"root": str(root / "art"), **execution})
    return building.build("tradeoff", recipe, {"candidates": candidates}, execution=where, progress=Silent())


def kept(heads: list[int], neurons: list[int]) -> dict[str, list[int]]:
    """Return what each layer keeps."""
    return {"heads": heads, "neurons": neurons}


def _phrase(draw: random.Random, label: str) -> str:
    words = [*draw.choices(WORDS[label], k=3), *draw.choices(FILLER, k=5), str(draw.randrange(10**6))]
    return " ".join(draw.sample(words, len(words)))


def _write(path: Path, header: list[str], rows: list[list[object]]) -> Path:
    with path.open("w", newline="", encoding="utf8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def single_csv(folder: Path, rows: int = 240, *, seed: int = 0, one_class: bool = False) -> Path:
    """Write texts of two classes that share their filler words."""
    draw = random.Random(seed)
    labels = ["day" if one_class or i % 2 else "night" for i in range(rows)]
    return _write(folder / "single.csv", ["text", "label"], [[_phrase(draw, label), label] for label in labels])


def pair_csv(folder: Path, rows: int = 160, *, seed: int = 0) -> Path:
    """Write pairs that are labelled 1 where both texts are of one kind."""
    draw = random.Random(seed)
    kinds = [(draw.choice(("day", "night")), draw.choice(("day", "night"))) for _ in range(rows)]
    table: list[list[object]] = [[_phrase(draw, a), _phrase(draw, b), int(a == b)] for a, b in kinds]
    return _write(folder / "pairs.csv", ["sentence1", "sentence2", "label"], table)


def score_csv(folder: Path, rows: int = 160, *, seed: int = 0) -> Path:
    """Write texts scored by the share of their words that are of the day."""
    draw = random.Random(seed)
    table: list[list[object]] = []
    for i in range(rows):
        day = draw.randrange(9)
        words = [*draw.choices(WORDS["day"], k=day), *draw.choices(WORDS["night"], k=8 - day), f"n{i}"]
        table.append([" ".join(draw.sample(words, len(words))), round(day / 2 + draw.random() / 10, 3)])
    return _write(folder / "scores.csv", ["text", "score"], table)


HIDE = '''
import importlib, sys

class Without:
    """A finder that does not find some packages, as if they were not installed."""

    def __init__(self, finder, names):
        self._finder, self._names = finder, names

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self._names:
            return None
        return self._finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self._finder, name)

def hide(*names):
    sys.meta_path[:] = [Without(finder, names) for finder in sys.meta_path]
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
        raise SystemExit(f"{name} can still be imported")
'''
"""The source of ``hide``, for processes that have to do without some packages."""
