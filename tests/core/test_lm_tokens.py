"""Tokenizers of language models lose nothing and are the same anywhere; bytes are exact; rows hold everything once."""

import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given as whatever, settings, strategies as some
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

from capgap_core import lm_tokens, tokens
from capgap_core.errors import InputFaults
from capgap_core.lm_rows import Rows, Stream
from capgap_core.lm_tokens import ALPHABET, END, byte_lengths, byte_tokenizer, bytes_of, encode, trained_bpe

SENTENCES = [
    f"The {a} {b} of number {n} isn't {c}, und heißt «{a}{c}»: {n * 37 % 101}.\n"
    for n, (a, b, c) in enumerate(
        (a, b, c)
        for a in ("small", "large", "other")
        for b in ("student", "teacher", "assistant")
        for c in ("distilled", "pruned", "日本語", "naïve")
    )
]
TEXTS = some.text() | some.sampled_from([f"a{END}b", " \r\n\t", "\x00\x85\u2028", "e\u0301 é 👩‍🔬", f"{END} {END}"])


@pytest.fixture(scope="module")
def bpe() -> PreTrainedTokenizerFast:
    return trained_bpe(SENTENCES, 400)


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return request.getfixturevalue("byte_level" if request.param == "bytes" else "bpe")


# Tokenizers


@whatever(text=TEXTS)
@settings(deadline=None, max_examples=200)
def test_bytes_are_lossless_on_any_text(byte_level: PreTrainedTokenizerFast, text: str) -> None:
    ids = byte_level(text)["input_ids"]
    assert ids == list(text.encode())
    assert byte_level.decode(ids) == text
    assert encode(byte_level, [text])[0].tolist() == [*ids, 256]


@whatever(text=TEXTS)
@settings(deadline=None, max_examples=200)
def test_bpe_is_lossless_on_any_text(bpe: PreTrainedTokenizerFast, text: str) -> None:
    ids = bpe(text)["input_ids"]
    assert bpe.decode(ids) == text
    assert encode(bpe, [text])[0].tolist() == [*ids, 256]


def test_ids_are_the_bytes_the_separator_and_what_is_merged(bpe: PreTrainedTokenizerFast) -> None:
    assert sorted(ALPHABET) == sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = sorted(bpe.get_vocab(), key=bpe.get_vocab().__getitem__)
    assert vocabulary[:257] == [*ALPHABET, END]
    assert len(vocabulary) == len(bpe) == lm_tokens.vocabulary_of(bpe) == 400
    assert (bpe.eos_token_id, bpe.pad_token_id) == (256, 256)
    assert len(byte_tokenizer()) == 257
    assert len(bpe("The student of number")["input_ids"]) < 8
    assert len(trained_bpe(["aaaa"], 400)) < 400
    with pytest.raises(ValueError, match="no room"):
        trained_bpe(SENTENCES, 256)


def test_the_same_texts_give_the_same_file_in_any_process_and_order(
    bpe: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "texts.json").write_text(json.dumps(SENTENCES[::-1]), encoding="utf8")
    code = "import json, sys\nfrom pathlib import Path\nfrom capgap_core import lm_tokens, tokens\n"
    code += "made = lm_tokens.trained_bpe(json.loads(Path(sys.argv[1]).read_text('utf8')), 400)\n"
    code += "tokens.save(made, Path(sys.argv[2]), given=None)"
    files = []
    for seed in ("1", "2"):
        argv = [sys.executable, "-c", code, str(tmp_path / "texts.json"), str(tmp_path / seed)]
        subprocess.run(argv, check=True, env={**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": seed})
        files.append({path.name: path.read_bytes() for path in (tmp_path / seed).iterdir()})
    assert files[0] == files[1]
    tokens.save(bpe, tmp_path / "here", given=None)
    assert files[0]["tokenizer.json"] == (tmp_path / "here" / "tokenizer.json").read_bytes()


def test_a_saved_one_loads_as_any_other(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokens.save(tokenizer, tmp_path, given=None)
    for loaded in (lm_tokens.given(str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)):
        for text in (*SENTENCES, f"a{END}b"):
            assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert loaded.decode(loaded(f" ,a . {END}")["input_ids"]) == f" ,a . {END}"
        assert loaded.eos_token_id == 256


def test_a_tokenizer_that_cannot_part_documents_is_refused(tmp_path: Path) -> None:
    tokens.save(tokens.trained((SENTENCES,), vocabulary=200, max_length=16), tmp_path / "bert", given=None)
    with pytest.raises(InputFaults, match="has no token for the end of a text"):
        lm_tokens.given(str(tmp_path / "bert"))
    with pytest.raises(InputFaults, match="cannot be read") as caught:
        lm_tokens.given(str(tmp_path))
    assert caught.value.__cause__ is not None


# Streams


def test_documents_follow_one_another_with_what_ends_them(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = ["", *SENTENCES, f"no {END} here"]
    ids, starts = encode(tokenizer, iter(texts))
    assert (ids.dtype, starts.dtype, starts[0], starts[-1]) == (np.uint16, np.int64, 0, len(ids))
    assert np.flatnonzero(ids == 256).tolist() == (starts[1:] - 1).tolist()
    for text, start, end in zip(texts, starts[:-1], starts[1:], strict=True):
        assert tokenizer.decode(ids[start : end - 1].tolist()) == text


def test_what_is_tokenised_together_does_not_matter(
    bpe: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, starts = encode(bpe, SENTENCES)
    monkeypatch.setattr(lm_tokens, "_CHUNK", 100)
    for one, other in zip(encode(bpe, SENTENCES), (ids, starts), strict=True):
        np.testing.assert_array_equal(one, other)
    assert encode(bpe, [])[0].shape == (0,)
    assert encode(bpe, [])[1].tolist() == [0]


def test_a_tokenizer_that_cuts_texts_is_not_let_and_keeps_its_ways(bpe: PreTrainedTokenizerFast) -> None:
    mine = PreTrainedTokenizerFast(tokenizer_object=bpe.backend_tokenizer, eos_token=END)
    mine.backend_tokenizer.enable_truncation(4)
    before = mine.backend_tokenizer.to_str()
    np.testing.assert_array_equal(encode(mine, [f"{SENTENCES[0]}{END}"])[0], encode(bpe, [f"{SENTENCES[0]}{END}"])[0])
    assert mine.backend_tokenizer.to_str() == before
    assert mine.backend_tokenizer.encode(END).ids == [256]


# Bytes


@whatever(texts=some.lists(TEXTS, max_size=4))
@settings(deadline=None, max_examples=100)
def test_bytes_per_token_add_up_to_the_text(
    byte_level: PreTrainedTokenizerFast, bpe: PreTrainedTokenizerFast, texts: list[str]
) -> None:
    for tokenizer in (byte_level, bpe):
        ids, _ = encode(tokenizer, texts)
        assert bytes_of(tokenizer, ids) == sum(len(text.encode()) for text in texts)
        held = [bytes(map(ALPHABET.index, token)) for token in tokenizer.convert_ids_to_tokens(ids[ids != 256])]
        assert b"".join(held) == "".join(texts).encode()
        assert byte_lengths(tokenizer)[ids[ids != 256]].tolist() == list(map(len, held))


def test_bytes_of_other_kinds_are_not_guessed() -> None:
    with pytest.raises(InputFaults, match="is no byte-level tokenizer"):
        byte_lengths(tokens.trained((SENTENCES,), vocabulary=200, max_length=16))


def test_gpt2_is_read_and_counted(shared: Path, tmp_path: Path) -> None:
    place = shared / "data" / "tokenizers" / "gpt2"
    GPT2Tokenizer(str(place / "vocab.json"), str(place / "merges.txt")).save_pretrained(tmp_path)
    tokenizer = lm_tokens.given(str(tmp_path))
    texts = [*SENTENCES, "<|endoftext|> is a text here, 👩‍🔬 \x00"]
    ids, starts = encode(tokenizer, texts)
    assert (ids.dtype, lm_tokens.vocabulary_of(tokenizer), tokenizer.eos_token_id) == (np.uint16, 50257, 50256)
    assert (ids == 50256).sum() == len(texts) == len(starts) - 1
    assert bytes_of(tokenizer, ids) == sum(len(text.encode()) for text in texts)


# Rows


def stream(sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return a stream of documents of so many tokens, each token its own place, for which the separator is no other."""
    starts = np.cumsum([0, *sizes], dtype=np.int64)
    return np.arange(starts[-1]).astype(np.uint32), starts


def all_of(packed: Stream) -> Rows:
    return packed.rows(np.arange(len(packed)))


def test_the_layout_is_that_of_the_docstring() -> None:
    packed = Stream(*stream([4, 5, 2]), 4)
    rows = all_of(packed)
    assert rows.tokens.tolist() == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [8, 9, 10, 10, 10]]
    assert rows.document.tolist() == [[0, 0, 0, 0, 1], [1, 1, 1, 1, 1], [1, 2, 2, -1, -1]]
    assert rows.keep.tolist() == [[True, True, True, False], [True] * 4, [False, True, False, False]]
    assert rows.positions.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 0, 1, 0]]
    assert rows.inputs[0].tolist() == [0, 1, 2, 3]
    assert rows.targets[0].tolist() == [1, 2, 3, 4]
    assert packed.kept().tolist() == [3, 4, 1]


@whatever(
    sizes=some.lists(some.integers(1, 12), min_size=1, max_size=12).filter(lambda s: sum(s) > 1),
    length=some.integers(1, 9),
)
@settings(deadline=None, max_examples=300)
def test_every_target_stands_once(sizes: list[int], length: int) -> None:
    ids, starts = stream(sizes)
    packed = Stream(ids, starts, length)
    rows = all_of(packed)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    assert rows.tokens.shape == rows.document.shape == (len(packed), length + 1)
    real = rows.document >= 0
    assert real[:, 1].all()
    np.testing.assert_array_equal(rows.document[real], owner[rows.tokens[real]])
    assert sorted(rows.targets[real[:, 1:]]) == list(range(1, len(ids)))
    assert sorted(rows.targets[rows.keep]) == sorted(set(range(len(ids))) - set(starts.tolist()))
    np.testing.assert_array_equal(rows.targets[rows.keep], rows.inputs[rows.keep] + 1)
    np.testing.assert_array_equal(packed.kept(), rows.keep.sum(1))
    np.testing.assert_array_equal(
        rows.positions[real[:, :-1]],
        (rows.inputs - np.maximum(starts[rows.document[:, :-1]], rows.inputs[:, :1]))[real[:, :-1]],
    )


def test_rows_are_found_by_number() -> None:
    packed = Stream(*stream([5, 9, 3, 30]), 4)
    whole, chosen = all_of(packed), np.array([7, 0, 3, 3])
    for name in ("index", "tokens", "document", "keep", "positions"):
        np.testing.assert_array_equal(getattr(packed.rows(chosen), name), getattr(whole, name)[chosen])


def test_nothing_to_cut_is_said() -> None:
    for sizes, length in (([1], 4), ([9], 0)):
        with pytest.raises(ValueError, match="cannot cut"):
            Stream(*stream(sizes), length)


# Real text


def test_prose_is_told_in_bytes(shared: Path) -> None:
    lines = lzma.decompress((shared / "data" / "lm" / "prose" / "valid.jsonl.xz").read_bytes()).split(b"\n")[:60]
    texts = [json.loads(line)["text"] for line in lines]
    size = sum(len(text.encode()) for text in texts)
    for one, per_token in ((byte_tokenizer(), 1.0), (trained_bpe(texts, 2048), 3.0)):
        ids, starts = encode(one, texts)
        assert bytes_of(one, ids) == size
        assert size / (len(ids) - len(texts)) >= per_token
        rows = all_of(Stream(ids, starts, 128))
        assert rows.keep.sum() == len(ids) - len(texts)
        assert bytes_of(one, rows.targets[rows.keep]) == size - bytes_of(one, ids[starts[:-1]])
