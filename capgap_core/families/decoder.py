"""What the families of decoders have in common: models that classify texts at their last token, or continue them.

The last token is the last that is not padding, which stands to the right of the text.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from capgap_core.families import whole
from capgap_core.shapes import AXES, SLIMMED, Kept, Shape

rows = None
"""transformers computes it, on a CPU too."""
INPUTS = ("input_ids", "attention_mask")
"""What the model is given of a batch."""
CAUSAL = True
"""Whether a token sees only those up to itself, and the answer is read at the last."""
TYPES = None
"""It has no embeddings of token types."""
HEAD = "score.weight"
"""The parameter whose presence tells a fine-tuned classifier from a language model."""
READERS = ("score", "lm_head")
"""What reads the last states, of which a model has one."""
CLASSIFIER, LANGUAGE = "ForSequenceClassification", ("ForCausalLM", "LMHeadModel")
"""What the names of the classes of classifiers end with, and those of language models."""


def labels_of(config: Any) -> int:
    """Return how many numbers a model answers with: labels, or of a language model its vocabulary."""
    language = any(name.endswith(LANGUAGE) for name in config.architectures or ())
    return config.vocab_size if language else len(config.id2label or {})


def width_of(config: Any) -> int:
    """Return the width of the residual stream: what is kept of it, or what is stated."""
    return getattr(config, "kept_hidden", None) or config.hidden_size


def head_flops(shape: Shape, length: float) -> float:
    """Return the FLOPs of the head, which transformers computes at each of ``length`` tokens."""
    return 2.0 * length * shape.hidden * shape.labels


def first_layers(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """Return a model with the embeddings, the first layers, the last norm and the head of another."""
    config = copy.deepcopy(model.config)
    for name, value in _of_layers(config, range(layers)).items():
        setattr(config, name, value)
    small = type(model)(config)
    held = model.state_dict()
    small.load_state_dict({name: held[name].clone() for name in small.state_dict()})
    return small.eval()


class Classes:
    """The classes of a family: models in and out of folders, and narrower ones in the place of others.

    Parameters
    ----------
    narrow
        Classes whose layers may be narrower, each derived last from the one of transformers that it stands for.
    """

    def __init__(self, *narrow: type[PreTrainedModel]) -> None:
        self._narrow = {kind.__bases__[-1].__name__: kind for kind in narrow}
        classifiers = [kind.__bases__[-1] for kind in narrow if kind.__name__.endswith(CLASSIFIER)]
        self.classifiers = {kind.config_class.model_type: kind for kind in classifiers}
        """``model_type`` of a config → the class of transformers that classifies."""

    def load(self, folder: Path | str, **config: Any) -> PreTrainedModel:
        """Load a stock classifier or language model in fp32 from a folder or a hub name, as its config says."""
        (name,) = _config_of(folder)["architectures"]
        stock: type[PreTrainedModel] = self._narrow[name].__bases__[-1]
        return stock.from_pretrained(folder, dtype="float32", **config)

    def load_given(self, folder: Path | str, *, new_head: bool, **config: Any) -> PreTrainedModel:
        """Load a checkpoint that a user gave as a classifier; only a head to be drawn anew may be missing in it."""
        kind = self.classifiers[_config_of(folder)["model_type"]]
        return whole.load(kind, folder, lacking=(HEAD,) if new_head else (), **config)

    def load_slimmed(self, folder: Path) -> PreTrainedModel:
        """Load a slimmed model that ``capgap`` saved."""
        (name,) = _config_of(folder)["architectures"]
        return self._registered(name.removeprefix("Capgap")).from_pretrained(folder, dtype="float32")

    def load_language(self, folder: Path | str, *, stage: str) -> PreTrainedModel:
        """Load a language model that a user gave, stock or slimmed; it is there whole, or the named stage fails."""
        return whole.load(self._language(folder), folder, lacking=(), stage=stage).eval()

    def bare_language(self, folder: Path | str) -> PreTrainedModel:
        """Return what ``load_language`` would, without weights: on the device ``meta``."""
        kind: Any = self._language(folder)
        with torch.device("meta"):
            return kind(kind.config_class.from_pretrained(folder))

    def slimmed(self, model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
        """Return another with random weights that keeps what ``kept`` says, ready to be filled and saved."""
        narrow = self._registered(type(model).__name__)
        stated = {k: v for k, v in model.config.to_dict().items() if k not in OF_THE_CLASS}
        kind: Any = narrow.config_class
        return narrow(kind(**stated | _left(model.config, kept), architectures=[narrow.__name__]))

    def _language(self, folder: Path | str) -> type[PreTrainedModel]:
        """Return the class of a language model in a folder, stock or slimmed."""
        given = _config_of(folder)["model_type"]
        (name,) = (
            name
            for name, kind in self._narrow.items()
            if name.endswith(LANGUAGE) and kind.__bases__[-1].config_class.model_type == given.removeprefix(SLIMMED)
        )
        return self._registered(name) if given.startswith(SLIMMED) else self._narrow[name].__bases__[-1]

    def _registered(self, name: str) -> type[PreTrainedModel]:
        """Return the narrower form of a class of transformers, whose models are saved with their modelling file."""
        narrow = self._narrow[name]
        kind: Any = narrow.config_class
        kind.register_for_auto_class()
        narrow.register_for_auto_class("AutoModelForCausalLM" if name.endswith(LANGUAGE) else f"AutoModel{CLASSIFIER}")
        return narrow


OF_THE_CLASS = {"model_type", "architectures", "auto_map"}
"""Fields of a config that say of which class it is."""


def _config_of(folder: Path | str) -> dict[str, Any]:
    return PreTrainedConfig.get_config_dict(folder)[0]


def _left(config: Any, kept: Kept) -> dict[str, Any]:
    """Return the fields of a config that say what stays; the width is stated beside the old one, from which heads come.

    transformers shares the stated width out among heads, and refuses one that it cannot.
    """
    stay = [i for i, here in enumerate(kept.get("layers", [1] * config.num_hidden_layers)) if here]
    fields = {f"kept_{axis}": [kept[axis][i] for i in stay] for axis in AXES}
    return {**fields, **_of_layers(config, stay), "kept_hidden": kept.get("hidden", [None])[0]}


def _of_layers(config: Any, stay: Sequence[int]) -> dict[str, Any]:
    """Return the fields of a config that say how many layers there are, and of which type, by the names they have."""
    types = getattr(config, "layer_types", None)
    fields: dict[str, Any] = {config.attribute_map.get("num_hidden_layers", "num_hidden_layers"): len(stay)}
    return fields if types is None else {**fields, "layer_types": [types[i] for i in stay]}
