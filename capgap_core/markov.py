"""A hidden Markov source of symbols whose entropy is known: text of which no model can lose less, and none runs out.

A document begins in a state drawn from the source's stationary distribution. A state emits a symbol; then the document
ends with a fixed probability, whatever the state, else the state moves. So a stretch from the middle of a document is
distributed as one from its beginning, and what the best reader of a stretch would lose is known as exactly as for whole
documents: the forward algorithm says both. An end that comes after a fixed number of symbols would ask models to count,
which is no part of what is to be compared; this one asks for nothing that depends on the place.

Draws are made from ``PCG64.random`` by inverse distribution functions, whose sums are added one after the other: the
same documents in every version of numpy and on every machine that adds as IEEE 754 says.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np

BATCH = 4096
"""Documents that are drawn together, from a seed of their own: more of them begin with the same ones."""
SEGMENTS = 512
"""Stretches that the forward algorithm reads side by side."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Markov:
    """A hidden Markov source of K states and A symbols; each row of the matrices is a distribution."""

    start: np.ndarray
    """``(K,)``: of the first state; ``stationary(move)``, where stretches of documents are read, too."""
    move: np.ndarray
    """``(K, K)``: from a state to the next."""
    emit: np.ndarray
    """``(K, A)``: from a state to its symbol."""
    end: float
    """Probability that a document ends after a symbol; its mean length is 1 / end symbols."""

    def draw(self, symbols: int, seed: int) -> Iterator[np.ndarray]:
        """Yield documents, ``(n,)`` uint8 each, until they hold so many symbols at least; more of them begin alike."""
        batch = 0
        while symbols > 0:
            for document in self._drawn(BATCH, np.random.Generator(np.random.PCG64([seed, batch]))):
                if symbols <= 0:
                    return
                symbols -= len(document)
                yield document
            batch += 1

    def _drawn(self, count: int, draw: np.random.Generator) -> list[np.ndarray]:
        """Return so many documents, all of them moved together: at each place those that are long enough."""
        lengths = 1 + np.searchsorted(-self._alive, -draw.random(count), side="left")
        order = np.argsort(-lengths, kind="stable")
        begins = np.concatenate([[0], np.cumsum(lengths)])
        held = np.empty(begins[-1], dtype=np.uint8)
        active = np.searchsorted(-lengths[order], -np.arange(1, lengths.max() + 1), side="right")
        state = _picked(*_likely(self.start[None]), np.zeros(count, dtype=np.int64), draw.random(count))
        for place, going in enumerate(active):
            if place:
                state = _picked(*self._moves, state[:going], draw.random(going))
            held[begins[order[:going]] + place] = _picked(*self._emits, state, draw.random(going))
        return np.split(held, begins[1:-1])

    @cached_property
    def _alive(self) -> np.ndarray:
        """Probability that a document has more than n + 1 symbols, as far as a random number can tell."""
        return np.cumprod(np.full(int(40 / self.end) + 1, 1.0 - self.end))

    @cached_property
    def _moves(self) -> tuple[np.ndarray, np.ndarray]:
        return _likely(self.move)

    @cached_property
    def _emits(self) -> tuple[np.ndarray, np.ndarray]:
        return _likely(self.emit)

    def surprisal(self, symbols: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Return what the source itself loses on each token of a stream, in nats, ``(N,)``.

        The first token of a stretch is read and costs nothing; each that follows costs -ln of its probability given
        those of its stretch before it. What is in no stretch, or first in each of its own, is 0.

        Parameters
        ----------
        symbols
            ``(N,)``; A where a document ends.
        begins, ends
            ``(S,)``: stretch s is ``symbols[begins[s] : ends[s]]``, of one document; its separator may be its last.
        """
        cost = np.zeros(len(symbols))
        order = np.argsort(begins - ends, kind="stable")
        for first in range(0, len(order), SEGMENTS):
            chosen = order[first : first + SEGMENTS]
            self._forward(symbols, begins[chosen], (ends - begins)[chosen], cost)
        return cost

    def _forward(self, symbols: np.ndarray, begins: np.ndarray, lengths: np.ndarray, cost: np.ndarray) -> None:
        """Write the costs of some stretches, the longer ones first."""
        separator = self.emit.shape[1]
        likely = np.vstack([self.emit.T, np.ones(len(self.emit))])  # (A + 1, K); a state is not asked for the end
        belief = np.broadcast_to(self.start, (len(begins), len(self.start)))
        for place in range(int(lengths[0])):
            going = np.searchsorted(-lengths, -place, side="left")
            token = symbols[begins[:going] + place]
            over = token == separator
            if place:
                cost[begins[:going][over] + place] = -np.log(self.end)
                belief = belief[:going] @ self.move
            joint = belief[:going] * likely[token]
            chance = joint.sum(axis=1)
            if place:
                inside = ~over
                cost[begins[:going][inside] + place] = -np.log(chance[inside]) - np.log1p(-self.end)
            belief = joint / chance[:, None]

    def rate(self, symbols: int, seed: int, *, read: int = 256) -> tuple[float, float]:
        """Return the entropy rate of symbols, were there no ends, from a long draw: nats for a symbol, and its error.

        It is the mean cost of symbols that have at least ``read`` others before them; what is further back than that
        tells next to nothing where states are soon forgotten. The error is from the means of documents.
        """
        endless = replace(self, end=1 / (16 * read))
        drawn = endless._drawn(-(-symbols // (16 * read)), np.random.Generator(np.random.PCG64(seed)))
        documents = [one for one in drawn if len(one) > read]
        starts = np.cumsum([0, *map(len, documents)])
        cost = endless.surprisal(np.concatenate(documents), starts[:-1], starts[1:]) + np.log1p(-endless.end)
        lost = np.array([cost[a + read : b].sum() for a, b in pairwise(starts)])
        counts = np.diff(starts) - read
        mean = lost.sum() / counts.sum()
        error = np.sqrt(((lost - mean * counts) ** 2).sum() * len(lost) / max(1, len(lost) - 1)) / counts.sum()
        return float(mean), float(error)

    def entropy_of_moves(self) -> float:
        """Return the entropy of the next state given this one, in nats: of a source that shows its states, its rate."""
        return float(self.start @ -_xlogx(self.move).sum(axis=1))


def stationary(move: np.ndarray, first: np.ndarray, rounds: int = 10_000) -> np.ndarray:
    """Return the distribution of states that a move leaves as it is, ``(K,)``.

    Parameters
    ----------
    first
        ``(K,)``: the distribution from which it is looked for, the sooner found the nearer this is.
    """
    held = first
    for _ in range(rounds):
        after = np.cumsum(held[:, None] * move, axis=0)[-1]
        if np.abs(after - held).max() < 1e-15:
            return after / np.cumsum(after)[-1]
        held = after
    raise ValueError(f"no distribution stays as it is after {rounds} moves")


def _xlogx(p: np.ndarray) -> np.ndarray:
    return p * np.log(np.where(p > 0, p, 1.0))


def _likely(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the possible outcomes of each row, ``(K, d)``, and the number of its row plus their distribution function.

    Rows with fewer outcomes are filled up with their last one. Both are flat, so that one search finds a place in any
    of the rows.
    """
    possible = (rows > 0).sum(axis=1)
    place = np.minimum(np.arange(possible.max()), possible[:, None] - 1)
    which = np.take_along_axis(np.argsort(rows == 0, axis=1, kind="stable"), place, axis=1)
    summed = np.cumsum(np.take_along_axis(rows, which, axis=1), axis=1)
    summed[np.arange(len(summed[0])) >= possible[:, None] - 1] = 1.0
    return which.ravel(), (summed + np.arange(len(summed))[:, None]).ravel()


def _picked(which: np.ndarray, summed: np.ndarray, row: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Return an outcome of each of these rows, ``(n,)``, for random numbers in [0, 1)."""
    width = len(which) // round(summed[-1])
    place = np.searchsorted(summed, row + drawn, side="right")
    return which[np.minimum(place, (row + 1) * width - 1)]  # the sum may have been rounded up to the next row's
