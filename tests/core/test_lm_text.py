"""Text for language models: every form gives the same documents, parts share nothing, every fault is told at once."""

import bz2
import gzip
import json
import lzma
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capgap_core import sources
from capgap_core.documents import LmText
from capgap_core.errors import InputFaults
from capgap_core.lm_text import read_text
from capgap_core.loading import Cache

Rows = list[dict[str, Any]]


def rows(count: int = 60, of: str = "train", **extra: Any) -> Rows:
    return [{"text": f"a text of {of}\nwith number {n}", **extra} for n in range(count)]


def jsonl(data: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in data).encode()


def parquet(data: Rows) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(data), sink)
    return sink.getvalue().to_pybytes()


def plain(data: Rows) -> bytes:
    return "\n\n".join(row["text"] for row in data).encode()


def texts(made: LmText, part: str) -> list[str]:
    return [one.text for one in made.parts[part]]


Read = Callable[..., LmText]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Return a function that reads the files it is given, all of a folder or the first of them."""

    def reading(files: dict[str, bytes | Rows], *, alone: bool = False, seed: int = 0, **asked: Any) -> LmText:
        folder = tmp_path / "set"
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content if isinstance(content, bytes) else jsonl(content))
        place = folder / next(iter(files)) if alone else folder
        return read_text(str(place), seed=seed, cache=Cache(tmp_path / "cache"), **asked)

    return reading


def refused(read: Read, files: dict[str, bytes | Rows], **asked: Any) -> str:
    with pytest.raises(InputFaults) as caught:
        read(files, **asked)
    assert all(f.field and f.value and f.rule and f.remedy for f in caught.value.faults)
    return str(caught.value)


PARTS: dict[str, bytes | Rows] = {"train.jsonl": rows(), "dev.jsonl": rows(4, "dev"), "test.jsonl": rows(5, "test")}


# Forms


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress, bz2.compress], ids=["", "gz", "xz", "bz2"])
@pytest.mark.parametrize("form", ["jsonl", "txt"])
def test_forms_give_the_same_documents(form: str, pack: Callable[[bytes], bytes], read: Read) -> None:
    packed = {gzip.compress: ".gz", lzma.compress: ".xz", bz2.compress: ".bz2"}.get(pack, "")
    data = rows()
    data[3]["text"] = "  a line\u2028that does\x85not end\n\ttab"
    content = {"jsonl": jsonl, "txt": plain}[form]
    files = {f"{part}.{form}{packed}": pack(content(held)) for part, held in (("train", data), ("valid", rows(4, "v")))}
    made = read({**files, f"test.{form}{packed}": pack(content(rows(5, "t")))})
    assert sorted(texts(made, "train")) == sorted(row["text"] for row in data)
    assert {part: len(held) for part, held in made.parts.items()} == {"train": 60, "valid": 4, "test": 5}
    assert made.sizes["valid"] == sum(len(row["text"].encode()) for row in rows(4, "v"))
    assert (made.name, made.empty, made.repeated, made.notes) == ("set", 0, 0, ())


def test_parquet_in_shards_is_joined(read: Read) -> None:
    files = {f"train-0{n}-of-02.parquet": parquet(rows(20, f"shard {n}")) for n in range(2)}
    made = read({**files, "validation.parquet": parquet(rows(3, "v")), "test.parquet": parquet(rows(3, "t"))})
    assert {part: len(held) for part, held in made.parts.items()} == {"train": 40, "valid": 3, "test": 3}
    assert Counter(one.source for one in made.parts["train"]) == dict.fromkeys(files, 20)


def test_blank_lines_end_a_document_where_there_are_any(read: Read) -> None:
    stretches = b"\xef\xbb\xbf\n \na first\r\n  line\r\n\r\n \t\r\nsecond\n\n\nthird\n\n"
    lines = b"one\n two\nthree\nfour \n\n"
    made = read({"train.txt": stretches, "dev.txt": lines, "test.txt": b"\nalone"})
    assert sorted(texts(made, "train")) == ["a first\n  line", "second", "third"]
    assert sorted(texts(made, "valid")) == [" two", "four ", "one", "three"]
    assert texts(made, "test") == ["alone"]
    assert {one.text: (one.source, one.path) for one in made.parts["valid"]}["three"] == ("dev.txt", "dev.txt:3")


def test_a_source_is_the_column_or_the_file(read: Read) -> None:
    held = rows(3, "v", source="books", path="a/b")
    held[1] |= {"source": None, "path": None}
    made = read({**PARTS, "dev.jsonl": held})
    assert sorted({(one.source, one.path) for one in made.parts["valid"]}) == [
        ("books", "a/b"),
        ("dev.jsonl", "dev.jsonl:2"),
    ]
    assert {one.source for one in made.parts["train"]} == {"train.jsonl"}
    odd = read({**PARTS, "dev.jsonl": rows(3, "v", source=7)})
    assert {one.source for one in odd.parts["valid"]} == {"dev.jsonl"}


def test_a_column_is_named(read: Read) -> None:
    files = {
        f"{part}.jsonl": [{"body": f"{part} {n}", "text": n} for n in range(9)] for part in ("train", "dev", "test")
    }
    assert sorted(texts(read(files, column="body"), "valid")) == [f"dev {n}" for n in range(9)]
    said = refused(read, files)
    assert said.count("column 'text' of") == said.count("holds no text") == 3
    assert refused(read, files, column="boy").count("has no such column") == 3


def test_a_table_and_a_text_may_be_parts_of_one_data_set(read: Read) -> None:
    made = read({"train.txt": plain(rows()), "train.md": b"# words", "dev.jsonl": rows(4, "v"), "test.txt": b"a\nb"})
    assert {part: len(held) for part, held in made.parts.items()} == {"train": 60, "valid": 4, "test": 2}
    given = read(
        {"a.txt": plain(rows()), "b.txt": b"v\nw", "c.jsonl": rows(3, "t")},
        splits={"train": "a.txt", "dev": "b.txt", "test": "c.jsonl"},
    )
    assert {part: len(held) for part, held in given.parts.items()} == {"train": 60, "valid": 2, "test": 3}


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    held = {name: datasets.Dataset.from_list(rows(6, name)) for name in ("train", "validation", "test")}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: held)
    monkeypatch.setattr(sources, "_on_hub", lambda name, revision: ("owner/set", None))
    made = read_text("owner/set", seed=0, cache=Cache(tmp_path))
    assert (made.name, {part: len(one) for part, one in made.parts.items()}) == (
        "set",
        {"train": 6, "valid": 6, "test": 6},
    )
    assert {one.source for one in made.parts["valid"]} == {"owner/set:validation"}


def test_pysource_comes_in_an_order_of_its_own(tmp_path: Path) -> None:
    one, other = (read_text("pysource", seed=seed, cache=Cache(tmp_path)) for seed in (0, 1))
    assert one.digest == other.digest
    assert one.sizes == other.sizes
    assert one.parts["train"] != other.parts["train"]
    with pytest.raises(InputFaults, match="2 faults"):
        read_text("pysource", column="text", splits={"train": "a"}, seed=0, cache=Cache(tmp_path))


# Parts


def test_one_file_is_cut_by_seed_and_text(read: Read) -> None:
    data = rows(400)
    first, again, other = (read({"a.jsonl": data}, alone=True, seed=seed) for seed in (0, 0, 1))
    assert first == again
    for part in ("train", "valid", "test"):
        assert set(texts(first, part)) != set(texts(other, part))
        assert len(first.parts[part]) == pytest.approx(400 * (0.9 if part == "train" else 0.05), abs=2)
    assert sorted(text for part in first.parts for text in texts(first, part)) == sorted(row["text"] for row in data)
    moved = read({"a.jsonl": data[::-1]}, alone=True)
    assert all(set(texts(moved, part)) == set(texts(first, part)) for part in first.parts)
    assert "cut from train" in first.notes[0]
    assert first.digest == other.digest


def test_copies_stay_on_one_side_of_a_cut(read: Read) -> None:
    data = rows(100)
    copies = [{"text": row["text"].replace("\n", "  ")} for row in data]
    made = read({"a.jsonl": [*data, *copies]}, alone=True)
    sides = [{" ".join(text.split()) for text in texts(made, part)} for part in made.parts]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 100
    assert sum(map(len, made.parts.values())) == 200
    assert made.repeated == 0


@pytest.mark.parametrize("given", ["dev", "test"])
def test_only_the_part_that_is_absent_is_cut(given: str, read: Read) -> None:
    made = read({"train.jsonl": rows(100), f"{given}.jsonl": rows(9, given)})
    whole, cut = ("valid", "test") if given == "dev" else ("test", "valid")
    assert (len(made.parts[whole]), len(made.parts[cut]), len(made.parts["train"])) == (9, 5, 95)
    assert made.notes == (f"there is no {cut} part: each is cut from train, by document and seed",)


def test_what_stands_in_two_parts_is_taken_from_train_alone(read: Read) -> None:
    held = [*rows(4, "dev"), {"text": " "}, {"text": ""}, {"text": None}]
    test = [*rows(5, "test"), rows(1, "dev")[0]]
    train = [*rows(), *rows(2, "dev"), {"text": " a text of  test with number 4\n"}, {"text": "\n"}]
    made = read({"train.jsonl": train, "dev.jsonl": held, "test.jsonl": test})
    assert {part: len(held) for part, held in made.parts.items()} == {"train": 60, "valid": 4, "test": 6}
    assert (made.empty, made.repeated) == (4, 3)
    assert set(texts(made, "train")) == {row["text"] for row in rows()}


def test_an_order_depends_on_the_seed_alone(read: Read) -> None:
    first, other = read(PARTS), read(PARTS, seed=1)
    assert texts(first, "train") != texts(other, "train") != [row["text"] for row in rows()]
    assert sorted(texts(first, "train")) == sorted(texts(other, "train"))
    changed = read({**PARTS, "dev.jsonl": rows(7, "d")})
    assert texts(changed, "train") == texts(first, "train")
    assert changed.digest != first.digest == other.digest


# Faults


def test_everything_that_is_wrong_is_said_at_once(read: Read) -> None:
    files = {"train-1.jsonl": [{"body": "a"}], "train-2.jsonl": [{"text": 3}], "dev.txt": b"caf\xe9", "test.jsonl": b""}
    said = refused(read, files, splits={"valid": "dev.txt"})
    assert said.startswith("5 faults")
    assert "data.splits = valid: is no part of a text" in said
    assert "dataset (train) = text: train-1.jsonl has no such column" in said
    assert "column 'text' of train-2.jsonl: holds no text" in said
    assert "dataset (dev) = dev.txt: is not UTF-8 text" in said
    assert "dataset (test) = test.jsonl: holds no text" in said


def test_a_part_that_is_no_other(read: Read) -> None:
    assert "holds the same rows as" in refused(read, {**PARTS, "test.jsonl": PARTS["dev.jsonl"]})
    files = {"train.jsonl": rows(3, "dev"), "dev.jsonl": rows(4, "dev"), "test.jsonl": rows(5, "test")}
    assert "no document that is not in valid or test" in refused(read, files)


def test_parts_that_are_not_there(read: Read, tmp_path: Path) -> None:
    assert "has no train part; it holds dev.jsonl" in refused(read, {"dev.jsonl": rows(4, "dev")})
    (tmp_path / "set" / "dev.jsonl").unlink()
    said = refused(read, {"few.jsonl": [*rows(2), *rows(2)]}, alone=True)
    assert "has 2 documents, and valid and test are to be cut from them" in said
    for given in (str(tmp_path / "set" / "fwe.jsonl"), "nothing.txt"):
        with pytest.raises(InputFaults, match="is not there"):
            read_text(given, seed=0, cache=Cache(tmp_path / "cache"))


def test_a_long_document_is_trained_on_where_the_others_are_few(read: Read) -> None:
    made = read({"a.jsonl": [{"text": "a long text " * 500}, {"text": "short"}, {"text": "brief"}]}, alone=True)
    assert {part: len(held) for part, held in made.parts.items()} == {"train": 1, "valid": 1, "test": 1}
    assert len(made.parts["train"][0].text) > 1000


def test_files_without_a_row_hold_no_text(read: Read, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "none.parquet")
    files = {"train.jsonl": rows(), "dev.txt": b"", "test.parquet": (tmp_path / "none.parquet").read_bytes()}
    said = refused(read, files)
    assert said.startswith("2 faults")
    assert "dataset (dev) = dev.txt: holds no text" in said
    assert "dataset (test) = test.parquet: holds no text" in said


def test_a_file_of_another_kind_is_told_which_may_be_given(read: Read) -> None:
    assert "is none of .txt, .json, .jsonl" in refused(read, {"notes.md": b"a\n\nb"}, alone=True)


def test_two_files_that_could_be_one_part(read: Read) -> None:
    said = refused(read, {**PARTS, "valid.txt": b"a\nb", "test-old.jsonl": rows(3, "old")})
    assert said.startswith("2 faults")
    assert "dev.jsonl, valid.txt could each be the dev part" in said


# Real text


def test_prose_has_its_sources(shared: Path, tmp_path: Path) -> None:
    place = shared / "data" / "lm" / "prose" / "valid.jsonl.xz"
    made = read_text(str(place), seed=0, cache=Cache(tmp_path))
    found = [one for held in made.parts.values() for one in held]
    assert (len(found), made.empty, made.repeated) == (415, 0, 0)
    assert sum(made.sizes.values()) == 1_954_833
    assert Counter(one.source for one in found)["COST-ELTeC/ELTeC-eng"] == 12
    assert not any(one.path.startswith("valid.jsonl.xz") for one in found)


@pytest.mark.parametrize(("name", "documents"), [("tinyshakespeare", 7222), ("wiki_demo", 30)])
def test_real_plain_files(name: str, documents: int, shared: Path, tmp_path: Path) -> None:
    place = shared / "data" / "lm" / f"{name}.txt.xz"
    made = read_text(str(place), seed=0, cache=Cache(tmp_path))
    assert sum(map(len, made.parts.values())) == documents
    words = sum(len(one.text.split()) for held in made.parts.values() for one in held)
    assert words == len(lzma.decompress(place.read_bytes()).decode().split())
