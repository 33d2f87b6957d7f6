"""Decoders of LLaMA's layout, of which less is kept than their configuration states; saved beside every such student.

A head is one of keys and values with the query heads that it serves. It needs torch and transformers only, so that
``AutoModelForSequenceClassification`` and ``AutoModelForCausalLM`` load a student with ``trust_remote_code=True`` where
capgap is not installed.
"""

import warnings
from typing import Any

from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    MistralForSequenceClassification,
    MistralModel,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Qwen2Model,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
    Qwen3Model,
)


class Kept:
    """What a configuration says beside its own fields: heads and neurons of each layer, and the width; null means all.

    The stated width stays that from which the size of a head comes.
    """

    def __init__(
        self, kept_heads: list[int] | None = None, kept_neurons: list[int] | None = None,
        kept_hidden: int | None = None, **others: Any,
    ) -> None:  # fmt: skip
        self.kept_heads = kept_heads
        self.kept_neurons = kept_neurons
        self.kept_hidden = kept_hidden
        super().__init__(**others)


class CapgapLlamaConfig(Kept, LlamaConfig):
    """Of a narrower LLaMA."""

    model_type = "capgap_llama"
    __init__ = Kept.__init__  # its own, in place of which transformers would generate one


class CapgapMistralConfig(Kept, MistralConfig):
    """Of a narrower Mistral."""

    model_type = "capgap_mistral"
    __init__ = Kept.__init__


class CapgapQwen2Config(Kept, Qwen2Config):
    """Of a narrower Qwen2."""

    model_type = "capgap_qwen2"
    __init__ = Kept.__init__


class CapgapQwen3Config(Kept, Qwen3Config):
    """Of a narrower Qwen3."""

    model_type = "capgap_qwen3"
    __init__ = Kept.__init__


class Narrow(PreTrainedModel):
    """A model with narrower projections: the attention of transformers infers the number of heads from them."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._narrow(config)

    def _narrow(self, config: Any) -> None:
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        group = config.num_attention_heads // config.num_key_value_heads
        heads = config.kept_heads or [config.num_key_value_heads] * config.num_hidden_layers
        neurons = config.kept_neurons or [config.intermediate_size] * config.num_hidden_layers
        layers: Any = self.get_submodule("model.layers")
        with warnings.catch_warnings():
            # A layer may have lost all its heads or neurons: nothing to initialise, and nothing to warn of.
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
            for layer, kept_heads, kept_neurons in zip(layers, heads, neurons, strict=True):
                _cut(layer.self_attn, "q_proj", rows=kept_heads * group * size)
                _cut(layer.self_attn, "k_proj", rows=kept_heads * size)
                _cut(layer.self_attn, "v_proj", rows=kept_heads * size)
                _cut(layer.self_attn, "o_proj", columns=kept_heads * group * size)
                _cut(layer.mlp, "gate_proj", rows=kept_neurons)
                _cut(layer.mlp, "up_proj", rows=kept_neurons)
                _cut(layer.mlp, "down_proj", columns=kept_neurons)
            if config.kept_hidden:
                self._thin(config.kept_hidden)
            self.post_init()

    def _thin(self, width: int) -> None:
        """Narrow the stream: what writes to it, what reads it, and its norms."""
        body: Any = self.get_submodule("model")
        words = body.embed_tokens
        body.embed_tokens, body.norm = (
            nn.Embedding(words.num_embeddings, width, words.padding_idx), _norm(body.norm, width)
        )  # fmt: skip
        for layer in body.layers:
            for name in ("q_proj", "k_proj", "v_proj"):
                _cut(layer.self_attn, name, columns=width)
            _cut(layer.self_attn, "o_proj", rows=width)
            _cut(layer.mlp, "gate_proj", columns=width)
            _cut(layer.mlp, "up_proj", columns=width)
            _cut(layer.mlp, "down_proj", rows=width)
            layer.input_layernorm = _norm(layer.input_layernorm, width)
            layer.post_attention_layernorm = _norm(layer.post_attention_layernorm, width)
        _cut(self, "lm_head" if hasattr(self, "lm_head") else "score", columns=width)


class NarrowClassifier(Narrow):
    """The same, with a head that answers at the last token that is not padding."""

    body: type[PreTrainedModel]

    def __init__(self, config: Any) -> None:
        # The constructor of transformers makes the body by the type of its configuration, and knows none of these.
        PreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = self.body(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self._narrow(config)


def _cut(module: nn.Module, name: str, *, rows: int | None = None, columns: int | None = None) -> None:
    """Put a linear layer of other sizes in the place of one."""
    whole: Any = module.get_submodule(name)
    wide: int = whole.in_features if columns is None else columns
    high: int = whole.out_features if rows is None else rows
    setattr(module, name, nn.Linear(wide, high, bias=whole.bias is not None))


def _norm(norm: Any, width: int) -> nn.Module:
    """Return a norm of another width; it is taken over that width alone."""
    return type(norm)(width, eps=norm.variance_epsilon)


class CapgapLlamaForCausalLM(Narrow, LlamaForCausalLM):
    """A narrower LLaMA that continues texts."""

    config_class = CapgapLlamaConfig


class CapgapLlamaForSequenceClassification(NarrowClassifier, LlamaForSequenceClassification):
    """A narrower LLaMA that classifies texts."""

    config_class, body = CapgapLlamaConfig, LlamaModel


class CapgapMistralForCausalLM(Narrow, MistralForCausalLM):
    """A narrower Mistral that continues texts."""

    config_class = CapgapMistralConfig


class CapgapMistralForSequenceClassification(NarrowClassifier, MistralForSequenceClassification):
    """A narrower Mistral that classifies texts."""

    config_class, body = CapgapMistralConfig, MistralModel


class CapgapQwen2ForCausalLM(Narrow, Qwen2ForCausalLM):
    """A narrower Qwen2 that continues texts."""

    config_class = CapgapQwen2Config


class CapgapQwen2ForSequenceClassification(NarrowClassifier, Qwen2ForSequenceClassification):
    """A narrower Qwen2 that classifies texts."""

    config_class, body = CapgapQwen2Config, Qwen2Model


class CapgapQwen3ForCausalLM(Narrow, Qwen3ForCausalLM):
    """A narrower Qwen3 that continues texts."""

    config_class = CapgapQwen3Config


class CapgapQwen3ForSequenceClassification(NarrowClassifier, Qwen3ForSequenceClassification):
    """A narrower Qwen3 that classifies texts."""

    config_class, body = CapgapQwen3Config, Qwen3Model
