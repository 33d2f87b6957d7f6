"""Tokenizers: one that is given, or one trained on the texts; and texts turned into token ids."""

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
PROBE = "Two words,  2 naïve ones: ☃ and 'a' gap."
"""A text on which tokenizers are compared."""
CHUNK = 8192
CHARACTERS = 1000
"""Characters that a trained tokenizer knows at most, the commonest; any other is unknown to it."""


def given(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a teacher, from a folder or a hub name.

    Decoders often come without a padding token: then that of the end of texts pads, or the unknown one, where it is not
    the last token of every text.
    """
    tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True)
    if tokenizer.pad_token_id is None:
        last = last_of(tokenizer)
        for token in (tokenizer.eos_token, tokenizer.unk_token):
            if token is not None and tokenizer.convert_tokens_to_ids(token) != last:
                tokenizer.pad_token = token
                break
    return tokenizer


def last_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that a text ends with: one that is put behind every text, where there is one."""
    return tokenizer("a")["input_ids"][-1]


def trained(texts: Sequence[Sequence[str]], *, vocabulary: int, max_length: int) -> PreTrainedTokenizerFast:
    """Train a lower-casing WordPiece tokenizer in BERT's form on columns of texts; the same texts give the same one."""
    tokenizer = _bare({})
    known, inner = _characters(tokenizer, texts)
    # The trainer numbers the characters within a word in the order of a hash table that differs in every process, and
    # breaks ties by number. As special tokens they get their numbers first; the tokenizer that is kept knows nothing
    # of that.
    within = [f"##{character}" for character in inner]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=[*SPECIAL, *within], initial_alphabet=known, limit_alphabet=len(known),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator((text for column in texts for text in column), trainer)
    tokenizer = _bare(tokenizer.get_vocab())
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _bare(vocabulary: dict[str, int]) -> Tokenizer:
    """Return a lower-casing WordPiece tokenizer of these pieces, without special tokens."""
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _characters(tokenizer: Tokenizer, texts: Sequence[Sequence[str]]) -> tuple[list[str], list[str]]:
    """Return the commonest characters of the texts, and those of them that follow another in a word; both sorted."""
    words: Counter[str] = Counter()
    for column in texts:
        for text in column:
            normal = tokenizer.normalizer.normalize_str(text)
            words.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    counts: Counter[str] = Counter()
    for word, times in words.items():
        counts.update({character: n * times for character, n in Counter(word).items()})
    known = set(sorted(counts, key=lambda c: (-counts[c], c))[:CHARACTERS])
    return sorted(known), sorted(known & {character for word in words for character in word[1:]})


def save(tokenizer: PreTrainedTokenizerBase, folder: Path, *, given: str | None) -> None:
    """Write a tokenizer's files; one that came from a folder is copied as it is, where the copy reads alike."""
    folder.mkdir(parents=True, exist_ok=True)
    if given is not None and Path(given).is_dir():
        for name in FILES:
            if (Path(given) / name).is_file():
                shutil.copyfile(Path(given) / name, folder / name)
    if not (folder / "tokenizer.json").is_file() or not _alike(AutoTokenizer.from_pretrained(folder), tokenizer):
        tokenizer.save_pretrained(folder)


def _alike(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Return whether two tokenizers read alike: one without a model's config beside it may be of another class."""
    return (
        one.pad_token_id == other.pad_token_id
        and one.get_vocab() == other.get_vocab()
        and one(PROBE)["input_ids"] == other(PROBE)["input_ids"]
    )


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Sequence[str]], *, max_length: int
) -> dict[str, list[Any]]:
    """Return ``input_ids`` and ``token_type_ids`` of each row; what is longer than ``max_length`` is cut.

    A row in which there is nothing, as in a pair of blank texts, is one token of padding.
    """
    columns: dict[str, list[Any]] = {"input_ids": [], "token_type_ids": []}
    for start in range(0, len(texts[0]), CHUNK):
        first, *second = [list(column[start : start + CHUNK]) for column in texts]
        encoded = tokenizer(
            first, second[0] if second else None, truncation=True, max_length=max_length, return_token_type_ids=True
        )
        for (name, values), empty in zip(columns.items(), ([tokenizer.pad_token_id], [0]), strict=True):
            values.extend(row or empty for row in encoded[name])
    return columns
