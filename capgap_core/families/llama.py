"""Decoders of LLaMA's layout (LLaMA, Mistral, Qwen2, Qwen3), as classifiers and as language models.

A unit of the axis ``heads`` is a group: a head of keys and values with all query heads that it serves. A classifier
answers at the last token that is not padding, which stands to the right of the text.
"""

import copy
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from capgap_core.families import capgap_llama, whole
from capgap_core.shapes import SLIMMED, Kept, Projection, Shape

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
rows = None
"""transformers computes it, on a CPU too."""
INPUTS = ("input_ids", "attention_mask")
"""What the model is given of a batch."""
CAUSAL = True
"""Whether a token sees only those up to itself, and the answer is read at the last."""
EMBEDDINGS = ("model.embed_tokens.",)
TYPES = None
"""It has no embeddings of token types."""
HEAD = "score.weight"
"""The parameter whose presence tells a fine-tuned classifier from a language model."""
NARROW: dict[str, type[PreTrainedModel]] = {
    narrow.__bases__[-1].__name__: narrow
    for narrow in (
        capgap_llama.CapgapLlamaForCausalLM, capgap_llama.CapgapLlamaForSequenceClassification,
        capgap_llama.CapgapMistralForCausalLM, capgap_llama.CapgapMistralForSequenceClassification,
        capgap_llama.CapgapQwen2ForCausalLM, capgap_llama.CapgapQwen2ForSequenceClassification,
        capgap_llama.CapgapQwen3ForCausalLM, capgap_llama.CapgapQwen3ForSequenceClassification,
    )
}  # fmt: skip
"""Class of transformers → the one derived from it whose layers may be narrower."""
KINDS = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
"""``model_type`` of a config → what its classes' names begin with."""


def shape_of(config: Any) -> Shape:
    """Return the sizes that pruning needs."""
    heads, keys = config.num_attention_heads, config.num_key_value_heads
    # Qwen2's queries, keys and values always have biases, and its config does not say so.
    biased = getattr(config, "attention_bias", config.model_type.endswith("qwen2"))
    language = any(name.endswith("ForCausalLM") for name in config.architectures or ())
    return Shape(
        layers=config.num_hidden_layers,
        heads=keys,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        neurons=config.intermediate_size,
        hidden=config.hidden_size,
        labels=config.vocab_size if language else len(config.id2label or {}),
        group=heads // keys,
        head_biases=biased,
        neuron_biases=getattr(config, "mlp_bias", False),
    )


def head_flops(shape: Shape, length: float) -> float:
    """Return the FLOPs of the head, which transformers computes at each of ``length`` tokens."""
    return 2.0 * length * shape.hidden * shape.labels


def load(folder: Path | str, **config: Any) -> PreTrainedModel:
    """Load a stock classifier or language model in fp32 from a folder or a hub name, as its config says."""
    (name,) = _config_of(folder)["architectures"]
    return _stock(name).from_pretrained(folder, dtype="float32", **config)


def load_given(folder: Path | str, *, new_head: bool, **config: Any) -> PreTrainedModel:
    """Load a checkpoint that a user gave as a classifier; only a head that is to be drawn anew may be missing in it."""
    kind = _stock(f"{KINDS[_config_of(folder)['model_type']]}ForSequenceClassification")
    return whole.load(kind, folder, lacking=(HEAD,) if new_head else (), **config)


def load_language(folder: Path | str, *, stage: str) -> PreTrainedModel:
    """Load a language model that a user gave to a stage, stock or slimmed; it is there whole, or the stage fails."""
    given = _config_of(folder)["model_type"]
    name = f"{KINDS[given.removeprefix(SLIMMED)]}ForCausalLM"
    kind = _narrow(name) if given.startswith(SLIMMED) else _stock(name)
    return whole.load(kind, folder, lacking=(), stage=stage).eval()


def first_layers(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """Return a model with the embeddings, the first layers, the last norm and the head of another."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[:layers]
    small = type(model)(config)
    held = model.state_dict()
    small.load_state_dict({name: held[name].clone() for name in small.state_dict()})
    return small.eval()


def load_slimmed(folder: Path) -> PreTrainedModel:
    """Load a slimmed model that ``capgap`` saved."""
    (name,) = _config_of(folder)["architectures"]
    return _narrow(name.removeprefix("Capgap")).from_pretrained(folder, dtype="float32")


def slimmed(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """Return another with random weights whose layers keep what ``kept`` says, ready to be filled and saved."""
    narrow = _narrow(type(model).__name__)
    fields = {k: v for k, v in model.config.to_dict().items() if k not in {"model_type", "architectures", "auto_map"}}
    kind: Any = narrow.config_class
    kept = {"kept_heads": list(kept["heads"]), "kept_neurons": list(kept["neurons"])}
    return narrow(kind(**fields, **kept, architectures=[narrow.__name__]))


def _config_of(folder: Path | str) -> dict[str, Any]:
    return PreTrainedConfig.get_config_dict(folder)[0]


def _stock(name: str) -> type[PreTrainedModel]:
    """Return a class of transformers by its name."""
    return NARROW[name].__bases__[-1]


def _narrow(name: str) -> type[PreTrainedModel]:
    """Return the narrower form of a class of transformers, whose models are saved with their modelling file."""
    narrow, kind = NARROW[name], name.rpartition("For")[2]
    config: Any = narrow.config_class
    config.register_for_auto_class()
    narrow.register_for_auto_class(f"AutoModelFor{kind}")
    return narrow
