"""Tokenizers of language models: of bytes, trained, or given; texts as token ids, and the bytes these stand for."""

import json
from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from capgap_core import tokens
from capgap_core.errors import InputFaults, fault

END = "<|end|>"
"""What stands between documents."""
_CHUNK = 1 << 22
"""Characters that are tokenised together: what a tokenizer says of a text takes many times its place."""
_PRINTED = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
_OTHERS = [byte for byte in range(256) if byte not in _PRINTED]
ALPHABET = tuple(chr(byte) if byte in _PRINTED else chr(256 + _OTHERS.index(byte)) for byte in range(256))
"""The character that stands for each byte in byte-level tokenizers, as GPT-2 has it."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer whose ids are the bytes of UTF-8, and 256 the separator."""
    return _byte_level([], by_words=False)


def trained_bpe(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of so many tokens, the 256 bytes and the separator first among them.

    The same texts give the same file, in whichever order they come. It has fewer tokens where the texts have no more
    pairs to merge.
    """
    if vocabulary <= len(ALPHABET):
        raise ValueError(f"a vocabulary of {vocabulary} has no room for {len(ALPHABET)} bytes and a separator")
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 1, initial_alphabet=list(ALPHABET), special_tokens=[], show_progress=False
    )
    bare.train_from_iterator(texts, trainer)
    merges = json.loads(bare.to_str())["model"]["merges"]
    return _byte_level([(first, second) for first, second in merges], by_words=True)


def _byte_level(merges: list[tuple[str, str]], *, by_words: bool) -> PreTrainedTokenizerFast:
    """Return the tokenizer of these merges: ids are the bytes, the separator, and what each merge makes."""
    vocabulary = {character: byte for byte, character in enumerate(ALPHABET)}
    for first, second in merges:
        vocabulary.setdefault(first + second, len(vocabulary) + 1)  # two merges may make one token
    made = Tokenizer(models.BPE({**vocabulary, END: len(ALPHABET)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=by_words)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=END, pad_token=END,
        split_special_tokens=True, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def given(name: str) -> PreTrainedTokenizerFast:
    """Load the tokenizer in a folder, or of a hub name.

    Raises
    ------
    InputFaults
        Where there is none, or none that can part documents.
    """
    remedy = "Give the folder of a tokenizer with a tokenizer.json and an eos_token."
    try:
        tokenizer = tokens.given(name)
    except Exception as error:  # whatever its files are, the library's own words say it best
        said = " ".join(str(error).split())[:200]
        raise InputFaults([fault("tokenizer", name, f"cannot be read: {said}", remedy)]) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputFaults([fault("tokenizer", name, "is not a fast tokenizer", remedy)])
    if tokenizer.eos_token_id is None:
        raise InputFaults([fault("tokenizer", name, "has no token for the end of a text", remedy)])
    return tokenizer


def vocabulary_of(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return how many ids a model needs for a tokenizer: the largest and one; some may have no token."""
    return max(tokenizer.get_vocab().values()) + 1


def encode(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return all texts as one stream of token ids, each followed by the separator, and where each begins.

    A special token that is written in a text is text.

    Returns
    -------
    ids
        ``(N,)`` uint16, or uint32 for a vocabulary that needs it.
    starts
        ``(D + 1,)`` int64: document d is ``ids[starts[d] : starts[d + 1]]``, its last token the separator.
    """
    kind = np.uint16 if vocabulary_of(tokenizer) <= 1 << 16 else np.uint32
    end = np.array([tokenizer.eos_token_id], dtype=kind)
    pieces: list[np.ndarray] = []
    lengths = [0]
    for ids in _encoded(tokenizer, texts):
        pieces += [ids.astype(kind), end]
        lengths.append(len(ids) + 1)
    return np.concatenate(pieces) if pieces else end[:0], np.cumsum(lengths, dtype=np.int64)


def _encoded(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> Iterator[np.ndarray]:
    """Yield the token ids of each text."""
    held = tokenizer.backend_tokenizer.to_str()
    if held == byte_tokenizer().backend_tokenizer.to_str():
        yield from (np.frombuffer(text.encode(), dtype=np.uint8) for text in texts)
        return
    backend = Tokenizer.from_str(held)  # a copy: what follows is not what the user's own should do
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    for chunk in _chunks(texts):
        for found in backend.encode_batch_fast(chunk, add_special_tokens=False):
            yield np.array(found.ids, dtype=np.int64)


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    characters = 0
    for text in texts:
        chunk.append(text)
        characters += len(text)
        if characters >= _CHUNK:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def byte_lengths(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """Return how many bytes of UTF-8 each token stands for, ``(vocabulary,)`` int64; special tokens stand for none.

    Exact for byte-level tokenizers. Of one that normalises texts, the bytes are those of what it made of them.

    Raises
    ------
    InputFaults
        Where the tokenizer is of another kind.
    """
    held = json.loads(tokenizer.backend_tokenizer.to_str())
    decoder = held["decoder"] or {}
    steps = {one["type"] for one in decoder.get("decoders", [decoder]) if one}
    if steps != {"ByteLevel"} or held["model"].get("end_of_word_suffix"):
        rule = "is no byte-level tokenizer, so that bytes per token are not known"
        raise InputFaults([fault("tokenizer", tokenizer.name_or_path, rule, "Report the loss per token.")])
    lengths = np.zeros(vocabulary_of(tokenizer), dtype=np.int64)
    for token, number in held["model"]["vocab"].items():
        lengths[number] = len(token)
    for number, added in tokenizer.added_tokens_decoder.items():
        lengths[number] = 0 if added.special else len(added.content.encode())
    return lengths


def bytes_of(tokenizer: PreTrainedTokenizerFast, ids: np.ndarray) -> int:
    """Return how many bytes of UTF-8 these tokens stand for: bits per byte are nats / (ln 2 × bytes)."""
    return int(byte_lengths(tokenizer)[ids].sum())
