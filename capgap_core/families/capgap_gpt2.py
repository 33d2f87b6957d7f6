"""GPT-2 whose layers keep different numbers of heads and neurons; saved beside every such student.

It needs torch and transformers only, so that ``AutoModelForSequenceClassification`` and ``AutoModelForCausalLM`` load a
student with ``trust_remote_code=True`` where capgap is not installed.
"""

import warnings
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
from transformers.pytorch_utils import Conv1D


class CapgapGPT2Config(GPT2Config):
    """A GPT-2 configuration with the heads and neurons that each layer keeps; null means all of them."""

    model_type = "capgap_gpt2"

    def __init__(
        self, kept_heads: list[int] | None = None, kept_neurons: list[int] | None = None, **others: Any
    ) -> None:
        self.kept_heads = kept_heads
        self.kept_neurons = kept_neurons
        super().__init__(**others)


class Following(Conv1D):
    """A linear layer that is as wide as its weight: that of transformers is as wide as it was made."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the products with the columns of the weight."""
        rows = torch.addmm(self.bias, x.flatten(0, -2), self.weight)
        return rows.view(*x.shape[:-1], self.weight.shape[1])


class FollowingAttention(GPT2Attention):
    """An attention with as many heads as its weights have, which may be none."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return what the heads that are there add, and their weights."""
        self.split_size = [self.c_attn.weight.shape[1] // 3] * 3  # one number would not split nothing in three
        return super().forward(*inputs, **named)


def following(model: PreTrainedModel) -> PreTrainedModel:
    """Have a model's layers be as wide as the weights they are given, and return it; all else stays."""
    blocks: Any = model.get_submodule("transformer.h")
    for block in blocks:
        block.attn.__class__ = FollowingAttention
        for module in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            module.__class__ = Following
    return model


class Narrow(PreTrainedModel):
    """A model with narrower projections."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        hidden, size = config.hidden_size, config.hidden_size // config.num_attention_heads
        heads = config.kept_heads or [config.num_attention_heads] * config.num_hidden_layers
        neurons = config.kept_neurons or [config.n_inner or 4 * hidden] * config.num_hidden_layers
        layers: Any = self.get_submodule("transformer.h")
        with warnings.catch_warnings():
            # A layer may have lost all its heads or neurons: nothing to initialise, and nothing to warn of.
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
            for layer, kept_heads, kept_neurons in zip(layers, heads, neurons, strict=True):
                layer.attn.c_attn = Conv1D(3 * kept_heads * size, hidden)
                layer.attn.c_proj = Conv1D(hidden, kept_heads * size)
                layer.mlp.c_fc = Conv1D(kept_neurons, hidden)
                layer.mlp.c_proj = Conv1D(hidden, kept_neurons)
            self.post_init()
        following(self)


class CapgapGPT2LMHeadModel(Narrow, GPT2LMHeadModel):
    """A narrower GPT-2 that continues texts."""

    config_class = CapgapGPT2Config


class CapgapGPT2ForSequenceClassification(Narrow, GPT2ForSequenceClassification):
    """A narrower GPT-2 that classifies texts."""

    config_class = CapgapGPT2Config
