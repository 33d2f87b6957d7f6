"""Models in llama2.c's layout, against a published one's reference and against run.c's steps, written out here."""

import json
import lzma
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from capgap_core import llama2c
from capgap_core.errors import InputFaults
from capgap_core.llama2c_tokens import read_tokenizer

SIZES = {"hidden": 32, "neurons": 48, "layers": 3, "heads": 4, "kv_heads": 2, "vocabulary": 270, "context": 24}
FIXED = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256))]
LETTERS = [" ", "a", "b", "é", "ab", " a", "aba", "ba", " ab", "bab", "aa"]
"""Pieces after the fixed ones, so many that there are 270."""
AWKWARD = [
    "", " ", "  two  spaces ", "\n\ttabs\r\n", "naïve café — “quotes” …", "日本語 שלום", "😀👩‍👩‍👧", "▁ is no space",
    "<s> and </s> and <unk>", "<0x41>", "\n<s>\n", "aaaaaaaaaaa", "e\u0301", "\x00nul",
]  # fmt: skip

Weights = dict[str, Tensor]
Pieces = list[tuple[float, bytes]]


def shapes(sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a file in its order, the layers of a kind as one, by llama2.c's names."""
    d, n, v, l = sizes["hidden"], sizes["neurons"], sizes["vocabulary"], sizes["layers"]  # noqa: E741
    size = d // sizes["heads"]
    keys, rotations = size * sizes["kv_heads"], (sizes["context"], size // 2)
    return {
        "emb": (v, d), "rms_att": (l, d), "wq": (l, d, d), "wk": (l, keys, d), "wv": (l, keys, d), "wo": (l, d, d),
        "rms_ffn": (l, d), "w1": (l, n, d), "w2": (l, d, n), "w3": (l, n, d), "rms_final": (d,),
        "rope_cos": rotations, "rope_sin": rotations, "wcls": (v, d),
    }  # fmt: skip


def write_model(path: Path, *, tied: bool, rotations: bool = True) -> Weights:
    """Write a model of random weights and return them."""
    draw = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=draw) / shape[-1] ** 0.5 for name, shape in shapes(SIZES).items()}
    weights["emb"] *= 3
    left_out = {"wcls"} if tied else set()
    left_out |= set() if rotations else {"rope_cos", "rope_sin"}
    header = [-n if name == "vocabulary" and not tied else n for name, n in SIZES.items()]
    body = b"".join(w.numpy().astype("<f4").tobytes() for name, w in weights.items() if name not in left_out)
    path.write_bytes(struct.pack("<7i", *header) + body)
    return {**weights, "wcls": weights["emb"]} if tied else weights


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def rotated(x: Tensor) -> Tensor:
    """Turn neighbours 2i and 2i+1 of each head; ``x`` is ``(tokens, heads, size)``."""
    tokens, _, size = x.shape
    angles = torch.arange(tokens)[:, None] / 10000.0 ** (torch.arange(0, size, 2) / size)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.view_as_real(turned).flatten(-2)


def forward(w: Weights, ids: Tensor) -> Tensor:
    """Return the logits ``(tokens, vocabulary)`` of ids as run.c would, head by head."""
    heads, shared = SIZES["heads"], SIZES["heads"] // SIZES["kv_heads"]
    x, size = w["emb"][ids], SIZES["hidden"] // heads
    mask = torch.full((len(ids), len(ids)), -math.inf).triu(1)
    for i in range(SIZES["layers"]):
        y = norm(x, w["rms_att"][i])
        q, k, v = ((y @ w[name][i].T).unflatten(-1, (-1, size)) for name in ("wq", "wk", "wv"))
        q, k = rotated(q), rotated(k)
        seen = [
            (q[:, h] @ k[:, h // shared].T / size**0.5 + mask).softmax(-1) @ v[:, h // shared] for h in range(heads)
        ]
        x = x + torch.cat(seen, -1) @ w["wo"][i].T
        y = norm(x, w["rms_ffn"][i])
        x = x + (F.silu(y @ w["w1"][i].T) * (y @ w["w3"][i].T)) @ w["w2"][i].T
    return norm(x, w["rms_final"]) @ w["wcls"].T


def scored(texts: list[str]) -> Pieces:
    """Return a vocabulary with these pieces after the fixed ones, best first."""
    return [*((0.0, piece) for piece in FIXED), *((-float(i), text.encode()) for i, text in enumerate(texts))]


def write_tokenizer(path: Path, pieces: Pieces) -> Path:
    longest = max(len(piece) for _, piece in pieces)
    entries = [struct.pack("<fi", score, len(piece)) + piece for score, piece in pieces]
    path.write_bytes(struct.pack("<i", longest) + b"".join(entries))
    return path


def read_pieces(path: Path) -> Pieces:
    data, pieces, at = path.read_bytes(), [], 4
    while at < len(data):
        score, size = struct.unpack_from("<fi", data, at)
        pieces.append((score, data[at + 8 : at + 8 + size]))
        at += 8 + size
    return pieces


def run_c(pieces: Pieces, text: str) -> list[int]:
    """Return the ids that run.c's ``encode`` gives a text: look at every neighbour after every step."""
    lookup = {piece: i for i, (_, piece) in enumerate(pieces)}
    ids = [1]
    for character in " " + text if text else "":
        piece = character.encode()
        ids += [lookup[piece]] if piece in lookup else [byte + 3 for byte in piece]
    while True:
        best, at = -1e10, -1
        for i in range(len(ids) - 1):
            made = lookup.get(pieces[ids[i]][1] + pieces[ids[i + 1]][1])
            if made is not None and pieces[made][0] > best:
                best, at = pieces[made][0], i
        if at < 0:
            return ids
        ids[at : at + 2] = [lookup[pieces[ids[at]][1] + pieces[ids[at + 1]][1]]]


def english(shared: Path) -> Iterator[str]:
    """Yield stretches of 160 characters from all over real texts."""
    for name in ("tinystories_sample", "wizard_of_oz", "wiki_demo"):
        text = lzma.decompress((shared / "data" / "lm" / f"{name}.txt.xz").read_bytes()).decode("utf8")
        for start in range(0, len(text) - 160, max(len(text) // 24, 160)):
            yield text[start : start + 160]


def sentencepiece(path: Path) -> Pieces:
    """Return the pieces of a SentencePiece model (protobuf: 1 the text, 2 the score) as llama2.c has them."""
    data, pieces, at = path.read_bytes(), [], 0
    while data[at] == 0x0A and data[at + 2] == 0x0A:  # each is shorter than 128 bytes, so lengths are one byte
        size = data[at + 3]
        text = data[at + 4 : at + 4 + size].replace("▁".encode(), b" ")
        (score,) = struct.unpack_from("<f", data, at + 5 + size)
        pieces.append((score, b"\n%s\n" % text if text in (b"<s>", b"</s>") else text))
        at += 2 + data[at + 1]
    return pieces


def faults_of(caught: pytest.ExceptionInfo[InputFaults]) -> list[str]:
    assert "Traceback" not in str(caught.value)
    return [f"{fault.field}: {fault.rule}" for fault in caught.value.faults]


def test_a_published_model_says_its_reference(shared) -> None:
    folder = shared / "weights" / "stories260K"
    reference = json.loads((folder / "greedy_reference.json").read_text(encoding="utf8"))
    model = llama2c.model_of(folder / "stories260K.bin")
    first = model(torch.tensor([[1]])).logits[0, -1]
    torch.testing.assert_close(first, torch.tensor(reference["first_step_logits"]), atol=1e-4, rtol=0)
    ids = model.generate(torch.tensor([[1]]), do_sample=False, max_length=257)
    assert ids[0].tolist() == reference["tokens"]
    tokenizer = llama2c.tokenizer_of(folder / "tok512.bin", 512)
    # The reference puts pieces one after another; run.c drops the space after BOS.
    assert " " + tokenizer.decode(ids[0], skip_special_tokens=True) == reference["text"]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rotations", [True, False])
def test_logits_are_those_of_neighbours_that_turn(tied, rotations, tmp_path) -> None:
    weights = write_model(tmp_path / "m.bin", tied=tied, rotations=rotations)
    before = torch.get_rng_state()
    model = llama2c.model_of(tmp_path / "m.bin")
    assert torch.equal(torch.get_rng_state(), before)
    assert llama2c.shape_of(tmp_path / "m.bin") == llama2c.Header(**SIZES, tied=tied)
    assert model.config.tie_word_embeddings is tied
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    ids = torch.randint(SIZES["vocabulary"], (SIZES["context"],), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(ids[None]).logits[0]
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, forward(weights, ids), atol=1e-5, rtol=0)


def test_ids_of_english_are_those_of_run_c(shared) -> None:
    path = shared / "weights" / "stories260K" / "tok512.bin"
    tokenizer, pieces = llama2c.tokenizer_of(path, 512), read_pieces(path)
    for text in [*english(shared), *AWKWARD]:
        assert tokenizer(text)["input_ids"] == run_c(pieces, text), text
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_ids_of_a_large_vocabulary_are_those_of_run_c(shared, tmp_path) -> None:
    """Llama 2's own holds runs of spaces, which could be made from parts in many ways."""
    pieces = sentencepiece(shared / "data" / "tokenizers" / "llama" / "tokenizer.model")
    tokenizer = llama2c.tokenizer_of(write_tokenizer(tmp_path / "t.bin", pieces), 32000)
    for text in [*english(shared), *AWKWARD, *(f"x{' ' * n}y{'-' * n}" for n in range(40))]:
        assert tokenizer(text)["input_ids"] == run_c(pieces, text), text


@settings(max_examples=80, deadline=None)
@given(
    made=st.dictionaries(st.text("abé ", min_size=2, max_size=5), st.integers(-6, 6), min_size=1, max_size=14),
    spread=st.sampled_from([0.0, 0.01]),
    texts=st.lists(st.text("ab é😀", max_size=24), min_size=4, max_size=8),
)
def test_ids_are_those_of_run_c_whatever_the_scores(made, spread, texts) -> None:
    """Also where a whole scores better than its parts, or can be made in several ways, or in none, and for ties."""
    better = ((score + spread * i, text.encode()) for i, (text, score) in enumerate(made.items()))
    pieces = [*scored([*" ab"]), *better]
    with TemporaryDirectory() as folder:
        path = write_tokenizer(Path(folder) / "t.bin", pieces)
        tokenizer, faults = read_tokenizer(path, len(pieces))
    if tokenizer is None:
        assert spread == 0.0
        assert ["equal scores" in fault.rule for fault in faults] == [True]
        return
    for text in [*texts, "ab" * 8, "aba" * 5, "a" * 13]:
        assert tokenizer(text)["input_ids"] == run_c(pieces, text)


def test_ids_by_hand(tmp_path) -> None:
    pieces = scored([" ", "a", "b", "ab", "ba", " a", " ab"])
    tokenizer = llama2c.tokenizer_of(write_tokenizer(tmp_path / "t.bin", pieces), 266)
    assert tokenizer("")["input_ids"] == [1]
    assert tokenizer("ab")["input_ids"] == [1, 265]  # "ab" is better than " a", and " ab" ends it
    assert tokenizer("aba")["input_ids"] == [1, 265, 260]
    assert tokenizer("é")["input_ids"] == [1, 259, 0xC3 + 3, 0xA9 + 3]


def test_equal_scores_go_leftmost_first(tmp_path) -> None:
    """As Llama's runs of spaces, which all have one score."""
    runs = [(-1e9, b" " * n) for n in (4, 2, 6, 3, 5)]
    pieces = [*scored([" ", "a"]), *runs]
    tokenizer = llama2c.tokenizer_of(write_tokenizer(tmp_path / "t.bin", pieces), len(pieces))
    for n in range(20):
        text = f"{' ' * n}a{' ' * (n + 3)}"
        assert tokenizer(text)["input_ids"] == run_c(pieces, text)
    assert tokenizer("  a" + " " * 9)["input_ids"] == [1, 264, 260, 263, 264]


@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_loads_as_any_other(tied, tmp_path) -> None:
    write_model(tmp_path / "m.bin", tied=tied)
    pieces = scored(LETTERS)
    write_tokenizer(tmp_path / "t.bin", pieces)
    llama2c.convert(tmp_path / "m.bin", tmp_path / "t.bin", tmp_path / "to" / "folder")
    names = {path.name for path in (tmp_path / "to" / "folder").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "to" / "folder")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "to" / "folder")
    assert type(loaded).__name__ == "LlamaForCausalLM"
    assert loaded.config.tie_word_embeddings is tied
    ids = tokenizer("ab ba <s>é", return_tensors="pt")
    assert ids["input_ids"][0].tolist() == run_c(pieces, "ab ba <s>é")
    assert set(ids) == {"input_ids", "attention_mask"}
    with torch.no_grad():
        assert torch.equal(loaded(**ids).logits, llama2c.model_of(tmp_path / "m.bin")(**ids).logits)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert tokenizer.model_max_length == SIZES["context"]
    assert GenerationConfig.from_pretrained(tmp_path / "to" / "folder").eos_token_id == [1, 2]


def test_a_published_model_loads_from_its_folder(shared, tmp_path) -> None:
    source = shared / "weights" / "stories260K"
    llama2c.convert(source / "stories260K.bin", source / "tok512.bin", tmp_path / "folder")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "folder")
    pieces = read_pieces(source / "tok512.bin")
    for text in AWKWARD:
        assert tokenizer(text)["input_ids"] == run_c(pieces, text)
    ids = tokenizer("Once upon a time", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(loaded(**ids).logits, llama2c.model_of(source / "stories260K.bin")(**ids).logits)


@pytest.mark.parametrize(
    ("extra", "way"), [(-5_000, "short"), (-4, "short"), (-1, "short"), (1, "long"), (900, "long")]
)
@pytest.mark.parametrize("tied", [True, False])
def test_a_file_of_another_length_is_a_fault(extra, way, tied, tmp_path) -> None:
    path = tmp_path / "m.bin"
    write_model(path, tied=tied)
    data = path.read_bytes()
    path.write_bytes(data[:extra] if extra < 0 else data + bytes(extra))
    for read in (llama2c.shape_of, llama2c.model_of):
        with pytest.raises(InputFaults, match=f"too {way}: ") as caught:
            read(path)
        assert len(faults_of(caught)) == 1


@pytest.mark.parametrize(
    ("changed", "fields"),
    [
        ({"hidden": 0}, ["hidden"]),
        ({"neurons": -1, "layers": 0, "context": -5}, ["neurons", "layers", "context"]),
        ({"vocabulary": 0, "heads": 5}, ["vocabulary", "heads", "kv_heads"]),
        ({"heads": 32}, ["heads"]),
        ({"kv_heads": 3}, ["kv_heads"]),
        ({"kv_heads": 8}, ["kv_heads"]),
    ],
)
def test_every_impossible_number_is_a_fault(changed, fields, tmp_path) -> None:
    (tmp_path / "m.bin").write_bytes(struct.pack("<7i", *({**SIZES, **changed}).values()))
    with pytest.raises(InputFaults) as caught:
        llama2c.shape_of(tmp_path / "m.bin")
    assert [line.split(":")[0] for line in faults_of(caught)] == [f"weights.{field}" for field in fields]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "fewer than the 28"),
        (bytes(27), "fewer than the 28"),
        (struct.pack("<7i", 0x616B3432, 1, 288, 768, 6, 6, 6), "later layout"),
        (struct.pack("<7i", *[2**31 - 2] * 3, 1, 1, 2**31 - 1, 2**31 - 1), "too short"),
    ],
)
def test_what_is_no_such_file_is_a_fault(data, why, tmp_path) -> None:
    (tmp_path / "m.bin").write_bytes(data)
    with pytest.raises(InputFaults, match=why):
        llama2c.model_of(tmp_path / "m.bin")


def test_weights_that_are_not_finite_are_a_fault(tmp_path) -> None:
    write_model(tmp_path / "m.bin", tied=True)
    data = bytearray((tmp_path / "m.bin").read_bytes())
    struct.pack_into("<f", data, 28, math.nan)
    (tmp_path / "m.bin").write_bytes(data)
    with pytest.raises(InputFaults, match=r"not every weight is finite: lm_head.weight, model.embed_tokens.weight\."):
        llama2c.model_of(tmp_path / "m.bin")


BASE = scored([" ", "a", "b", "ab", " a"])


@pytest.mark.parametrize(
    ("pieces", "vocabulary", "rules"),
    [
        (BASE, 265, ["it has 264 pieces and the model 265"]),
        (BASE[:100], 100, ["its first 259 pieces are not", "no piece is a space"]),
        ([BASE[1], BASE[0], *BASE[2:]], 264, ["its first 259 pieces are not"]),
        ([*BASE, (-9.0, b"ab"), (-10.0, b"<s>")], 266, ["pieces are there more than once: 262, 264, 265"]),
        ([*BASE, (-9.0, b"\xff"), (math.nan, b"c")], 266, ["not UTF-8: 264", "scores are not finite numbers above"]),
        ([*BASE, (-3.0, b"ba")], 265, ["no order for them is that of run.c: 262, 264"]),
        ([*BASE, (-3.0, b"a "), (-2.0, b" ab")], 266, ["no order for them is that of run.c: 262, 264"]),
        ([BASE[i] for i in range(264) if i != 259], 264, ["it has 263 pieces and", "no piece is a space"]),
    ],
)
def test_every_fault_of_a_vocabulary_is_said(pieces, vocabulary, rules, tmp_path) -> None:
    with pytest.raises(InputFaults) as caught:
        llama2c.tokenizer_of(write_tokenizer(tmp_path / "t.bin", pieces), vocabulary)
    said = faults_of(caught)
    assert len(said) == len(rules), said
    for line, rule in zip(said, rules, strict=True):
        assert rule in line


@pytest.mark.parametrize("harm", ["cut", "long", "negative", "empty", "longest"])
def test_a_vocabulary_that_cannot_be_taken_apart_is_a_fault(harm, tmp_path) -> None:
    path = write_tokenizer(tmp_path / "t.bin", BASE)
    data = path.read_bytes()
    harmed = {
        "cut": data[:-1], "long": data + b"x", "empty": b"", "longest": struct.pack("<i", 5) + data[4:],
        "negative": data[:4] + struct.pack("<fi", 0.0, -8) + data[12:],
    }  # fmt: skip
    path.write_bytes(harmed[harm])
    with pytest.raises(InputFaults, match="more than the 5 bytes" if harm == "longest" else "ends within a piece") as e:
        llama2c.tokenizer_of(path, len(BASE))
    assert len(faults_of(e)) == 1


def test_nothing_is_written_before_every_fault_is_said(tmp_path) -> None:
    write_model(tmp_path / "m.bin", tied=True)
    write_tokenizer(tmp_path / "t.bin", BASE)
    with pytest.raises(InputFaults) as caught:
        llama2c.convert(tmp_path / "none.bin", tmp_path, tmp_path / "t.bin")
    assert [line.split(":")[0] for line in faults_of(caught)] == ["weights", "tokenizer", "folder"]
    with pytest.raises(InputFaults, match="it has 264 pieces and the model 270"):
        llama2c.convert(tmp_path / "m.bin", tmp_path / "t.bin", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    with pytest.raises(InputFaults, match="there is something in its place"):
        llama2c.convert(tmp_path / "m.bin", write_tokenizer(tmp_path / "t.bin", scored(LETTERS)), tmp_path)
