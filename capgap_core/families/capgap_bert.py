"""A BERT classifier whose layers keep different numbers of heads and neurons; saved beside every such student.

It needs torch and transformers only, so that ``AutoModelForSequenceClassification.from_pretrained(folder,
trust_remote_code=True)`` loads a student where capgap is not installed.
"""

import warnings
from typing import Any

from torch import nn
from transformers import BertConfig, BertForSequenceClassification


class CapgapBertConfig(BertConfig):
    """A BERT configuration with the heads and neurons that each layer keeps; null means all of them."""

    model_type = "capgap_bert"

    def __init__(
        self, kept_heads: list[int] | None = None, kept_neurons: list[int] | None = None, **others: Any
    ) -> None:
        self.kept_heads = kept_heads
        self.kept_neurons = kept_neurons
        super().__init__(**others)


class CapgapBertForSequenceClassification(BertForSequenceClassification):
    """BERT with narrower projections: the attention of transformers infers the number of heads from them."""

    config_class = CapgapBertConfig

    def __init__(self, config: CapgapBertConfig) -> None:
        super().__init__(config)
        with warnings.catch_warnings():
            # A layer may have lost all its heads or neurons: nothing to initialise, and nothing to warn of.
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
            self._narrow(config)
        self.post_init()

    def _narrow(self, config: CapgapBertConfig) -> None:
        size = config.hidden_size // config.num_attention_heads
        heads = config.kept_heads or [config.num_attention_heads] * config.num_hidden_layers
        neurons = config.kept_neurons or [config.intermediate_size] * config.num_hidden_layers
        layers: Any = self.bert.encoder.layer
        for layer, kept_heads, kept_neurons in zip(layers, heads, neurons, strict=True):
            attention = layer.attention
            for name in ("query", "key", "value"):
                setattr(attention.self, name, nn.Linear(config.hidden_size, kept_heads * size))
            attention.output.dense = nn.Linear(kept_heads * size, config.hidden_size)
            layer.intermediate.dense = nn.Linear(config.hidden_size, kept_neurons)
            layer.output.dense = nn.Linear(kept_neurons, config.hidden_size)
