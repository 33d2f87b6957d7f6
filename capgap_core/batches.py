"""Tokenised examples in memory, and the order in which they are seen."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

WINDOW = 64
"""Batches whose examples are sorted by length together, so that little padding is needed."""
GRAIN = 32
"""A batch has room for a multiple of so many tokens."""
SEEN = 20_000
"""Examples from which the room of a batch is told."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples padded to the longest of them."""

    index: np.ndarray
    """Places of the examples in ``Examples``, ``(n,)``."""
    input_ids: Tensor
    """``(n, t)``."""
    attention_mask: Tensor
    """``(n, t)``, 1 for a real token, 0 for none; between them, as a number, for one that counts in part."""
    token_type_ids: Tensor
    """``(n, t)``."""
    labels: Tensor
    """``(n,)``: label ids as int64, or scores as float32."""
    room: int
    """Rows that the tokens take where they stand one after the other: at least ``n * t``."""

    def named(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return tensors of these names: what a model's forward takes of a batch, its family says."""
        return {name: getattr(self, name) for name in names}

    @cached_property
    def keep(self) -> Tensor:
        """Return which rows are real tokens, ``(room,)``."""
        return self.rows(self.attention_mask).bool()

    @cached_property
    def ends(self) -> Tensor:
        """Return how much of each example ends at a token, ``(n, t)``: all at its last, of a mixture at two places."""
        mask = self.attention_mask
        return mask - torch.cat((mask[:, 1:], torch.zeros_like(mask[:, :1])), dim=1)

    def rows(self, held: Tensor) -> Tensor:
        """Return what is held for each token, ``(n, t, ...)``, as rows ``(room, ...)``; those at the end are 0."""
        flat = held.flatten(0, 1)
        if len(flat) == self.room:
            return flat
        whole = flat.new_zeros(self.room, *flat.shape[1:])
        whole[: len(flat)] = flat
        return whole

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        held = self.named(("input_ids", "attention_mask", "token_type_ids", "labels"))
        return replace(self, **{name: tensor.to(device) for name, tensor in held.items()})


class Examples:
    """A part of the data set, tokenised: all token ids in one flat array."""

    def __init__(self, path: Path, *, pad: int, regression: bool) -> None:
        table = pq.read_table(path)
        self.rows: np.ndarray = table["row"].to_numpy()
        self.labels: np.ndarray = table["label"].to_numpy().astype(np.float32 if regression else np.int64)
        ids = table["input_ids"].combine_chunks()
        self._ids: np.ndarray = ids.flatten().to_numpy()
        self._types: np.ndarray = table["token_type_ids"].combine_chunks().flatten().to_numpy()
        self.lengths: np.ndarray = _lengths(ids)
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

    def words(self, index: np.ndarray) -> Tensor:
        """Return the token ids in these examples and that of padding, each once."""
        flat, real = self.places(index)
        return torch.from_numpy(np.unique(np.append(self._ids[flat[real]], [self._pad, 0])).astype(np.int64))

    def batch(self, index: Sequence[int] | np.ndarray, *, room: int = 0) -> Batch:
        """Return the examples at these places, padded to the longest, in so many rows or more."""
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
            room=max(room, ids.size),
        )

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yield every example once, the shortest first: for evaluation, which no order can move."""
        order = np.argsort(self.lengths, kind="stable")
        for start in range(0, len(order), batch_size):
            yield self.batch(order[start : start + batch_size])

    def cut(self, piece: np.ndarray, tokens: int) -> list[np.ndarray]:
        """Return these examples, the shortest first, in batches that have room for so many tokens."""
        return _cut(piece[np.argsort(self.lengths[piece], kind="stable")], self.lengths, tokens)

    @cached_property
    def digest(self) -> str:
        """Digest of all token ids and types, and of where each example begins."""
        held = hashlib.sha256()
        for array in (self._ids, self._types, self.starts):
            held.update(np.ascontiguousarray(array, dtype=np.int64).tobytes())
        return held.hexdigest()


def lengths_of(path: Path) -> np.ndarray:
    """Return the tokens of each example of a part, without reading the rest of it."""
    return _lengths(pq.read_table(path, columns=["input_ids"])["input_ids"].combine_chunks())


def _lengths(ids: pa.ListArray) -> np.ndarray:
    return ids.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)


def room_for(lengths: np.ndarray, batch_size: int) -> tuple[int, int]:
    """Return the room of a batch, in tokens, that has so many examples on average, and the batches of an epoch.

    Every batch of a training has the same room: what fills it may be few long examples or many short ones. Of a large
    part a draw of ``SEEN`` examples tells both.
    """
    seen = lengths if len(lengths) <= SEEN else np.random.default_rng(0).choice(lengths, SEEN, replace=False)
    wanted = -(-len(seen) // batch_size)
    room = max(int(seen.sum()) // wanted // GRAIN, -(-int(lengths.max()) // GRAIN)) * GRAIN
    while (count := len(_by_tokens(seen, room, np.random.default_rng(0)))) > wanted:
        room += GRAIN
    return room, -(-count * len(lengths) // len(seen))


def epoch_order(
    lengths: np.ndarray, *, batch_size: int, room: int | None, seed: int, epoch: int, fewest: int = 1
) -> list[np.ndarray]:
    """Return the batches of one epoch: a seeded shuffle, sorted by length within windows, batches shuffled.

    A function of its arguments alone, so that a resumed run finds its place without replaying the data.

    Parameters
    ----------
    room
        Most tokens in a batch, padding among them; null: each has ``batch_size`` examples.
    fewest
        Examples in a batch; one with fewer is put to its neighbour in length, whatever the room.
    """
    draw = np.random.default_rng([seed, epoch])
    found = _by_examples(lengths, batch_size, draw) if room is None else _by_tokens(lengths, room, draw)
    found = _joined(found, fewest)
    return [found[i] for i in draw.permutation(len(found))]


def _joined(found: list[np.ndarray], fewest: int) -> list[np.ndarray]:
    whole = found[:1]
    for batch in found[1:]:
        if min(len(batch), len(whole[-1])) < fewest:
            whole[-1] = np.concatenate([whole[-1], batch])
        else:
            whole.append(batch)
    return whole


def _by_examples(lengths: np.ndarray, batch_size: int, draw: np.random.Generator) -> list[np.ndarray]:
    order = draw.permutation(len(lengths))
    found: list[np.ndarray] = []
    for start in range(0, len(order), batch_size * WINDOW):
        window = order[start : start + batch_size * WINDOW]
        window = window[np.argsort(lengths[window], kind="stable")]
        found += [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
    return found


def _by_tokens(lengths: np.ndarray, room: int, draw: np.random.Generator) -> list[np.ndarray]:
    order = draw.permutation(len(lengths))
    size = max(1, int(WINDOW * room / lengths.mean()))
    found: list[np.ndarray] = []
    rest = order[:0]
    for start in range(0, len(order), size):
        window = np.concatenate([rest, order[start : start + size]])
        window = window[np.argsort(lengths[window], kind="stable")]
        *whole, rest = _cut(window, lengths, room)  # the last is not full: its examples go into the next window
        found += whole
    return [*found, rest]


def _cut(order: np.ndarray, lengths: np.ndarray, room: int) -> list[np.ndarray]:
    """Return examples that are sorted by length in batches that have room for them; one that is longer stands alone."""
    sizes = lengths[order]
    found: list[np.ndarray] = []
    start = 0
    while start < len(order):
        # The longest of the first k examples is the k-th, so that k of them take k * sizes[start + k - 1] places.
        reach = sizes[start : start + room // int(sizes[start]) + 1]
        taken = max(1, int(np.count_nonzero(reach * np.arange(1, len(reach) + 1) <= room)))
        found.append(order[start : start + taken])
        start += taken
    return found


def endless(
    lengths: np.ndarray, *, batch_size: int, room: int | None, seed: int, skip: int = 0, fewest: int = 1
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield batches epoch after epoch, from the one after ``skip`` of them, each with how many its epoch has."""
    epoch = 0
    while True:
        found = epoch_order(lengths, batch_size=batch_size, room=room, seed=seed, epoch=epoch, fewest=fewest)
        yield from ((index, len(found)) for index in found[skip:])
        epoch, skip = epoch + 1, max(0, skip - len(found))
