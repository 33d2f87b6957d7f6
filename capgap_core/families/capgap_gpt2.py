"""GPT-2, of which less is kept than its configuration states; saved beside every such student.

It needs torch and transformers only, so that ``AutoModelForSequenceClassification`` and ``AutoModelForCausalLM`` load a
student with ``trust_remote_code=True`` where capgap is not installed.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
from transformers.pytorch_utils import Conv1D


class CapgapGPT2Config(GPT2Config):
    """A GPT-2 configuration with the heads and neurons that each layer keeps, and the width; null means all.

    The stated width stays that from which the size of a head comes.
    """

    model_type = "capgap_gpt2"

    def __init__(
        self, kept_heads: list[int] | None = None, kept_neurons: list[int] | None = None,
        kept_hidden: int | None = None, **others: Any,
    ) -> None:  # fmt: skip
        self.kept_heads = kept_heads
        self.kept_neurons = kept_neurons
        self.kept_hidden = kept_hidden
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
        hidden, size = config.kept_hidden or config.hidden_size, config.hidden_size // config.num_attention_heads
        heads = config.kept_heads or [config.num_attention_heads] * config.num_hidden_layers
        neurons = config.kept_neurons or [config.n_inner or 4 * config.hidden_size] * config.num_hidden_layers
        layers: Any = self.get_submodule("transformer.h")
        with warnings.catch_warnings():
            # A layer may have lost all its heads or neurons: nothing to initialise, and nothing to warn of.
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
            for layer, kept_heads, kept_neurons in zip(layers, heads, neurons, strict=True):
                layer.attn.c_attn = Conv1D(3 * kept_heads * size, hidden)
                layer.attn.c_proj = Conv1D(hidden, kept_heads * size)
                layer.mlp.c_fc = Conv1D(kept_neurons, hidden)
                layer.mlp.c_proj = Conv1D(hidden, kept_neurons)
            if config.kept_hidden:
                self._thin(hidden, config.layer_norm_epsilon)
            self.post_init()
        following(self)

    def _thin(self, width: int, eps: float) -> None:
        """Narrow what the stream goes through beside the projections."""
        body: Any = self.get_submodule("transformer")
        body.wte = nn.Embedding(body.wte.num_embeddings, width)
        body.wpe = nn.Embedding(body.wpe.num_embeddings, width)
        body.ln_f = nn.LayerNorm(width, eps=eps)
        for block in body.h:
            block.ln_1, block.ln_2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        head = "lm_head" if hasattr(self, "lm_head") else "score"
        setattr(self, head, nn.Linear(width, getattr(self, head).out_features, bias=False))


class CapgapGPT2LMHeadModel(Narrow, GPT2LMHeadModel):
    """A narrower GPT-2 that continues texts."""

    config_class = CapgapGPT2Config


class CapgapGPT2ForSequenceClassification(Narrow, GPT2ForSequenceClassification):
    """A narrower GPT-2 that classifies texts."""

    config_class = CapgapGPT2Config
