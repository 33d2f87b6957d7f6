"""What a given checkpoint of each kind looks like: its sizes, the names and shapes of its weights, and its head."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Sizes = Mapping[str, int | None]
"""Field of a config → what it says; null where something else decides."""
Tensors = dict[str, tuple[int, ...]]
"""Name of a tensor, without the prefix → its shape."""

OPEN = {"num_key_value_heads", "head_dim", "sliding_window", "n_inner"}
"""Sizes that may be null: as many as heads; the width shared out among them; none; four times the width."""
SCRATCH = "bert"
"""The family of a teacher that is trained from scratch."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """A kind of checkpoint."""

    family: str
    """The adapter in ``capgap_core/families``."""
    classifier: str
    """The class of transformers that loads it."""
    prefix: str
    """What names begin with below a head, and not in a checkpoint of the body alone."""
    head: str
    """The parameter whose presence tells a fine-tuned checkpoint from a bare one."""
    pooler: str | None
    """A parameter that is there, too, where the head was trained for whole texts; null: the class tells."""
    sizes: Sizes
    """What a config states, and what it means where it does not."""
    tensors: Callable[[Mapping[str, Any]], Tensors]
    """Of the sizes, tensors that a whole checkpoint has."""
    causal: bool
    """Whether the answer is read at the last token, which has to be told from padding."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Size → what the config calls it, where that is another name."""


def _bert(s: Mapping[str, Any]) -> Tensors:
    return {
        "embeddings.word_embeddings.weight": (s["vocab_size"], s["hidden_size"]),
        "embeddings.position_embeddings.weight": (s["max_position_embeddings"], s["hidden_size"]),
        f"encoder.layer.{s['num_hidden_layers'] - 1}.output.dense.weight": (s["hidden_size"], s["intermediate_size"]),
    }


def _decoder(s: Mapping[str, Any]) -> Tensors:
    hidden, heads, last = s["hidden_size"], s["num_attention_heads"], f"layers.{s['num_hidden_layers'] - 1}."
    size = s["head_dim"] or hidden // heads
    return {
        "embed_tokens.weight": (s["vocab_size"], hidden),
        f"{last}self_attn.q_proj.weight": (heads * size, hidden),
        f"{last}self_attn.k_proj.weight": ((s["num_key_value_heads"] or heads) * size, hidden),
        f"{last}mlp.down_proj.weight": (hidden, s["intermediate_size"]),
    }


def _gpt_neox(s: Mapping[str, Any]) -> Tensors:
    hidden, last = s["hidden_size"], f"layers.{s['num_hidden_layers'] - 1}."
    return {
        "embed_in.weight": (s["vocab_size"], hidden),
        f"{last}attention.query_key_value.weight": (3 * hidden, hidden),
        f"{last}mlp.dense_4h_to_h.weight": (hidden, s["intermediate_size"]),
    }


def _gpt2(s: Mapping[str, Any]) -> Tensors:
    hidden, last = s["hidden_size"], f"h.{s['num_hidden_layers'] - 1}."
    return {
        "wte.weight": (s["vocab_size"], hidden),
        "wpe.weight": (s["max_position_embeddings"], hidden),
        f"{last}attn.c_attn.weight": (hidden, 3 * hidden),
        f"{last}mlp.c_proj.weight": (s["n_inner"] or 4 * hidden, hidden),
    }


def _llama(kind: str, **usual: int | None) -> Form:
    sizes: dict[str, int | None] = {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": None,
        "head_dim": None, "sliding_window": None,
    }  # fmt: skip
    return Form(
        family="llama", classifier=f"{kind}ForSequenceClassification", prefix="model.", head="score.weight",
        pooler=None, sizes=sizes | usual, tensors=_decoder, causal=True,
    )  # fmt: skip


FORMS = {
    "bert": Form(
        family="bert", classifier="BertForSequenceClassification", prefix="bert.", head="classifier.weight",
        pooler="pooler.dense.weight", tensors=_bert, causal=False,
        sizes={
            "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
            "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2,
        },
    ),
    "llama": _llama("Llama", intermediate_size=11008, vocab_size=32000, max_position_embeddings=2048),
    "mistral": _llama(
        "Mistral", intermediate_size=14336, vocab_size=32000, max_position_embeddings=131072, num_key_value_heads=8,
        sliding_window=4096,
    ),
    "qwen2": _llama(
        "Qwen2", intermediate_size=22016, vocab_size=151936, max_position_embeddings=32768, num_key_value_heads=32
    ),
    "qwen3": _llama(
        "Qwen3", intermediate_size=22016, vocab_size=151936, max_position_embeddings=32768, num_key_value_heads=32,
        head_dim=128,
    ),
    "gpt_neox": Form(
        family="gpt_neox", classifier="GPTNeoXForSequenceClassification", prefix="gpt_neox.", head="score.weight",
        pooler=None, tensors=_gpt_neox, causal=True,
        sizes={
            "hidden_size": 6144, "num_hidden_layers": 44, "num_attention_heads": 64, "intermediate_size": 24576,
            "vocab_size": 50432, "max_position_embeddings": 2048,
        },
    ),
    "gpt2": Form(
        family="gpt2", classifier="GPT2ForSequenceClassification", prefix="transformer.", head="score.weight",
        pooler=None, tensors=_gpt2, causal=True,
        sizes={
            "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "n_inner": None,
            "vocab_size": 50257, "max_position_embeddings": 1024,
        },
        names={
            "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
            "max_position_embeddings": "n_positions",
        },
    ),
}  # fmt: skip
"""``model_type`` of a config → what its checkpoint looks like."""
