"""Tiny decoders of every layout, what they answer, and copies of them in which units are silent."""

import copy
from types import ModuleType
from typing import Any

import builders
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from capgap_core.families import gpt2, gpt_neox, llama
from capgap_core.shapes import AXES, EVERY, Kept, Shape

CASES: dict[str, dict[str, Any]] = {
    "llama": {}, "llama, a key for each query": {"group": 1, "keys": 4}, "llama, four queries a key": {"group": 4},
    "llama with biases": {"attention_bias": True, "mlp_bias": True}, "mistral": {"kind": "mistral"},
    "llama, wide heads": {"head_dim": 12}, "qwen2": {"kind": "qwen2"}, "qwen2, four": {"kind": "qwen2", "group": 4},
    "qwen3": {"kind": "qwen3", "head_dim": 16}, "qwen3 with biases": {"kind": "qwen3", "attention_bias": True},
    "tied": {"tie_word_embeddings": True},
    "gpt_neox": {"kind": "gpt_neox"},
    "gpt_neox, one after the other": {"kind": "gpt_neox", "use_parallel_residual": False},
    "gpt_neox, half turned": {"kind": "gpt_neox", "rotary_pct": 0.5, "tie_word_embeddings": True},
    "gpt_neox, few biases": {"kind": "gpt_neox", "attention_bias": False},
    "gpt2": {"kind": "gpt2"}, "gpt2, scaled by layer": {"kind": "gpt2", "scale_attn_by_inverse_layer_idx": True},
}  # fmt: skip
KINDS = ("llama", "mistral", "qwen2", "qwen3", "gpt_neox", "gpt2")
FAMILIES = {"gpt_neox": gpt_neox, "gpt2": gpt2}
"""Family by the kind of a config; LLaMA's for any other."""


def made(case: str, *, language: bool = False, layers: int = 2) -> tuple[PreTrainedModel, Shape, ModuleType]:
    model = builders.decoder(language=language, layers=layers, **CASES[case])
    family = family_of(model)
    return model, family.shape_of(model.config), family


def family_of(model: PreTrainedModel) -> ModuleType:
    return FAMILIES.get(model.config.model_type, llama)


def columns_of(module: Any) -> Tensor:
    """Return a weight with its inputs as columns, however it is stored."""
    return module.weight.T if isinstance(module, Conv1D) else module.weight


def ends_of(model: PreTrainedModel) -> list[tuple[str, int, Any]]:
    """Return axis, layer and the module that reads its units."""
    names = {
        "gpt_neox": ("gpt_neox.layers", "attention.dense", "mlp.dense_4h_to_h"),
        "gpt2": ("transformer.h", "attn.c_proj", "mlp.c_proj"),
    }
    layers, *ends = names.get(model.config.model_type, ("model.layers", "self_attn.o_proj", "mlp.down_proj"))
    found: Any = enumerate(model.get_submodule(layers))
    return [(axis, i, layer.get_submodule(end)) for i, layer in found for axis, end in zip(AXES, ends, strict=True)]


def batch_of(*, more: int = 0) -> dict[str, Tensor]:
    """Return three texts of 7, 3 and 5 tokens, and so many places of padding more than the longest needs."""
    real = torch.arange(7 + more)[None] < torch.tensor([7, 3, 5])[:, None]
    draw = torch.Generator().manual_seed(2)
    ids = torch.nn.functional.pad(torch.randint(1, builders.VOCABULARY, (3, 7), generator=draw), (0, more))
    return {"input_ids": ids * real, "attention_mask": real.long()}


def answers(model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Return the logits of the texts, or of all their real tokens."""
    with torch.no_grad():
        found = model(**inputs).logits
    return found[inputs["attention_mask"].bool()] if found.dim() == 3 else found


def silenced(model: PreTrainedModel, shape: Shape, keep: Kept) -> PreTrainedModel:
    """A second source: a copy in which nobody listens to the query heads, nor to the neurons, of what goes."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for axis, i, module in ends_of(changed):
            width = shape.head_size * shape.group if axis == "heads" else 1
            columns_of(module)[:, keep[axis][i] * width :] = 0.0
    return changed


def masks(shape: Shape, keep: Kept) -> dict[Any, Tensor]:
    return {
        (i, axis): (torch.arange(shape.units(axis)) < keep[axis][i]).float()
        for axis in EVERY if axis in keep for i in range(shape.sets(axis))
    }  # fmt: skip
