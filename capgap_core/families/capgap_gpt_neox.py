"""GPT-NeoX (Pythia), of which less is kept than its configuration states; saved beside every such student.

It needs torch and transformers only, so that ``AutoModelForSequenceClassification`` and ``AutoModelForCausalLM`` load a
student with ``trust_remote_code=True`` where capgap is not installed.
"""

import warnings
from typing import Any

from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, GPTNeoXForSequenceClassification, PreTrainedModel


class CapgapGPTNeoXConfig(GPTNeoXConfig):
    """A GPT-NeoX configuration with the heads and neurons that each layer keeps, and the width; null means all.

    The stated width stays that from which the size of a head comes.
    """

    model_type = "capgap_gpt_neox"

    def __init__(
        self, kept_heads: list[int] | None = None, kept_neurons: list[int] | None = None,
        kept_hidden: int | None = None, **others: Any,
    ) -> None:  # fmt: skip
        self.kept_heads = kept_heads
        self.kept_neurons = kept_neurons
        self.kept_hidden = kept_hidden
        super().__init__(**others)


class Narrow(PreTrainedModel):
    """A model with narrower projections: the attention of transformers infers the number of heads from them."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        hidden, size = config.kept_hidden or config.hidden_size, config.hidden_size // config.num_attention_heads
        heads = config.kept_heads or [config.num_attention_heads] * config.num_hidden_layers
        neurons = config.kept_neurons or [config.intermediate_size] * config.num_hidden_layers
        layers: Any = self.get_submodule("gpt_neox.layers")
        with warnings.catch_warnings():
            # A layer may have lost all its heads or neurons: nothing to initialise, and nothing to warn of.
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
            for layer, kept_heads, kept_neurons in zip(layers, heads, neurons, strict=True):
                attention, mlp, biased = layer.attention, layer.mlp, config.attention_bias
                attention.query_key_value = nn.Linear(hidden, 3 * kept_heads * size, bias=biased)
                attention.dense = nn.Linear(kept_heads * size, hidden, bias=biased)
                mlp.dense_h_to_4h = nn.Linear(hidden, kept_neurons)
                mlp.dense_4h_to_h = nn.Linear(kept_neurons, hidden)
            if config.kept_hidden:
                self._thin(hidden, config.layer_norm_eps)
            self.post_init()

    def _thin(self, width: int, eps: float) -> None:
        """Narrow what the stream goes through beside the projections."""
        body: Any = self.get_submodule("gpt_neox")
        body.embed_in = nn.Embedding(body.embed_in.num_embeddings, width)
        body.final_layer_norm = nn.LayerNorm(width, eps=eps)
        for layer in body.layers:
            layer.input_layernorm = nn.LayerNorm(width, eps=eps)
            layer.post_attention_layernorm = nn.LayerNorm(width, eps=eps)
        head = "lm_head" if hasattr(self, "lm_head") else "score"
        setattr(self, head, nn.Linear(width, getattr(self, head).out_features, bias=False))


class CapgapGPTNeoXForCausalLM(Narrow, GPTNeoXForCausalLM):
    """A narrower GPT-NeoX that continues texts."""

    config_class = CapgapGPTNeoXConfig


class CapgapGPTNeoXForSequenceClassification(Narrow, GPTNeoXForSequenceClassification):
    """A narrower GPT-NeoX that classifies texts."""

    config_class = CapgapGPTNeoXConfig
