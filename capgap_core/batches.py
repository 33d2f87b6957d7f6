"""Tokenised examples in memory, and the order in which they are seen."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

WINDOW = 32
"""Batches whose examples are sorted by length together, so that little padding is needed."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples padded to the longest of them."""

    index: np.ndarray
    """Places of the examples in ``Examples``, ``(n,)``."""
    input_ids: Tensor
    """``(n, t)``."""
    attention_mask: Tensor
    """``(n, t)``, 1 for a real token."""
    token_type_ids: Tensor
    """``(n, t)``."""
    labels: Tensor
    """``(n,)``: label ids as int64, or scores as float32."""

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Return what a model's forward takes."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "token_type_ids": self.token_type_ids,
        }

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        moved = {name: getattr(self, name).to(device) for name in (*self.inputs, "labels")}
        return Batch(index=self.index, **moved)


class Examples:
    """A part of the data set, tokenised: all token ids in one flat array."""

    def __init__(self, path: Path, *, pad: int, regression: bool) -> None:
        table = pq.read_table(path)
        self.rows: np.ndarray = table["row"].to_numpy()
        self.labels: np.ndarray = table["label"].to_numpy().astype(np.float32 if regression else np.int64)
        ids = table["input_ids"].combine_chunks()
        self._ids: np.ndarray = ids.flatten().to_numpy()
        self._types: np.ndarray = table["token_type_ids"].combine_chunks().flatten().to_numpy()
        lengths = ids.value_lengths().to_numpy(zero_copy_only=False)
        self.lengths: np.ndarray = lengths.astype(np.int64)
        self.starts: np.ndarray = np.concatenate([[0], np.cumsum(self.lengths)])
        self._pad = pad

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.rows)

    def places(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where the tokens of examples stand among all, ``(n, t)``, 0 for padding, and which are real."""
        lengths = self.lengths[index]
        column = np.arange(int(lengths.max()))
        real = column[None, :] < lengths[:, None]
        return np.where(real, self.starts[index][:, None] + column[None, :], 0), real

    def batch(self, index: Sequence[int] | np.ndarray) -> Batch:
        """Return the examples at these places, padded to the longest."""
        chosen = np.asarray(index, dtype=np.int64)
        flat, real = self.places(chosen)
        ids = np.where(real, self._ids[flat], self._pad)
        types = np.where(real, self._types[flat], 0)
        return Batch(
            index=chosen,
            input_ids=torch.from_numpy(ids.astype(np.int64)),
            attention_mask=torch.from_numpy(real.astype(np.int64)),
            token_type_ids=torch.from_numpy(types.astype(np.int64)),
            labels=torch.from_numpy(self.labels[chosen]),
        )

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yield every example once, the shortest first: for evaluation, which no order can move."""
        order = np.argsort(self.lengths, kind="stable")
        for start in range(0, len(order), batch_size):
            yield self.batch(order[start : start + batch_size])


def epoch_order(lengths: np.ndarray, *, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return the batches of one epoch: a seeded shuffle, sorted by length within windows, batches shuffled.

    A function of its arguments alone, so that a resumed run finds its place without replaying the data.
    """
    draw = np.random.default_rng([seed, epoch])
    order = draw.permutation(len(lengths))
    batches: list[np.ndarray] = []
    for start in range(0, len(order), batch_size * WINDOW):
        window = order[start : start + batch_size * WINDOW]
        window = window[np.argsort(lengths[window], kind="stable")]
        batches += [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
    return [batches[i] for i in draw.permutation(len(batches))]


def endless(lengths: np.ndarray, *, batch_size: int, seed: int, skip: int = 0) -> Iterator[np.ndarray]:
    """Yield batches epoch after epoch, from the one that comes after ``skip`` of them."""
    epoch, begin = divmod(skip, -(-len(lengths) // batch_size))
    while True:
        yield from epoch_order(lengths, batch_size=batch_size, seed=seed, epoch=epoch)[begin:]
        epoch, begin = epoch + 1, 0
