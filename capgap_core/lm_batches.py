"""Rows of a language model as batches of tensors, for the loop that trains and for what is held out."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from capgap_core.lm_rows import Stream


@dataclass(frozen=True, kw_only=True)
class LmBatch:
    """Rows of equal length."""

    index: np.ndarray
    """Places of the rows in ``LmRows``, ``(n,)``."""
    input_ids: Tensor
    """``(n, t)``."""
    position_ids: Tensor
    """``(n, t)``; each document begins anew at 0, which is how transformers knows where attention ends."""
    targets: Tensor
    """``(n * t,)``: what follows each token."""
    keep: Tensor
    """``(n * t,)``, true for targets that count."""
    document: np.ndarray
    """``(n * t,)``: the document of each token by its number in the part."""

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Return what a model's forward takes."""
        return {"input_ids": self.input_ids, "position_ids": self.position_ids}

    def to(self, device: torch.device) -> "LmBatch":
        """Return the batch on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("input_ids", "position_ids", "targets", "keep")}
        return LmBatch(index=self.index, document=self.document, **moved)


class LmRows:
    """A part of a text as rows, as the loop that trains asks for them."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self.length = stream, stream.length
        self.lengths: np.ndarray = stream.kept()
        """Targets that count, ``(rows,)``: what a mean over the tokens of a step is divided by."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.lengths)

    @property
    def starts(self) -> np.ndarray:
        """Return before how many places each row stands, and how many there are, ``(rows + 1,)``."""
        return np.arange(len(self) + 1) * self.length

    @cached_property
    def digest(self) -> str:
        """Digest of all tokens, of where documents begin, and of the length of a row."""
        held = hashlib.sha256(f"{self.length} ".encode())
        for array in (
            self._stream.ids,
            self._stream.starts[: np.searchsorted(self._stream.starts, len(self._stream.ids))],
        ):
            held.update(np.ascontiguousarray(array, dtype=np.int64).tobytes())
        return held.hexdigest()

    @cached_property
    def _words(self) -> np.ndarray:
        return np.unique(self._stream.ids).astype(np.int64)

    def words(self, index: np.ndarray) -> Tensor:
        """Return the token ids in these rows, each once."""
        if len(self._words) < 1024:  # nearly all of them stand in any batch
            return torch.from_numpy(self._words)
        return torch.from_numpy(np.unique(self._stream.rows(np.asarray(index)).tokens))

    def batch(self, index: Sequence[int] | np.ndarray, *, room: int = 0) -> LmBatch:
        """Return the rows at these places; they fill any room that they need."""
        rows = self._stream.rows(np.asarray(index, dtype=np.int64))
        return LmBatch(
            index=rows.index, input_ids=torch.from_numpy(rows.inputs.copy()),
            position_ids=torch.from_numpy(rows.positions), targets=torch.from_numpy(rows.targets.flatten()),
            keep=torch.from_numpy(rows.keep.flatten()), document=rows.document[:, :-1].flatten(),
        )  # fmt: skip

    def spread(self, batch_size: int, *, most: int | None = None) -> Iterator[LmBatch]:
        """Yield every row once, in their order; at most so many of them, evenly spread."""
        count = len(self) if most is None else min(most, len(self))
        places = np.arange(count) * len(self) // count
        for start in range(0, count, batch_size):
            yield self.batch(places[start : start + batch_size])
