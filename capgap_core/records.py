"""The record a finished stage leaves beside its results, and the reference that stands for it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

RECORD_SCHEMA = "capgap.record/1"
REFERENCE_SCHEMA = "capgap.reference/1"
WORDS = frozenset({"columns", "eval_name", "notes"})
"""Parts of a summary that are only told, in a report: no digest covers them, so that a name moves no number."""


class StoredFile(BaseModel):
    """A file of a finished stage: its path inside the stage's folder, its size and its checksum."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    bytes: int
    sha256: str


class Reference(BaseModel):
    """The small JSON that stands for a finished stage, and all that passes between stages."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: Literal["capgap.reference/1"] = REFERENCE_SCHEMA
    stage: str
    identity: str
    code: str
    """Fingerprint of the code that made the result."""
    digest: str
    """What the result holds: ``model/``, the tables and the summary, not when or how fast they were made."""
    path: str
    """Absolute path of the stage's folder in the store."""
    reused: bool = False
    why: str = ""
    """Why the stage ran, or how it could be reused."""
    seconds: float = 0.0
    """Seconds the stage took when it was made."""
    steps_trained: int = 0
    """Optimizer steps the stage took when it was made."""
    summary: dict[str, Any] = {}
    """Small facts that later stages and the report read; the digest covers them, but for ``WORDS``."""

    @property
    def folder(self) -> Path:
        """Return the stage's folder in the store."""
        return Path(self.path)

    def table(self, name: str) -> Path:
        """Return the path of one of the stage's Parquet tables."""
        return self.folder / f"{name}.parquet"


class Record(BaseModel):
    """What a finished stage says about itself, as ``record.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: Literal["capgap.record/1"] = RECORD_SCHEMA
    stage: str
    identity: str
    code: str
    code_modules: dict[str, str]
    """Fingerprint of each module of the code."""
    digest: str
    recipe: dict[str, Any]
    inputs: dict[str, dict[str, Any]]
    """Name → stage, identity and digest of an input, and the scale it is sliced to, if any."""
    data_digest: str | None
    provenance: dict[str, Any]
    """Commit, versions, device, threads, precision: what is recorded but not hashed."""
    seed: int | None
    started: str
    ended: str
    seconds: float
    steps_trained: int
    tokens: int
    peak_memory_bytes: int
    attempts: int
    resumptions: int
    """How often its training went on from a checkpoint."""
    resumed_from_steps: tuple[int, ...] = ()
    """The step of each of these checkpoints."""
    summary: dict[str, Any]
    files: tuple[StoredFile, ...]

    def reference(self, folder: Path, *, reused: bool, why: str) -> Reference:
        """Return the reference that stands for this stage."""
        return Reference(
            stage=self.stage,
            identity=self.identity,
            code=self.code,
            digest=self.digest,
            path=str(folder),
            reused=reused,
            why=why,
            seconds=self.seconds,
            steps_trained=self.steps_trained,
            summary=self.summary,
        )


class ModelInput(BaseModel):
    """A model that a stage reads: all of a finished stage's ``model/``, or its slice at one scale of its plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference: Reference
    scale: float | None = None


Input = Reference | ModelInput
"""What a stage may take from another stage."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a stage's ``run`` says about the files it has written."""

    summary: dict[str, Any] = field(default_factory=dict)
    steps_trained: int = 0
    tokens: int = 0
    resumed: tuple[int, ...] = ()
    """After which steps training went on from a checkpoint."""


def stage_rows(made: Sequence[tuple[str, Reference]]) -> list[dict[str, Any]]:
    """Return what a result says of each stage."""
    kept = ("stage", "identity", "code", "digest", "reused", "why", "seconds", "path")
    return [{"role": role, **{name: getattr(reference, name) for name in kept}} for role, reference in made]
