"""Cuts a stream of token ids into rows for a language model.

The documents of a part stand one after the other in a stream of N ids, each followed by the separator, which is the
last token of its document. A row has ``length + 1`` places, and the last of one is the first of the next:

    stream    a0 a1 a2 |  b0 b1 b2 b3 |  c0 |           "|" is the separator, length is 4
    row 0     a0 a1 a2 |  b0                            inputs are all places but the last,
    row 1                 b0 b1 b2 b3 |                 targets all but the first
    row 2                             |  c0 |  .  .     filled up with separators of no document
    kept      -  x  x  x  -  x  x  x  x  -  x           what counts as a target

So every token but the stream's first is a target in one row, at one place. It is kept where it is of the document of
the input before it: the first token of a document is predicted from nothing and never counts, its separator does.
Of D documents N - D targets are kept in each epoch. The rows are the same in all epochs; the order in which they are
seen is that of ``batches``.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Some rows of a stream."""

    index: np.ndarray
    """Which rows of the stream they are, ``(n,)``."""
    tokens: np.ndarray
    """``(n, length + 1)`` int64."""
    document: np.ndarray
    """The document of each token by its number in the stream, ``(n, length + 1)`` int64; -1 where a row is filled up.

    Attention stays within a document where it is between equal numbers.
    """

    @property
    def inputs(self) -> np.ndarray:
        """Return what a model is given, ``(n, length)``."""
        return self.tokens[:, :-1]

    @property
    def targets(self) -> np.ndarray:
        """Return what it is to predict, ``(n, length)``: at place i, token i + 1."""
        return self.tokens[:, 1:]

    @property
    def keep(self) -> np.ndarray:
        """Return which targets count, ``(n, length)`` bool: those of the document of their input."""
        return (self.document[:, 1:] == self.document[:, :-1]) & (self.document[:, 1:] >= 0)

    @cached_property
    def positions(self) -> np.ndarray:
        """Return how many inputs of its document each has before it in its row, ``(n, length)`` int64."""
        place = np.arange(self.inputs.shape[1])
        first = np.ones(self.inputs.shape, dtype=bool)
        first[:, 1:] = self.document[:, 1:-1] != self.document[:, :-2]
        return place - np.maximum.accumulate(np.where(first, place, 0), axis=1)


class Stream:
    """A stream of token ids as rows.

    Parameters
    ----------
    ids, starts
        As :func:`capgap_core.lm_tokens.encode` returns them: ``(N,)`` and ``(D + 1,)``.
    length
        Targets of a row.
    """

    def __init__(self, ids: np.ndarray, starts: np.ndarray, length: int) -> None:
        if len(ids) < 2 or length < 1:
            raise ValueError(f"cannot cut rows of {length} from a stream of {len(ids)} tokens")
        self.ids, self.starts, self.length = ids, starts, length

    def __len__(self) -> int:
        """Return the number of rows."""
        return (len(self.ids) - 2) // self.length + 1

    def rows(self, index: np.ndarray) -> Rows:
        """Return the rows of these numbers, ``(n,)``."""
        place = index[:, None] * self.length + np.arange(self.length + 1)
        real = place < len(self.ids)
        document = np.searchsorted(self.starts, place, side="right") - 1
        held = self.ids[np.minimum(place, len(self.ids) - 1)].astype(np.int64)  # the stream ends with the separator
        return Rows(index=index, tokens=held, document=np.where(real, document, -1))

    def kept(self) -> np.ndarray:
        """Return how many targets each row keeps, ``(rows,)``."""
        first = np.arange(len(self)) * self.length
        last = np.minimum(first + self.length, len(self.ids) - 1)
        begun = np.searchsorted(self.starts, [first, last], side="right")
        return last - first - (begun[1] - begun[0])
