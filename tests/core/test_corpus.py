"""Data sets: every form that is read, and every fault with its place, its rule and its remedy."""

import bz2
import gzip
import json
import lzma
import os
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import run
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capgap_core import sources
from capgap_core.corpus import Corpus
from capgap_core.errors import InputFaults
from capgap_core.loading import Cache
from capgap_core.reading import read_corpus
from capgap_core.recipes import DataRecipe

SHARED = os.environ.get("CAPGAP_SHARED")
Rows = list[dict[str, Any]]


def rows(count: int = 20, **extra: Any) -> Rows:
    return [{"text": f"a text about number {n}", "label": n % 2, **extra} for n in range(count)]


def jsonl(data: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in data).encode()


def delimited(data: Rows, by: str) -> bytes:
    lines = [by.join(data[0]), *(by.join(str(v) for v in row.values()) for row in data)]
    return ("\n".join(lines) + "\n").encode()


def parquet(data: Rows) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(data), sink)
    return sink.getvalue().to_pybytes()


def read(place: Path | str, *, task: str = "auto", split: str = "dev", cache: Path, **data: Any) -> Corpus:
    return read_corpus(str(place), task=task, data=DataRecipe(**data), split=split, cache=Cache(cache))


Refuse = Callable[..., str]


@pytest.fixture
def refuse(tmp_path: Path) -> Refuse:
    """Return a function that reads a folder of these files and returns the message of its faults."""

    def message(files: dict[str, bytes | Rows], **asked: Any) -> str:
        folder = tmp_path / "set"
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content if isinstance(content, bytes) else jsonl(content))
        with pytest.raises(InputFaults) as caught:
            read(folder, cache=tmp_path / "cache", **asked)
        assert all(f.field and f.value and f.rule and f.remedy for f in caught.value.faults)
        return str(caught.value)

    return message


# Forms


@pytest.mark.parametrize("pack", [lambda b: b, gzip.compress, lzma.compress, bz2.compress], ids=["", "gz", "xz", "bz2"])
@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "tsv"])
def test_text_forms_give_the_same_rows(form: str, pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    data = rows()
    data[3]["text"] = "line\u2028and\x85end, NA"
    data[4]["text"] = "null"
    packed = {bytes: "", gzip.compress: ".gz", lzma.compress: ".xz", bz2.compress: ".bz2"}.get(pack, "")
    if form == "csv":
        data[3]["text"] = f'"{data[3]["text"]}"'
    content = {
        "json": json.dumps(data).encode(), "jsonl": jsonl(data),
        "csv": delimited(data, ","), "tsv": delimited(data, "\t"),
    }[form]  # fmt: skip
    path = tmp_path / f"train.{form}{packed}"
    path.write_bytes(pack(content))
    made = read(path, cache=tmp_path / "cache")
    assert made.parts["train"].texts == ([row["text"].strip('"') for row in data],)
    assert made.parts["train"].labels == [n % 2 for n in range(20)]
    assert (made.task, made.metric, made.labels, made.eval_name) == ("classification", "accuracy", ("0", "1"), "cut")


def test_quotes_of_a_tsv_are_text(tmp_path: Path) -> None:
    data = rows()
    data[0]["text"] = '"an open quote'
    (tmp_path / "train.tsv").write_bytes(delimited(data, "\t"))
    assert read(tmp_path / "train.tsv", cache=tmp_path / "cache").parts["train"].texts[0][0] == '"an open quote'


def test_parquet_and_its_shards(tmp_path: Path) -> None:
    folder = tmp_path / "MRPC"
    folder.mkdir()
    for shard in range(2):
        (folder / f"train-0000{shard}-of-00002.parquet").write_bytes(parquet(rows(12)))
    (folder / "validation.parquet").write_bytes(parquet(rows(4)))
    (folder / "README.md").write_text("not data", encoding="utf-8")
    made = read(folder, cache=tmp_path / "cache")
    assert (len(made.parts["train"].labels), len(made.parts["eval"].labels)) == (24, 4)
    assert (made.name, made.metric, made.eval_name) == ("MRPC", "accuracy_and_f1", "dev")


@pytest.mark.parametrize(
    "names", [("sentence",), ("question1", "question2"), ("question", "sentence"), ("premise", "hypothesis")]
)
def test_columns_are_recognised(names: tuple[str, ...], tmp_path: Path) -> None:
    data = [{**{name: f"{name} {n}" for name in names}, "idx": n, "label": "ab"[n % 2]} for n in range(20)]
    (tmp_path / "train.jsonl").write_bytes(jsonl(data))
    made = read(tmp_path / "train.jsonl", cache=tmp_path / "cache")
    assert (made.text_columns, made.label_column, made.labels) == (names, "label", ("a", "b"))


def test_columns_and_parts_are_given(tmp_path: Path) -> None:
    data = [{"left": f"x {n}", "right": n, "gold": n / 7} for n in range(40)]
    for rows_fewer, name in enumerate(("a.jsonl", "b.jsonl", "c.jsonl")):
        (tmp_path / name).write_bytes(jsonl(data[: 40 - rows_fewer]))
    made = read(
        tmp_path, cache=tmp_path / "cache", text_columns=("left", "right"), label_column="gold",
        splits={"train": "a.jsonl", "eval": str(tmp_path / "b.jsonl"), "selection": "c.jsonl"},
    )  # fmt: skip
    assert (made.task, made.metric, made.labels) == ("regression", "pearson_and_spearman", ())
    assert set(made.parts) == {"train", "eval", "selection"}
    assert made.parts["train"].texts[1][7] == "7"
    assert made.parts["eval"].labels[7] == 1.0


def test_integer_labels_are_sorted_as_integers(tmp_path: Path) -> None:
    data = [{"text": f"t {n}", "label": str(n % 12)} for n in range(48)]
    (tmp_path / "train.jsonl").write_bytes(jsonl(data))
    assert read(tmp_path / "train.jsonl", cache=tmp_path / "cache").labels == tuple(map(str, range(12)))


def test_an_eval_part_may_write_the_same_labels_in_another_type(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(jsonl(rows()))
    (tmp_path / "dev.jsonl").write_bytes(jsonl([{**row, "label": str(row["label"])} for row in rows(6)]))
    assert read(tmp_path, cache=tmp_path / "cache").parts["eval"].labels == [0, 1] * 3


@pytest.mark.parametrize(
    ("split", "test_labels", "name"), [("dev", [0, 1], "dev"), ("test", [0, 1], "test"), ("dev", [-1], "dev")]
)
def test_which_part_is_reported_on(split: str, test_labels: list[int], name: str, tmp_path: Path) -> None:
    for part, labels in (("train", [0, 1]), ("dev", [1]), ("test", test_labels)):
        data = [{"text": f"{part} {n}", "label": labels[n % len(labels)]} for n in range(20)]
        (tmp_path / f"{part}.jsonl").write_bytes(jsonl(data))
    assert read(tmp_path, split=split, cache=tmp_path / "cache").eval_name == name


def test_a_test_part_without_labels_is_left_and_said(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(jsonl(rows()))
    (tmp_path / "test.jsonl").write_bytes(jsonl(rows(5, label=-1)))
    made = read(tmp_path, cache=tmp_path / "cache")
    assert made.eval_name == "cut"
    assert "no labels" in made.notes[0]
    assert "a tenth" in made.notes[1]


def test_the_digest_is_of_the_content_and_an_edited_file_is_read_again(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "train.jsonl.gz").write_bytes(gzip.compress(jsonl(rows()), mtime=0))
    first = read(one, cache=tmp_path / "cache")
    assert read(two, cache=tmp_path / "cache").digest == first.digest
    stamp = (one / "train.jsonl.gz").stat()
    (one / "train.jsonl.gz").write_bytes(gzip.compress(jsonl(rows(21)), mtime=0))
    os.utime(one / "train.jsonl.gz", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    edited = read(one, cache=tmp_path / "cache")
    assert len(edited.parts["train"].labels) == 21
    assert edited.digest != first.digest


def test_a_folder_that_could_be_a_hub_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "glue" / "sst2"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_bytes(jsonl(rows()))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputFaults, match=r"Write \./glue/sst2"):
        read("glue/sst2", cache=tmp_path / "cache")
    assert read("./glue/sst2", cache=tmp_path / "cache").name == "sst2"


def test_importing_the_room_does_not_import_datasets() -> None:
    code = "import sys, capgap_core.reading; sys.exit('datasets' in sys.modules)"
    assert run([sys.executable, "-c", code], cwd=Path(sources.__file__).parents[1], check=False).returncode == 0


# The hub


def test_a_hub_data_set_has_its_own_class_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "ja"])}
    )

    def part(labels: list[int]) -> datasets.Dataset:
        return datasets.Dataset.from_dict(
            {"sentence": [f"s {n}" for n in range(len(labels))], "label": labels}, features
        )

    splits = {"train": part([0, 1] * 10), "validation": part([1, 0]), "test": part([-1, -1])}
    asked: list[Any] = []

    def load(*names: Any, **options: Any) -> Any:
        asked.append((*names, options["revision"]))
        return splits

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(sources, "_on_hub", lambda name, revision: ("glue", "cola"))
    made = read("glue/cola@main", cache=tmp_path)
    assert asked == [("glue", "cola", "main")]
    assert (made.labels, made.metric, made.eval_name) == (("no", "ja"), "matthews", "dev")
    assert made.parts["eval"].labels == [1, 0]
    with pytest.raises(InputFaults, match="matched"):
        read("glue/cola", cache=tmp_path, splits={"eval": "matched"})
    with pytest.raises(InputFaults, match="same rows as dev"):
        read("glue/cola", cache=tmp_path, splits={"selection": "validation"})


def test_a_copy_of_a_file_is_no_other_part(refuse: Refuse) -> None:
    files = {"train.jsonl": rows(), "dev.jsonl": rows(6), "chosen.jsonl": rows(6)}
    said = refuse(files, splits={"selection": "chosen.jsonl"})
    assert "data.splits.dev = dev: holds the same rows as selection" in said


def test_a_hub_name_that_the_hub_does_not_know(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    def info(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    with pytest.raises(InputFaults, match="no network") as caught:
        read("nosuch/set", cache=tmp_path)
    assert isinstance(caught.value.__cause__, ConnectionError)


# Faults


def test_a_place_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(jsonl(rows()))
    with pytest.raises(InputFaults, match=r"Did you mean .*train\.jsonl"):
        read(tmp_path / "trian.jsonl", cache=tmp_path)
    with pytest.raises(InputFaults, match="is not there"):
        read("here/nothing.csv", cache=tmp_path)


def changed(row: int, **values: Any) -> Rows:
    data = rows()
    data[row] |= values
    return data


@pytest.mark.parametrize(
    ("train", "says"),
    [
        (rows(20, label=1), ["every row has the label '1'"]),
        (b"", ["(train)", "is empty"]),
        (rows(12), ["12 rows", "16"]),
        (changed(3, label=None), ["'label'", "1 row has no label", "row 4 of 20"]),
        (changed(0, text=None), ["'text'", "1 row has no text", "row 1 of 20"]),
        (changed(5, text="  "), ["no text", "row 6"]),
        (changed(4, label="x"), ["'label'", "several types"]),
        ([{"text": "a b", "label": "x" if n == 9 else str(n % 2)} for n in range(20)], ["'0'", "'x'", "are words"]),
        (b'{"text": "caf\xe9", "label": 1}\n', ["not UTF-8", "iconv"]),
        (b'{"text": "a", "text": "b", "label": 1}\n', ["more than one column 'text'"]),
        (b'{"text": "a", "la', ["cannot be read", "whole"]),
        ([{"text": str(n), "label": n % 2} for n in range(20)], ["holds only numbers", "data.text_columns"]),
        ([{"text": n, "label": n % 2} for n in range(20)], ["holds only numbers"]),
        ([{"text": ["a"], "label": n % 2} for n in range(20)], ["'text'", "not text"]),
        ([{"text": f"t {n}", "label": n} for n in range(1100)], ["1100 classes", "task=regression"]),
        ([{"text": f"t {n}", "score": n / 3 if n else float("nan")} for n in range(40)], ["NaN or infinite", "row 1"]),
        ([{"text": f"t {n}", "sentence": "s", "label": n % 2} for n in range(20)], ["could be the text"]),
        ([{"body": f"t {n}", "label": n % 2} for n in range(20)], ["none is known", "body"]),
        ([{"text": f"t {n}", "class": n % 2} for n in range(20)], ["data.label_column", "class"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_training_part(train: bytes | Rows, says: list[str], refuse: Refuse) -> None:
    message = refuse({"train.jsonl": train})
    for words in says:
        assert words in message


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("train.csv", b"text,text,label\na,b,1\n", "more than one column 'text'"),
        ("train.csv", "text,label\ncafé,1\n".encode("latin-1"), "not UTF-8"),
        ("train.csv", b"text,label\n", "is empty"),
        ("train.csv", b"text,label\na,1\nb,c,d,0\n", "cannot be read"),
        ("train.jsonl.xz", b"\xfd7zXZ\x00rubbish", "cannot be read"),
        ("train.jsonl.gz", b"rubbish", "cannot be read"),
        ("train.parquet", b"PAR1rubbish", "cannot be read"),
        ("train.txt", b"text", "is none of .json"),
        ("notes.jsonl", b"{}", "no train part"),
    ],
)
def test_what_is_wrong_with_a_file(name: str, content: bytes, says: str, refuse: Refuse) -> None:
    assert says in refuse({name: content})


def test_doubled_columns_of_parquet(refuse: Refuse) -> None:
    sink = pa.BufferOutputStream()
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array([1])]
    pq.write_table(pa.Table.from_arrays(columns, names=["text", "text", "label"]), sink)
    assert "more than one column 'text'" in refuse({"train.parquet": sink.getvalue().to_pybytes()})


def test_infinite_scores_of_csv(refuse: Refuse) -> None:
    data = [{"text": f"t {n}", "score": ["inf", "nan"][n] if n < 2 else n / 3} for n in range(40)]
    assert "2 rows are NaN or infinite" in refuse({"train.csv": delimited(data, ",")})


def test_what_is_wrong_with_another_part(refuse: Refuse) -> None:
    assert "'7' is not among train's labels (first: row 3)" in refuse({
        "train.jsonl": rows(), "dev.jsonl": [*rows(2), {"text": "t", "label": 7}],
    })  # fmt: skip
    assert "dev.jsonl: is empty" in refuse({"dev.jsonl": b""})
    assert "has no such column, but train has" in refuse({"dev.jsonl": [{"text": "t", "lable": 1}]})
    assert "no test part with labels" in refuse({"dev.jsonl": rows(4)}, split="test")


def test_what_is_wrong_with_what_was_asked(refuse: Refuse) -> None:
    files: dict[str, bytes | Rows] = {"train.jsonl": rows(), "dev.jsonl": rows(4)}
    message = refuse(files, text_columns=("txt",), label_column="lable", metric="matthews", task="regression")
    assert "3 faults" in message
    assert "Did you mean 'text'?" in message
    assert "Did you mean 'label'?" in message
    assert "does not fit regression" in message
    assert "does not fit classification" in refuse(files, metric="pearson_and_spearman")
    assert "is also the text" in refuse(files, text_columns=("label",), label_column="label")
    assert "is not there" in refuse(files, splits={"train": "trian.jsonl"})
    words = {"train.jsonl": [{**row, "label": "ab"[row["label"]]} for row in rows()]}
    assert "regression needs numbers, and row 1 holds 'a'" in refuse(words, task="regression")


def test_files_that_are_no_shards_are_not_mixed(refuse: Refuse) -> None:
    message = refuse({"train_old.jsonl": rows(), "train_new.jsonl": rows()})
    assert "train_new.jsonl, train_old.jsonl could each be the train part" in message
    assert "data.splits" in message


def test_all_faults_at_once(refuse: Refuse) -> None:
    message = refuse(
        {"train.jsonl": changed(3, label=None, text=None), "dev.jsonl": rows(3, label=5)}, metric="pearson_and_spearman"
    )
    assert "4 faults" in message


def test_pydocs_has_its_own_columns(tmp_path: Path) -> None:
    with pytest.raises(InputFaults, match="2 faults"):
        read("pydocs", task="regression", split="test", cache=tmp_path)


@pytest.mark.skipif(SHARED is None, reason="CAPGAP_SHARED is not set")
@pytest.mark.parametrize(
    ("name", "metric", "train", "held_out"),
    [("sst-2", "accuracy", 67349, 872), ("mrpc", "accuracy_and_f1", 3668, 408), ("cola", "matthews", 8551, 1043),
     ("sts-b", "pearson_and_spearman", 5749, 1500), ("rte", "accuracy", 2490, 277)],
)  # fmt: skip
def test_glue(name: str, metric: str, train: int, held_out: int, tmp_path: Path) -> None:
    made = read(Path(SHARED or "") / "data/glue" / name, cache=tmp_path)
    assert (made.metric, len(made.parts["train"].labels), len(made.parts["eval"].labels)) == (metric, train, held_out)
