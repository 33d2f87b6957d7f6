"""Tokenizers that are trained: the same texts give the same one, and it takes a word apart as BERT's do."""

import csv

import builders
import pytest
from transformers import BertTokenizer

from capgap_core import tokens


@pytest.fixture
def texts(tmp_path) -> list[str]:
    with builders.single_csv(tmp_path).open(newline="", encoding="utf8") as stream:
        return [row["text"] for row in csv.DictReader(stream)]


def test_the_same_texts_give_the_same_tokenizer(texts) -> None:
    """The trainer's own numbering differs from one training to the next, also within a process."""
    made = {tokens.trained((texts,), vocabulary=320, max_length=16).backend_tokenizer.to_str() for _ in range(6)}
    assert len(made) == 1
    (first,) = made
    assert tokens.trained((texts[::-1],), vocabulary=320, max_length=16).backend_tokenizer.to_str() == first


def test_a_pair_of_columns_is_read_whole(texts) -> None:
    half = len(texts) // 2
    both = tokens.trained((texts[:half], texts[half:]), vocabulary=320, max_length=16)
    assert both.get_vocab() == tokens.trained((texts,), vocabulary=320, max_length=16).get_vocab()


def test_words_come_apart_as_in_transformers_own_bert(texts, tmp_path) -> None:
    made = tokens.trained((texts,), vocabulary=320, max_length=64)
    vocabulary = sorted(made.get_vocab(), key=made.get_vocab().__getitem__)
    assert vocabulary[:5] == list(tokens.SPECIAL)
    assert len(made) == len(vocabulary) == 320
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf8")
    theirs = BertTokenizer.from_pretrained(tmp_path)
    awkward = ["The SUN ##sun, glowing; ##a [x] Dämmerung!", "moonlight 0123456789 日本", "", "[SEP] ## ##"]
    for text in [*texts[:20], *awkward]:
        assert made(text, text[:9])["input_ids"] == theirs(text, text[:9])["input_ids"], text
        assert made(text, text[:9])["token_type_ids"] == theirs(text, text[:9])["token_type_ids"]


def test_only_the_commonest_characters_are_known(texts, monkeypatch) -> None:
    monkeypatch.setattr(tokens, "CHARACTERS", 12)
    made = tokens.trained((texts,), vocabulary=320, max_length=16)
    known = {piece.removeprefix("##") for piece in made.get_vocab() if len(piece.removeprefix("##")) == 1}
    counts = {c: "".join(texts).count(c) for c in set("".join(texts)) if c != " "}
    assert known == set(sorted(counts, key=lambda c: (-counts[c], c))[:12])
