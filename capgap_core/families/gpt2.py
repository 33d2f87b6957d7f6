"""GPT-2 decoders, as classifiers and as language models.

Weights have inputs as rows. Queries, keys and values are one projection, in which all queries come first, then all
keys, then all values. Positions are embeddings, which are added to those of words.
"""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from capgap_core.families import capgap_gpt2, decoder
from capgap_core.shapes import Kept, Projection, Shape

LAYER = "transformer.h.{layer}."
PROJECTIONS = (
    Projection(LAYER + "attn.c_attn", "heads", "out", parts=3, apart=True, transposed=True),
    Projection(LAYER + "attn.c_proj", "heads", "in", transposed=True),
    Projection(LAYER + "mlp.c_fc", "neurons", "out", transposed=True),
    Projection(LAYER + "mlp.c_proj", "neurons", "in", transposed=True),
)
EMBEDDINGS = ("transformer.wte.", "transformer.wpe.")
NORMS = (LAYER + "ln_1", LAYER + "ln_2", "transformer.ln_f")
READERS = decoder.READERS
CLASSES = decoder.Classes(capgap_gpt2.CapgapGPT2LMHeadModel, capgap_gpt2.CapgapGPT2ForSequenceClassification)

rows, INPUTS, CAUSAL, TYPES, HEAD = decoder.rows, decoder.INPUTS, decoder.CAUSAL, decoder.TYPES, decoder.HEAD
head_flops, first_layers = decoder.head_flops, decoder.first_layers
load_slimmed, bare_language = CLASSES.load_slimmed, CLASSES.bare_language


def shape_of(config: Any) -> Shape:
    """Return the sizes that pruning needs."""
    return Shape(
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        head_size=config.hidden_size // config.num_attention_heads,
        neurons=config.n_inner or 4 * config.hidden_size,
        hidden=decoder.width_of(config),
        labels=decoder.labels_of(config),
    )


def slimmed(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """Return another with random weights that keeps what ``kept`` says, ready to be filled and saved.

    Raises
    ------
    ValueError
        Layers go, and what stays would be scaled by other numbers than before.
    """
    if model.config.scale_attn_by_inverse_layer_idx and not all(kept.get("layers", ())):
        raise ValueError(
            "Attention is scaled by the layer's number (scale_attn_by_inverse_layer_idx): keep all layers."
        )
    return CLASSES.slimmed(model, kept)


def load(folder: Path | str, **config: Any) -> PreTrainedModel:
    """Load a stock classifier or language model in fp32, whose layers take narrower weights, too."""
    return capgap_gpt2.following(CLASSES.load(folder, **config))


def load_given(folder: Path | str, *, new_head: bool, **config: Any) -> PreTrainedModel:
    """Load a checkpoint that a user gave as a classifier; only a head to be drawn anew may be missing in it."""
    return capgap_gpt2.following(CLASSES.load_given(folder, new_head=new_head, **config))


def load_language(folder: Path | str, *, stage: str) -> PreTrainedModel:
    """Load a language model that a user gave, stock or slimmed; it is there whole, or the named stage fails."""
    return capgap_gpt2.following(CLASSES.load_language(folder, stage=stage))
