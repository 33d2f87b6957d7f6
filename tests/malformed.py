"""Malformed parameters and data files, drawn from a seed: what a user could hand in by mistake or malice."""

import gzip
import io
import json
import random
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from capgap_core.recipes import Minidisc

JUNK: tuple[Any, ...] = (
    "", " ", "\0", "../../etc", "/", "~", "x" * 5000, "ｓｃｒａｔｃｈ", "\u202etxet", "\ud800", "💥", "-1", "nan",
    -1, -0.5, 0, 10**30, 1e308, float("inf"), float("-inf"), float("nan"), True, False, None,
    [], [[]], [None], ["a", 3], {}, {"": 1}, {"a": {"b": {"c": []}}},
)  # fmt: skip
"""Values that suit few fields or none."""


def fields(model: type[BaseModel] = Minidisc, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the path of every parameter, parts included."""
    found: list[tuple[str, ...]] = []
    for name, field in model.model_fields.items():
        found.append((*path, name))
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += fields(field.annotation, (*path, name))
    return found


def parameters(draw: random.Random, good: dict[str, Any]) -> dict[str, Any]:
    """Return parameters with one to four things wrong in them; by chance a value may suit after all."""
    made: dict[str, Any] = json.loads(json.dumps(good))
    for _ in range(draw.randint(1, 4)):
        path = list(draw.choice(fields()))
        kind = draw.choice(("value", "value", "value", "misspelt", "misplaced", "wrapped"))
        if kind == "misspelt":
            path[-1] = _misspelt(draw, path[-1])
        elif kind == "misplaced":
            path.insert(0, draw.choice(fields())[0])
        value = draw.choice(JUNK)
        _put(made, path, [value] if kind == "wrapped" else value)
    return made


def _misspelt(draw: random.Random, name: str) -> str:
    place = draw.randrange(len(name))
    return name[:place] + draw.choice(("", "_", "é", name[place].upper(), "\n")) + name[place + 1 :]


def _put(into: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        inner = into.get(part)
        if not isinstance(inner, dict):
            inner = into[part] = {}
        into = inner
    into[path[-1]] = value


def _table(draw: random.Random, rows: int) -> list[tuple[str, str]]:
    words = "sun moon light dark warm cold bright dim".split()
    return [(" ".join(draw.choices(words, k=6)) + f" {i}", ("day", "night")[i % 2]) for i in range(rows)]


def _csv(rows: list[tuple[str, str]], header: str = "text,label") -> bytes:
    return "\n".join([header, *(f"{text},{label}" for text, label in rows), ""]).encode()


def _parquet(columns: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


def _lines(rows: list[tuple[str, str]]) -> bytes:
    return "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows).encode()


Maker = Callable[[random.Random], tuple[str, bytes]]


def _cut(name: str, whole: bytes) -> Maker:
    return lambda draw: (name, whole[: draw.randrange(1, len(whole) - 8)])


def _garbage(name: str) -> Maker:
    return lambda draw: (name, draw.randbytes(draw.randrange(0, 4000)))


def makers() -> list[Maker]:
    """Return what makes a data file that cannot be trained on: (name, bytes) from a draw."""
    rows = _table(random.Random(0), 200)
    texts, labels = [text for text, _ in rows], [label for _, label in rows]
    parquet, lines, table = _parquet({"text": texts, "label": labels}), _lines(rows), _csv(rows)
    fixed: list[tuple[str, bytes]] = [
        ("empty.csv", b""),
        ("empty.jsonl", b""),
        ("empty.parquet", b""),
        ("header.csv", b"text,label\n"),
        ("one.csv", _csv(rows[:1])),
        ("few.csv", _csv(rows[:5])),
        ("one_class.csv", _csv([(text, "day") for text in texts])),
        ("every_row_a_class.csv", _csv([(text, f"label {i} of many") for i, text in enumerate(texts)])),
        ("no_text.csv", _csv([("", label) for label in labels])),
        ("no_label.csv", _csv([(text, "") for text in texts])),
        ("equal_texts.csv", _csv([("the same text", label) for label in labels])),
        ("names.csv", _csv(rows, "x,y")),
        ("name_twice.csv", _csv(rows, "text,text")),
        ("ragged.csv", table + b"too,many,columns,here\n"),
        ("quote.csv", table + b'"an open quote,day\n' + table),
        ("latin1.csv", table + "caf\u00e9,day\n".encode("latin1")),
        ("utf16.csv", table.decode().encode("utf16")),
        ("html.csv", b"<!DOCTYPE html><html><body>404 not found</body></html>"),
        ("broken.jsonl", lines + b'{"text": "open\n'),
        ("lists.jsonl", b"[1, 2]\n" * 50),
        ("numbers.jsonl", b"3\n" * 50),
        ("nested.jsonl", b'{"text": {"a": 1}, "label": 1}\n' * 50),
        ("mixed.jsonl", b'{"text": 3, "label": "a"}\n{"text": "b", "label": [1]}\n' * 40),
        ("deep.json", b"[" * 100_000),
        ("object.json", b'{"text": "a", "label": 1}'),
        ("pointer.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"),
        ("lists.parquet", _parquet({"text": [[t] for t in texts], "label": labels})),
        ("nulls.parquet", _parquet({"text": pa.nulls(200, pa.string()), "label": labels})),
        ("no_rows.parquet", _parquet({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())})),
        ("inf.parquet", _parquet({"text": texts, "score": [float("inf")] * 200})),
        ("nan.parquet", _parquet({"text": texts, "label": [float("nan")] * 200})),
        ("not_zipped.csv.gz", table),
        ("table.xlsx", b"PK\x03\x04 not a table"),
        ("table", table),
        ("weights.pkl", b"\x80\x04]."),
    ]
    cut = [
        _cut("cut.parquet", parquet),
        _cut("cut.csv.gz", gzip.compress(table)),
        _cut("cut.jsonl.gz", gzip.compress(lines)),
        *(_garbage(f"garbage.{ending}") for ending in ("csv", "tsv", "json", "jsonl", "parquet", "arrow", "csv.gz")),
    ]
    return [*((lambda _, made=made: made) for made in fixed), *cut, *cut, *cut]
