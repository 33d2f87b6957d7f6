"""Put the report and every table of a run into the Prefect UI, within what the UI can take."""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from capgap_core.records import Reference

ROWS = 200
"""Rows of a table that are shown; the UI keeps every artifact twice."""


def publish_report(markdown: str) -> None:
    """Show the report, whose figures are inline."""
    create_markdown_artifact(markdown=markdown, key="report", description="What the run found.")


def publish_tables(made: Iterable[tuple[str, Reference]]) -> None:
    """Show the first rows of every result table of every stage; token ids are no result."""
    for role, reference in made:
        if reference.stage == "data":
            continue
        for path in sorted(reference.folder.glob("*.parquet")):
            name = " ".join(filter(None, [reference.stage, role, path.stem]))
            whole = pq.ParquetFile(path).metadata.num_rows
            shown = f"first {ROWS} of {whole} rows" if whole > ROWS else f"{whole} rows"
            create_table_artifact(table=first_rows(path), key=key(name), description=f"{name}: {shown} of {path}")


def first_rows(path: Path) -> list[dict[str, Any]]:
    """Return the first rows of a Parquet table as the UI can take them."""
    batches = pq.ParquetFile(path).iter_batches(batch_size=ROWS)
    rows = next(batches).to_pylist() if pq.ParquetFile(path).metadata.num_rows else []
    return [{name: plain(value) for name, value in row.items()} for row in rows]


def plain(value: Any) -> Any:
    """Return a cell that the UI shows: a finite number, a text, or nothing.

    An infinite number breaks the page, and a NaN is no number to a reader either.
    """
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(format(v, ".4g") if isinstance(v, float) else str(v) for v in value) + "]"
    return value if isinstance(value, int | float | str | None) else str(value)


def key(name: str) -> str:
    """Return a name as the key of an artifact."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
