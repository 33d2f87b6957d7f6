"""Language models from scratch, so that sizes compare fairly, and what a model says of rows of text.

A ladder of sizes is a comparison only where none of them is trained worse than another. Matrices inside a block draw
their first weights with a variance of 1 / fan-in, those that write into the residual stream divided by twice the
layers; embeddings, which are the output matrix too, with 1 / width. All weights learn at a rate proportional to
1 / width. Maximal update parametrisation (Yang et al., arXiv 2203.03466) keeps that of embeddings the same for all
widths; here they are the output matrix too, and small models learned worse by it.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from capgap_core import machine
from capgap_core.lm_batches import LmBatch
from capgap_core.lm_recipes import Sizes
from capgap_core.machine import Precision
from capgap_core.vocabulary_sums import Head

LONGEST = 512
"""Tokens of a row whose attention may be held whole."""
WRITERS = ("o_proj", "down_proj")
"""Matrices whose output is added to the residual stream."""


def scratch(sizes: Sizes, *, vocabulary: int, context: int, end: int, seed: int) -> PreTrainedModel:
    """Return a stock LLaMA with tied embeddings and weights drawn from their seed alone.

    Parameters
    ----------
    context
        Most tokens of a row.
    end
        The id of the token that ends a document.
    """
    model = LlamaForCausalLM(_config(sizes, vocabulary, context, end))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        nn.init.normal_(model.model.embed_tokens.weight, std=sizes.hidden**-0.5, generator=draw)
        for name, matrix in matrices(model):
            shrink = 2 * sizes.layers if name.endswith(WRITERS) else 1
            nn.init.normal_(matrix.weight, std=(matrix.in_features * shrink) ** -0.5, generator=draw)
    return model


def bare(sizes: Sizes) -> PreTrainedModel:
    """Return such a model without weights, on the device ``meta``, with a vocabulary of one token."""
    with torch.device("meta"):
        return LlamaForCausalLM(_config(sizes, 1, 1, 0))


def _config(sizes: Sizes, vocabulary: int, context: int, end: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=sizes.hidden, intermediate_size=sizes.neurons,
        num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads, num_key_value_heads=sizes.kv_heads,
        max_position_embeddings=context, tie_word_embeddings=True, bos_token_id=end, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip


def parameters(model: PreTrainedModel) -> tuple[int, int]:
    """Return all parameters of a model, and those outside its embeddings and output matrix."""
    return sum(p.numel() for p in model.parameters()), sum(p.numel() for p in inside(model).values())


def inside(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Return the parameters outside embeddings, those of positions among them, and the output matrix, by name."""
    output = model.get_output_embeddings()
    apart = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding) or module is output
        for parameter in module.parameters()
    }
    return {name: p for name, p in model.named_parameters() if id(p) not in apart}


def matrices(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the matrices inside blocks, by their names: all but the output's."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".layers." in name:
            yield name, module


def _attention(device: torch.device, dtype: Precision, length: int) -> AbstractContextManager[object]:
    """Let attention on a CPU be made of products of whole matrices, for rows so short that these take little room.

    torch's own kernel asks for a product of each small block apart: where oneDNN makes them (``machine.ready``), that
    took seven times as long as without it, and most of a step.
    """
    if device.type == "cpu" and dtype == "float32" and length <= LONGEST:
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def said(model: PreTrainedModel, batch: LmBatch, *, dtype: Precision) -> Head:
    """Return the last hidden states, ``(n * t, h)``, and the output matrix: what the logits would be made of."""
    device, length = batch.input_ids.device, batch.input_ids.shape[1]
    with machine.autocast(device, dtype), _attention(device, dtype, length):
        hidden = model.base_model(**batch.inputs, use_cache=False).last_hidden_state
    output = model.get_output_embeddings()
    assert isinstance(output, nn.Linear)
    return Head(hidden.flatten(0, 1), output.weight, output.bias)
