"""BERT encoders with a sequence classification head: where their heads and neurons live."""

from pathlib import Path
from typing import Any

from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from capgap_core.families import bert_rows, capgap_bert, whole
from capgap_core.families.capgap_bert import CapgapBertConfig, CapgapBertForSequenceClassification
from capgap_core.shapes import Kept, Projection, Shape

LAYER = "bert.encoder.layer.{layer}."
PROJECTIONS = (
    Projection(LAYER + "attention.self.query", "heads", "out"),
    Projection(LAYER + "attention.self.key", "heads", "out"),
    Projection(LAYER + "attention.self.value", "heads", "out"),
    Projection(LAYER + "attention.output.dense", "heads", "in"),
    Projection(LAYER + "intermediate.dense", "neurons", "out"),
    Projection(LAYER + "output.dense", "neurons", "in"),
)
rows = bert_rows
"""How the model is computed fast on a CPU."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""What the model is given of a batch."""
CAUSAL = False
"""Whether a token sees only those up to itself, and the answer is read at the last."""
EMBEDDINGS = ("bert.embeddings.",)
NORMS = None
"""Its width and its layers are not pruned."""
TYPES = "bert.embeddings.token_type_embeddings.weight"
"""The embeddings of token types, which are added to those of words."""
ONCE_PER_EXAMPLE = ("bert.pooler.dense", "classifier")
"""Linear layers that see one vector of an example, not every token."""
HEAD = "classifier.weight"
"""The parameter whose presence tells a fine-tuned checkpoint from a bare encoder."""


def shape_of(config: BertConfig) -> Shape:
    """Return the sizes that pruning needs."""
    return Shape(
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        head_size=config.hidden_size // config.num_attention_heads,
        neurons=config.intermediate_size,
        hidden=config.hidden_size,
        labels=len(config.id2label or {}),
    )


def head_flops(shape: Shape, length: float) -> float:
    """Return the FLOPs of the pooler and the head, which see the first of ``length`` tokens."""
    return 2.0 * shape.hidden * (shape.hidden + shape.labels)


def scratch(*, vocabulary: int, layers: int, hidden: int, heads: int, neurons: int, labels: int) -> PreTrainedModel:
    """Return a BERT classifier with random weights."""
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=neurons,
    )
    config.num_labels = labels
    return BertForSequenceClassification(config)


def load(folder: Path | str, **config: Any) -> PreTrainedModel:
    """Load a stock BERT classifier in fp32 from a folder or a hub name."""
    return BertForSequenceClassification.from_pretrained(folder, dtype="float32", **config)


def load_given(folder: Path | str, *, new_head: bool, **config: Any) -> PreTrainedModel:
    """Load a checkpoint that a user gave; only the pooler, and a head to be drawn anew, may be missing in it."""
    lacking = ("bert.pooler.", "classifier.") if new_head else ()
    return whole.load(BertForSequenceClassification, folder, lacking=lacking, **config)


def first_layers(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """Return a model with the embeddings, the first layers, the pooler and the head of another."""
    fields = {**model.config.to_dict(), "num_hidden_layers": layers}
    small = BertForSequenceClassification(BertConfig(**fields))
    held = model.state_dict()
    small.load_state_dict({name: held[name].clone() for name in small.state_dict()})
    return small.eval()


def load_slimmed(folder: Path) -> PreTrainedModel:
    """Load a slimmed model that ``capgap`` saved."""
    return CapgapBertForSequenceClassification.from_pretrained(folder, dtype="float32")


def slimmed(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """Return another with random weights whose layers keep what ``kept`` says, ready to be filled and saved."""
    fields = {k: v for k, v in model.config.to_dict().items() if k not in {"model_type", "architectures", "auto_map"}}
    CapgapBertConfig.register_for_auto_class()
    CapgapBertForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
    narrow = CapgapBertConfig(**fields, kept_heads=list(kept["heads"]), kept_neurons=list(kept["neurons"]))
    return CapgapBertForSequenceClassification(narrow)


def modelling_file() -> Path:
    """Return the file that has to lie beside a slimmed model."""
    return Path(capgap_bert.__file__)
