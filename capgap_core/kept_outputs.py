"""A teacher's outputs on disk, named by what they are outputs of, so that whoever asks for them again finds them.

``targets/<key>/`` below the store holds ``outputs.safetensors``, which is mapped into memory and read where it is
needed, and for each piece of the examples that is done a small sealed file with the checksum of its bytes. The key is
the hash of the teacher's weights, of the token ids, of what is kept and of the code that computes it: the order of
the training, its batches, epochs, students and recipe are not in it. Filling goes on after the last piece that is
whole, and a piece that is damaged is made again, alone.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from capgap_core import store as stores
from capgap_core.errors import Damaged
from capgap_core.identity import sha256_text
from capgap_core.in_use import use
from capgap_core.locks import held
from capgap_core.progress import Progress

Kind = Literal["bfloat16", "float32"]
SCHEMA = "capgap.outputs/1"
FOLDER, FILE = "targets", "outputs.safetensors"
BY = "by-"
"""Begins the name of an empty file for each stage whose model they are outputs of."""
PIECE = 2**26
"""About how many bytes of hidden states are one piece."""
ROW = 4096
"""For how many bytes a token counts where no hidden states are kept."""


@dataclass(frozen=True, kw_only=True)
class What:
    """What is kept, and of what."""

    teacher: str
    """Digest of its weights."""
    code: str
    """Fingerprint of what computes them."""
    layers: tuple[int, ...]
    width: int
    labels: int
    computed: Kind
    """Precision in which the teacher runs."""
    kind: Kind
    """Type in which hidden states are kept; logits are fp32."""


@runtime_checkable
class Seen(Protocol):
    """What a teacher is asked about."""

    digest: Any
    """Of all tokens, a text."""
    starts: Any
    """Before how many tokens each example stands, and how many there are, ``(n + 1,)``."""

    def __len__(self) -> int:
        """Return the number of examples."""
        ...


class KeptOutputs:
    """The outputs of one teacher on one part of the data.

    Parameters
    ----------
    by
        The stage whose model the teacher is, as ``stage-identity-code``: as long as that stays, they do.
    """

    def __init__(
        self, root: Path, what: What, examples: Seen, *, by: str, machine: dict[str, Any],
        verify: stores.Verify, progress: Progress,
    ) -> None:  # fmt: skip
        facts = {**vars(what), "layers": list(what.layers), "tokens": examples.digest, "schema": SCHEMA}
        self.key = sha256_text(json.dumps(facts, sort_keys=True))
        self.folder = root / FOLDER / self.key
        self.shape, self.labels = (len(what.layers), what.width), what.labels
        self.dtype = torch.bfloat16 if what.kind == "bfloat16" else torch.float32
        self._root, self._examples, self._machine, self._progress = root, examples, machine, progress
        self._by = self.folder / f"{BY}{by}"
        self._whole = verify == "checksum"
        tokens, row = int(examples.starts[-1]), len(what.layers) * what.width * self.dtype.itemsize
        self._row, self._hidden = row, tokens * row
        name = {"bfloat16": "BF16", "float32": "F32"}[what.kind]
        sizes = (self._hidden, self._hidden + len(examples) * what.labels * 4)
        header = {
            "hidden": {"dtype": name, "shape": [tokens, *self.shape], "data_offsets": [0, sizes[0]]},
            "logits": {"dtype": "F32", "shape": [len(examples), what.labels], "data_offsets": list(sizes)},
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 64)
        self._header, self._bytes = struct.pack("<Q", len(text)) + text, 8 + len(text) + sizes[1]

    @contextmanager
    def filling(self) -> Iterator[Iterator[np.ndarray]]:
        """Give the pieces that are not there yet, each the places of its examples; one process fills at a time."""
        use(self._root, f"{FOLDER}-{self.key}")
        with held(self._root / "locks" / f"{FOLDER}-{self.key}.lock", self._progress):
            yield self._missing()

    def write(self, piece: np.ndarray, hidden: Tensor, logits: Tensor) -> None:
        """Keep the hidden states ``(tokens, l, h)`` and logits ``(n, c)`` of a piece, durably, as one."""
        data = [memoryview(held.contiguous().view(-1).view(torch.uint8).numpy()) for held in (hidden, logits)]  # pyright: ignore[reportArgumentType]
        descriptor = os.open(self.folder / FILE, os.O_WRONLY | os.O_CLOEXEC)
        try:
            for (start, size), part in zip(self._places(piece), data, strict=True):
                done = 0
                while done < size:
                    done += os.pwrite(descriptor, part[done : done + 2**30], start + done)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        seen = hashlib.sha256()
        for part in data:
            seen.update(part)
        facts = {"sha256": seen.hexdigest(), "machine": self._machine}
        stores.write_atomically(self._note(piece), stores.sealed(facts))

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return all hidden states ``(tokens, l, h)`` and logits ``(n, c)``, mapped from the file."""
        found = load_file(self.folder / FILE)
        return found["hidden"], found["logits"]

    def _missing(self) -> Iterator[np.ndarray]:
        self._begin()
        differs: dict[str, None] = {}
        for piece in self._pieces():
            try:
                noted = stores.unsealed(self._note(piece))
                if self._whole and noted["sha256"] != self._checksum(piece):
                    raise Damaged(f"{self.folder / FILE}: the content is not what was written")
                found = {name: noted["machine"].get(name) for name in self._machine}
                differs |= {f"{name} {value}": None for name, value in found.items() if value != self._machine[name]}
            except Damaged as error:
                if self._note(piece).exists():
                    self._progress.message(f"made again: {error}")
                yield piece
        if differs:
            self._progress.message(
                f"the teacher's outputs were computed with {', '.join(differs)}: the last bits differ from those of a "
                "run that computes its own"
            )

    def _begin(self) -> None:
        """Have the file there in its full size, so that a disk that is too small is found out first."""
        path = self.folder / FILE
        self.folder.mkdir(parents=True, exist_ok=True)
        self._by.touch()
        if path.is_file() and path.stat().st_size == self._bytes:
            with path.open("rb") as stream:
                if stream.read(len(self._header)) == self._header:
                    return
        for note in self.folder.glob("piece-*.json"):
            note.unlink()
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(descriptor, 0, self._bytes)
            os.pwrite(descriptor, self._header, 0)
        except OSError:  # half a file only takes room
            path.unlink()
            raise
        finally:
            os.close(descriptor)

    def _pieces(self) -> list[np.ndarray]:
        ends = self._examples.starts[1:] * (self._row or ROW)
        cuts = np.flatnonzero(np.diff(ends // PIECE)) + 1
        return np.split(np.arange(len(self._examples)), cuts)

    def _places(self, piece: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return where the hidden states and the logits of a piece stand in the file, and their bytes."""
        first, last = int(piece[0]), int(piece[-1]) + 1
        begin, end = int(self._examples.starts[first]), int(self._examples.starts[last])
        base, row = len(self._header), self.labels * 4
        return (
            (base + begin * self._row, (end - begin) * self._row),
            (base + self._hidden + first * row, (last - first) * row),
        )

    def _checksum(self, piece: np.ndarray) -> str:
        seen = hashlib.sha256()
        with (self.folder / FILE).open("rb") as stream:
            for start, size in self._places(piece):
                stream.seek(start)
                seen.update(stream.read(size))
        return seen.hexdigest()

    def _note(self, piece: np.ndarray) -> Path:
        return self.folder / f"piece-{int(piece[0]):09d}.json"
