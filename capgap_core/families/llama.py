"""Decoders of LLaMA's layout (LLaMA, Mistral, Qwen2, Qwen3), as classifiers and as language models.

A unit of the axis ``heads`` is a group: a head of keys and values with all query heads that it serves.
"""

from typing import Any

from capgap_core.families import capgap_llama, decoder
from capgap_core.shapes import Projection, Shape

LAYER = "model.layers.{layer}."
PROJECTIONS = (
    Projection(LAYER + "self_attn.q_proj", "heads", "out"),
    Projection(LAYER + "self_attn.k_proj", "heads", "out", shared=True),
    Projection(LAYER + "self_attn.v_proj", "heads", "out", shared=True),
    Projection(LAYER + "self_attn.o_proj", "heads", "in"),
    Projection(LAYER + "mlp.gate_proj", "neurons", "out"),
    Projection(LAYER + "mlp.up_proj", "neurons", "out"),
    Projection(LAYER + "mlp.down_proj", "neurons", "in"),
)
EMBEDDINGS = ("model.embed_tokens.",)
NORMS = (LAYER + "input_layernorm", LAYER + "post_attention_layernorm", "model.norm")
READERS = decoder.READERS
CLASSES = decoder.Classes(
    capgap_llama.CapgapLlamaForCausalLM, capgap_llama.CapgapLlamaForSequenceClassification,
    capgap_llama.CapgapMistralForCausalLM, capgap_llama.CapgapMistralForSequenceClassification,
    capgap_llama.CapgapQwen2ForCausalLM, capgap_llama.CapgapQwen2ForSequenceClassification,
    capgap_llama.CapgapQwen3ForCausalLM, capgap_llama.CapgapQwen3ForSequenceClassification,
)  # fmt: skip

rows, INPUTS, CAUSAL, TYPES, HEAD = decoder.rows, decoder.INPUTS, decoder.CAUSAL, decoder.TYPES, decoder.HEAD
head_flops, first_layers = decoder.head_flops, decoder.first_layers
load, load_given, load_language = CLASSES.load, CLASSES.load_given, CLASSES.load_language
bare_language = CLASSES.bare_language
slimmed, load_slimmed = CLASSES.slimmed, CLASSES.load_slimmed


def shape_of(config: Any) -> Shape:
    """Return the sizes that pruning needs."""
    heads, keys = config.num_attention_heads, config.num_key_value_heads
    # Qwen2's queries, keys and values always have biases, and its config does not say so.
    biased = getattr(config, "attention_bias", config.model_type.endswith("qwen2"))
    return Shape(
        layers=config.num_hidden_layers,
        heads=keys,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        neurons=config.intermediate_size,
        hidden=decoder.width_of(config),
        labels=decoder.labels_of(config),
        group=heads // keys,
        head_biases=biased,
        neuron_biases=getattr(config, "mlp_bias", False),
    )
