"""A BERT classifier on a CPU, computed on the rows of a batch; weights and config are those of transformers."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.activations import GELUActivation

from capgap_core.batches import Batch
from capgap_core.encoder_layer import Attention, Dropout, FeedForward, How
from capgap_core.optimizer import LARGE
from capgap_core.outputs import Output

WORDS = "bert.embeddings.word_embeddings.weight"


def fits(model: PreTrainedModel) -> bool:
    """Return whether a model is computed the way this module does it."""
    layers: Any = model.get_submodule("bert.encoder.layer")
    plain = isinstance(layers[0].intermediate.intermediate_act_fn, GELUActivation) if len(layers) else False
    return plain and not model.config.is_decoder and model.config.problem_type in {None, "single_label_classification"}


def forward(
    model: PreTrainedModel, weights: Mapping[str, Tensor], batch: Batch, *, dtype: torch.dtype,
    words: Tensor | None = None,
) -> Output:  # fmt: skip
    """Return the hidden states and logits of a batch.

    Parameters
    ----------
    weights
        Name → parameter, of the model itself or of a sub-network of it.
    dtype
        Of the products; the rest is in the type of the weights.
    words
        The rows' word embeddings, where they have been looked up before.
    """
    config, active = model.config, model.training
    (n, t), eps = batch.input_ids.shape, config.layer_norm_eps
    dropped = config.hidden_dropout_prob if active else 0.0
    mask = batch.attention_mask.log()
    x = _embedded(weights, batch, words if words is not None else look_up(model, weights, batch), eps)
    x = Dropout.apply(x, dropped) if dropped else x
    hidden = [x]
    size = config.hidden_size // config.num_attention_heads
    inner = config.attention_probs_dropout_prob if active else 0.0
    how = How(dtype=dtype, eps=eps, dropped=dropped, inner=inner, head_size=size)
    for layer in range(config.num_hidden_layers):
        names = f"bert.encoder.layer.{layer}."
        x = Attention.apply(how, mask, x, *(weights[names + name] for name in ATTENTION))
        x = FeedForward.apply(how, x, *(weights[names + name] for name in FEED_FORWARD))
        hidden.append(x)
    pooled = torch.tanh(_linear(x[: n * t : t], weights, "bert.pooler.dense", dtype).to(x.dtype))
    share = config.classifier_dropout if config.classifier_dropout is not None else config.hidden_dropout_prob
    pooled = F.dropout(pooled, share, training=active)
    return Output(hidden=tuple(hidden), logits=_linear(pooled, weights, "classifier", dtype))


def look_up(model: PreTrainedModel, weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Return the word embeddings of the rows, ``(r, h)``; a large table gets a sparse gradient, padding none."""
    table, pad = weights[WORDS], model.config.pad_token_id
    return F.embedding(batch.rows(batch.input_ids), table, padding_idx=pad, sparse=len(table) >= LARGE)


def _embedded(weights: Mapping[str, Tensor], batch: Batch, words: Tensor, eps: float) -> Tensor:
    n, t = batch.input_ids.shape
    places = batch.rows(torch.arange(t).expand(n, t))
    x = words + F.embedding(places, weights["bert.embeddings.position_embeddings.weight"])
    x = x + F.embedding(batch.rows(batch.token_type_ids), weights["bert.embeddings.token_type_embeddings.weight"])
    norm = "bert.embeddings.LayerNorm."
    return F.layer_norm(x, x.shape[-1:], weights[norm + "weight"], weights[norm + "bias"], eps)


def _linear(x: Tensor, weights: Mapping[str, Tensor], name: str, dtype: torch.dtype) -> Tensor:
    return F.linear(x.to(dtype), weights[f"{name}.weight"].to(dtype), weights[f"{name}.bias"].to(dtype))


def _both(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}.{kind}" for name in names for kind in ("weight", "bias"))


ATTENTION = _both(
    "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
    "attention.output.LayerNorm",
)  # fmt: skip
FEED_FORWARD = _both("intermediate.dense", "output.dense", "output.LayerNorm")
