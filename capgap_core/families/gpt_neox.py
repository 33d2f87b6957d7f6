"""GPT-NeoX decoders (Pythia), as classifiers and as language models.

Queries, keys and values are one projection, in which the three of a head lie together. Attention and neurons may read
the same states, of two norms, and add to them together (``use_parallel_residual``), which is no matter to pruning.
"""

from typing import Any

from capgap_core.families import capgap_gpt_neox, decoder
from capgap_core.shapes import Projection, Shape

LAYER = "gpt_neox.layers.{layer}."
PROJECTIONS = (
    Projection(LAYER + "attention.query_key_value", "heads", "out", parts=3),
    Projection(LAYER + "attention.dense", "heads", "in"),
    Projection(LAYER + "mlp.dense_h_to_4h", "neurons", "out"),
    Projection(LAYER + "mlp.dense_4h_to_h", "neurons", "in"),
)
EMBEDDINGS = ("gpt_neox.embed_in.",)
NORMS = (LAYER + "input_layernorm", LAYER + "post_attention_layernorm", "gpt_neox.final_layer_norm")
READERS = decoder.READERS
CLASSES = decoder.Classes(
    capgap_gpt_neox.CapgapGPTNeoXForCausalLM, capgap_gpt_neox.CapgapGPTNeoXForSequenceClassification
)

rows, INPUTS, CAUSAL, TYPES, HEAD = decoder.rows, decoder.INPUTS, decoder.CAUSAL, decoder.TYPES, decoder.HEAD
head_flops, first_layers = decoder.head_flops, decoder.first_layers
load, load_given, load_language = CLASSES.load, CLASSES.load_given, CLASSES.load_language
bare_language = CLASSES.bare_language
slimmed, load_slimmed = CLASSES.slimmed, CLASSES.load_slimmed


def shape_of(config: Any) -> Shape:
    """Return the sizes that pruning needs."""
    return Shape(
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        head_size=config.hidden_size // config.num_attention_heads,
        neurons=config.intermediate_size,
        hidden=decoder.width_of(config),
        labels=decoder.labels_of(config),
        head_biases=config.attention_bias,
    )
