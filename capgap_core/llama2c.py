"""Models in llama2.c's layout, turned into folders that transformers loads.

The weights are seven int32 and then fp32 tensors, little-endian: the embeddings; each kind of a layer's tensors for all
layers, matrices as (out, in); the last norm; cosines and sines of the rotations, which transformers computes; the
output matrix where it is not the embeddings, which a negative vocabulary says. ``legacy_export`` of
https://github.com/karpathy/llama2.c writes them, and its run.c computes what the folders compute.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from capgap_core.errors import Fault, InputFaults, fault
from capgap_core.llama2c_tokens import BOS, EOS, FIXED, read_tokenizer, unreadable

Made = TypeVar("Made")

NUMBERS = ("hidden", "neurons", "layers", "heads", "kv_heads", "vocabulary", "context")
"""What the seven int32 say."""
HEAD = 4 * len(NUMBERS)
"""Bytes before the first tensor."""
VERSIONED = 0x616B3432
"""The first number of llama2.c's later layouts, which are others."""
NORM_EPS, ROPE_THETA = 1e-5, 10000.0
"""Constants of run.c, which no file holds."""
EXPORT = "Give a file that llama2.c's export.py writes as version 0."
WHOLE = "Copy the file again, whole."


@dataclass(frozen=True, kw_only=True)
class Header:
    """The sizes of a model."""

    hidden: int
    neurons: int
    """Inner width of the feed-forward network."""
    layers: int
    heads: int
    kv_heads: int
    """Heads of keys and values; each serves ``heads / kv_heads`` heads of queries."""
    vocabulary: int
    context: int
    """Most tokens of a text."""
    tied: bool
    """Whether the embeddings are the output matrix too."""

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads


def shape_of(path: Path) -> Header:
    """Return the sizes that a weights file states and its length confirms.

    Raises
    ------
    InputFaults
        With every fault of the header, or that of the length.
    """
    header, faults = _header(path)
    return _sound(header, faults)


def model_of(path: Path) -> LlamaForCausalLM:
    """Return the model of a weights file, in fp32 and in evaluation mode.

    Raises
    ------
    InputFaults
        Where the file is not one of llama2.c's, or holds weights that are not finite.
    """
    _, model, faults = _read_model(path)
    return _sound(model, faults)


def tokenizer_of(path: Path, vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer that gives the ids of run.c.

    Parameters
    ----------
    path
        The tokenizer file.
    vocabulary
        Pieces of the model that it is for.

    Raises
    ------
    InputFaults
        With every fault of the file.
    """
    tokenizer, faults = read_tokenizer(path, vocabulary)
    return _sound(tokenizer, faults)


def convert(weights: Path, tokenizer: Path, folder: Path) -> None:
    """Write a folder that ``AutoModelForCausalLM`` and ``AutoTokenizer`` load.

    Raises
    ------
    InputFaults
        With every fault of both files and of the folder, before anything is written.
    """
    header, model, faults = _read_model(weights)
    pieces, more = read_tokenizer(tokenizer, header.vocabulary if header else None)
    faults += more
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        faults.append(fault("folder", str(folder), "there is something in its place", "Name a new or an empty folder."))
    model, pieces = _sound(model, faults), _sound(pieces, faults)
    pieces.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(folder)
    pieces.save_pretrained(folder)


def _sound(made: Made | None, faults: Sequence[Fault]) -> Made:
    """Return what was made, or raise the faults that stood in the way."""
    if made is None or faults:
        raise InputFaults(faults)
    return made


def _header(path: Path) -> tuple[Header | None, list[Fault]]:
    """Return the header, None where its numbers cannot be a model's, and the faults of it or of the file's length."""
    try:
        with path.open("rb") as stream:
            head, size = stream.read(HEAD), path.stat().st_size
    except OSError as error:
        return None, [unreadable("weights", path, error)]
    if len(head) < HEAD:
        why = f"its {len(head)} bytes are fewer than the {HEAD} of a header"
        return None, [fault("weights", str(path), why, EXPORT)]
    numbers: dict[str, int] = dict(zip(NUMBERS, struct.unpack("<7i", head), strict=True))
    faults = _number_faults(numbers)
    if faults:
        return None, faults
    header = Header(**{**numbers, "vocabulary": abs(numbers["vocabulary"])}, tied=numbers["vocabulary"] > 0)
    return header, _length_faults(path, header, size - HEAD)


def _number_faults(numbers: Mapping[str, int]) -> list[Fault]:
    """Return a fault for each number that is none of a model."""
    if numbers["hidden"] == VERSIONED:
        return [fault("weights", hex(VERSIONED), "it is in a later layout of llama2.c", EXPORT)]
    faults = [
        fault(f"weights.{name}", number, "it has to be 1 at least", EXPORT)
        for name, number in numbers.items()
        if number < 1 and (name != "vocabulary" or number == 0)
    ]
    hidden, heads, kv_heads = numbers["hidden"], numbers["heads"], numbers["kv_heads"]
    if min(hidden, heads) > 0 and hidden % (2 * heads):
        rule = f"so many heads do not share a width of {hidden} in even parts, which rotations need"
        faults.append(fault("weights.heads", heads, rule, EXPORT))
    if min(heads, kv_heads) > 0 and heads % kv_heads:
        faults.append(fault("weights.kv_heads", kv_heads, f"it does not divide the {heads} heads", EXPORT))
    return faults


def _length_faults(path: Path, header: Header, given: int) -> list[Fault]:
    """Return a fault where the bytes after the header are not those of its tensors, with or without the rotations."""
    needed = 4 * (_floats(header) + (0 if header.tied else header.vocabulary * header.hidden))
    rotations = 4 * header.context * header.head_size
    if given in (needed, needed + rotations):
        return []
    way = "long" if given > needed + rotations else "short"
    rule = f"too {way}: {given} bytes follow its header, which asks for {needed} and {rotations} of rotations"
    return [fault("weights", str(path), rule, WHOLE)]


def _layer(header: Header) -> dict[str, tuple[int, ...]]:
    """Return the name in transformers and the shape of each tensor of a layer, in the order of the file."""
    hidden, neurons, keys = header.hidden, header.neurons, header.kv_heads * header.head_size
    return {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (neurons, hidden),
        "mlp.down_proj": (hidden, neurons),
        "mlp.up_proj": (neurons, hidden),
    }


def _floats(header: Header) -> int:
    """Return how many numbers precede the rotations."""
    layer = sum(map(math.prod, _layer(header).values()))
    return (header.vocabulary + 1) * header.hidden + header.layers * layer


def _read_model(path: Path) -> tuple[Header | None, LlamaForCausalLM | None, list[Fault]]:
    """Return the header and the model of a file, None where they cannot be had, and every fault."""
    header, faults = _header(path)
    if header is None or faults:
        return header, None, faults
    state = _state(torch.from_numpy(np.fromfile(path, "<f4", offset=HEAD)), header)
    if wrong := sorted(name for name, tensor in state.items() if not tensor.isfinite().all()):
        rule = f"not every weight is finite: {', '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}"
        return header, None, [fault("weights", str(path), rule, WHOLE)]
    return header, _model(header, state), []


def _model(header: Header, state: Mapping[str, Tensor]) -> LlamaForCausalLM:
    """Return a model with these weights."""
    config = LlamaConfig(
        vocab_size=header.vocabulary,
        hidden_size=header.hidden,
        intermediate_size=header.neurons,
        num_hidden_layers=header.layers,
        num_attention_heads=header.heads,
        num_key_value_heads=header.kv_heads,
        max_position_embeddings=header.context,
        rms_norm_eps=NORM_EPS,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=header.tied,
        bos_token_id=FIXED.index(BOS),
        eos_token_id=FIXED.index(EOS),
    )
    with torch.random.fork_rng(devices=[]):  # the weights that it draws are not kept
        model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    assert model.generation_config is not None
    # Training puts BOS between texts and run.c stops there.
    model.generation_config.eos_token_id = [FIXED.index(BOS), FIXED.index(EOS)]
    return model.eval()


def _state(flat: Tensor, header: Header) -> dict[str, Tensor]:
    """Return the tensors by their names in transformers."""
    layers = [(name, i, shape) for name, shape in _layer(header).items() for i in range(header.layers)]
    named = {"model.embed_tokens.weight": (header.vocabulary, header.hidden)}
    named |= {f"model.layers.{i}.{name}.weight": shape for name, i, shape in layers}
    named |= {"model.norm.weight": (header.hidden,)}
    parts = flat[: _floats(header)].split([math.prod(shape) for shape in named.values()])
    state = {name: part.view(shape) for (name, shape), part in zip(named.items(), parts, strict=True)}
    turned = ("q_proj.weight", "k_proj.weight")
    state |= {name: _halves(part, header.head_size) for name, part in state.items() if name.endswith(turned)}
    embedded = state["model.embed_tokens.weight"]
    state["lm_head.weight"] = embedded if header.tied else flat[-embedded.numel() :].view(embedded.shape)
    return state


def _halves(weight: Tensor, size: int) -> Tensor:
    """Return the rows with the even ones of each head before its odd ones: the pairs that transformers rotates."""
    return weight.view(-1, size // 2, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
