"""What an input of a stage holds, by digest: the same for the same bytes, whatever made them."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from capgap_core import store as stores
from capgap_core.identity import digest_of_files, sha256_text
from capgap_core.records import Input, Reference


def content_digest(item: Input) -> str:
    """Return what an input holds: a stage's digest, or for a model its weights and the plan of its slice."""
    if isinstance(item, Reference):
        return item.digest
    record = stores.verified_record(item.reference.folder, verify="sizes")
    model = {path: checksum for path, checksum in stores.covered(record.files).items() if path.startswith("model/")}
    plan = [] if item.scale is None else _plan_rows(item.reference.table("plan"), item.scale)
    return sha256_text(digest_of_files(model) + repr(plan))


def _plan_rows(path: Path, scale: float) -> list[tuple[Any, ...]]:
    rows = pq.read_table(path, filters=[("scale", "=", scale)]).to_pylist()
    return sorted((row["layer"], row["axis"], row["kept"]) for row in rows)
