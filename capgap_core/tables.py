"""The Parquet tables: their columns, and the one way to write and read them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_INT, _FLOAT, _TEXT, _BOOL = pa.int64(), pa.float64(), pa.string(), pa.bool_()

SCHEMAS: dict[str, list[tuple[str, pa.DataType]]] = {
    "examples": [
        ("row", _INT), ("label", _FLOAT), ("input_ids", pa.list_(pa.int32())), ("token_type_ids", pa.list_(pa.int8())),
    ],
    "documents": [("document", _INT), ("source", _INT), ("input_ids", pa.large_list(pa.int32()))],
    "held_out": [
        ("part", _TEXT), ("source", _TEXT), ("nats", _FLOAT), ("stderr", _FLOAT), ("bits_per_byte", _FLOAT),
        ("tokens", _INT),
    ],
    "cells": [
        ("role", _TEXT), ("parameters", _INT), ("tokens", _INT), ("teacher", _INT), ("seed", _INT), ("nats", _FLOAT),
        ("stderr", _FLOAT), ("bits_per_byte", _FLOAT), ("teacher_nats", _FLOAT), ("unique_tokens", _INT),
        ("epochs", _FLOAT), ("tokens_per_parameter", _FLOAT), ("data_limited", _BOOL), ("identity", _TEXT),
        ("achieved_parameters", _INT), ("begin", _TEXT),
    ],
    "optima": [
        ("student", _FLOAT), ("tokens", _FLOAT), ("found", _TEXT), ("teacher", _FLOAT), ("low", _FLOAT),
        ("high", _FLOAT), ("loss", _FLOAT),
    ],
    "rivals": [
        ("law", _TEXT), ("student", _FLOAT), ("tokens", _FLOAT), ("why_not", _TEXT), ("named", _FLOAT),
        ("taken", _FLOAT), ("regret", _FLOAT), ("regret_error", _FLOAT), ("loss_error", _FLOAT),
    ],
    "assistant_cells": [
        ("role", _TEXT), ("scale", _FLOAT), ("teacher_scale", _FLOAT), ("parameters", _INT), ("teacher", _INT),
        ("seed", _INT), ("metric", _TEXT), ("value", _FLOAT), ("stderr", _FLOAT), ("n", _INT),
        ("teacher_value", _FLOAT), ("identity", _TEXT),
    ],
    "assistant_optima": [
        ("scale", _FLOAT), ("student", _FLOAT), ("found", _TEXT), ("teacher", _FLOAT), ("low", _FLOAT),
        ("high", _FLOAT), ("teacher_scale", _FLOAT), ("loss", _FLOAT),
    ],
    "importance": [("layer", _INT), ("axis", _TEXT), ("unit", _INT), ("score", _FLOAT), ("rank", _INT)],
    "plan": [("scale", _FLOAT), ("layer", _INT), ("axis", _TEXT), ("kept", _INT), ("of", _INT)],
    "steps": [
        ("step", _INT), ("tokens", _INT), ("scale", _FLOAT), ("term", _TEXT), ("value", _FLOAT),
        ("lr", _FLOAT), ("grad_norm", _FLOAT),
    ],
    "metrics": [
        ("scale", _FLOAT), ("split", _TEXT), ("metric", _TEXT), ("value", _FLOAT), ("stderr", _FLOAT), ("n", _INT),
    ],
    "predictions": [("scale", _FLOAT), ("row", _INT), ("label", _FLOAT), ("logits", pa.list_(pa.float32()))],
    "tradeoff": [
        ("scale", _FLOAT), ("achieved", _FLOAT), ("metric_value", _FLOAT), ("tradeoff", _FLOAT),
        ("chosen", _BOOL), ("target", _BOOL), ("margin", _FLOAT), ("wins_from", _FLOAT), ("wins_to", _FLOAT),
    ],
    "sizes": [
        ("scale", _FLOAT), ("parameters", _INT), ("non_embedding", _INT), ("flops", _INT), ("length", _INT),
        ("megabytes", _FLOAT),
    ],
    "timing": [("scale", _FLOAT), ("batch", _INT), ("milliseconds", _FLOAT), ("low", _FLOAT), ("high", _FLOAT)],
    "results": [
        ("role", _TEXT), ("scale", _FLOAT), ("split", _TEXT), ("metric", _TEXT), ("value", _FLOAT), ("stderr", _FLOAT),
        ("n", _INT), ("parameters", _INT), ("non_embedding", _INT), ("flops", _INT), ("training_flops", _FLOAT),
    ],
    "ablation": [
        ("role", _TEXT), ("arm", _TEXT), ("matched", _TEXT), ("n_train", _INT), ("metric", _TEXT), ("value", _FLOAT),
        ("stderr", _FLOAT), ("n", _INT), ("seen", _FLOAT), ("gap", _FLOAT), ("calibration_error", _FLOAT),
        ("difference", _FLOAT), ("low", _FLOAT), ("high", _FLOAT), ("steps", _INT), ("examples", _INT),
        ("passes", _INT), ("training_flops", _FLOAT), ("loss_labels", _FLOAT), ("loss_prediction", _FLOAT),
        ("loss_mixed_labels", _FLOAT), ("loss_mixed_prediction", _FLOAT), ("teacher_value", _FLOAT),
    ],
}  # fmt: skip
"""Table name → its columns in order. Rows are sorted, null is null and never NaN."""


def schema_of(name: str) -> pa.Schema:
    """Return the Arrow schema of a table, its name and version in the metadata."""
    return pa.schema(SCHEMAS[name], metadata={"schema": f"capgap.{name}/1"})


def write(path: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as the table ``name``; a column that a row lacks is null, one it should not have is refused."""
    schema = schema_of(name)
    extra = {key for row in rows for key in row} - set(schema.names)
    if extra:
        raise ValueError(f"table {name} has no column {sorted(extra)}; it has {schema.names}")
    columns = {key: [row.get(key) for row in rows] for key in schema.names}
    write_columns(path, name, columns)


def write_columns(path: Path, name: str, columns: Mapping[str, Any]) -> None:
    """Write columns as the table ``name``, in the order given."""
    table = pa.table(dict(columns), schema=schema_of(name))
    pq.write_table(table, path, compression="zstd", row_group_size=65536)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a table."""
    return pq.read_table(path).to_pylist()
