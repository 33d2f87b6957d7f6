"""The embedded text ``hmm``: a control whose least loss is known, of which there is as much as is asked for.

A hidden Markov source of 384 states: 8 topics of 48 states each. A state has 12 successors in its topic, drawn by a
popularity of 1 / rank, the k-th of them with a probability in proportion to 1 / k²; one move in 32 goes to a topic
drawn by 1 / rank, to any of its states. A state emits its own symbol, and another one in 20 times; what a symbol stands
for is another state in each topic. So there is always something rarer to learn, and a topic has to be told from what
was read: larger models on more text come nearer to the source's own loss, and none of them reaches it soon.

Documents are 256 symbols long on average, and parts are drawn from seeds of their own. Short documents may stand in two
parts, as any that are drawn alike and apart: dropping them would make a different source of what is left.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from capgap_core.documents import Document, LmText, Parts, digest_of
from capgap_core.lm_rows import Stream
from capgap_core.markov import Markov, stationary

NAME = "hmm"
BYTES = 20_000_000
"""Of the training part, where none are asked for."""
HELD_OUT_BYTES = 300_000
"""Of each of the others: more than a law measures on, where nothing else is asked for."""
SEEDS = {"train": 1, "valid": 2, "test": 3}
TOPICS, STATES, SUCCESSORS = 8, 48, 12
STAY, OWN, END = 31 / 32, 19 / 20, 1 / 256
ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
SEPARATOR = 256
"""The token that ends a document, where every other is a byte."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the source itself loses on the targets that count in some rows or documents."""

    nats: float
    """For a token."""
    stderr: float
    """Of ``nats``, from the means of rows or documents."""
    tokens: int


@cache
def source() -> Markov:
    """Return the source; made of sums, products and quotients alone, it is the same on every machine."""
    draw = np.random.Generator(np.random.PCG64(0))
    rank = 1.0 / np.arange(1, STATES + 1)
    chances = rank[:SUCCESSORS] * rank[:SUCCESSORS]
    chances = chances / np.cumsum(chances)[-1]
    topics = rank[:TOPICS] / np.cumsum(rank[:TOPICS])[-1]
    first = np.repeat(topics, STATES) / STATES
    move = np.tile((1.0 - STAY) * first, (TOPICS * STATES, 1))
    emit = np.zeros((TOPICS * STATES, len(ALPHABET)))
    for topic in range(TOPICS):
        popular = np.argsort(draw.random(STATES), kind="stable")
        symbols = np.argsort(draw.random(len(ALPHABET)), kind="stable")[:STATES]
        for place in range(STATES):
            state = topic * STATES + place
            move[state, topic * STATES + popular[_distinct(rank, SUCCESSORS, draw)]] += STAY * chances
            emit[state, symbols[place]] += OWN
            emit[state, int(draw.random() * len(ALPHABET))] += 1.0 - OWN
    return Markov(start=stationary(move, first), move=move, emit=emit, end=END)


def _distinct(weights: np.ndarray, count: int, draw: np.random.Generator) -> list[int]:
    """Return places drawn by their weights one after the other, each once."""
    summed = np.cumsum(weights)
    found: list[int] = []
    while len(found) < count:
        place = int(np.searchsorted(summed, draw.random() * summed[-1], side="right"))
        if place not in found:
            found.append(place)
    return found


def read_hmm(train_bytes: int) -> LmText:
    """Return the text, with at least so many bytes to train on; more of it begins with the same documents."""
    letters = np.frombuffer(ALPHABET, dtype=np.uint8)
    parts: Parts = {}
    for part, seed in SEEDS.items():
        drawn = source().draw(train_bytes if part == "train" else HELD_OUT_BYTES, seed)
        parts[part] = [
            Document(letters[symbols].tobytes().decode("ascii"), NAME, f"{part}:{number}")
            for number, symbols in enumerate(drawn)
        ]
    note = "hmm is drawn from a hidden Markov source whose own loss is known: a control, and no language"
    return LmText(NAME, parts, digest_of(parts), 0, 0, (note,))


def on_texts(texts: Iterable[str]) -> Known:
    """Return what the source loses on whole documents."""
    held = [text.encode("ascii") for text in texts]
    starts = np.cumsum([0, *(len(one) + 1 for one in held)])
    tokens = np.full(starts[-1], SEPARATOR, dtype=np.int64)
    for first, one in zip(starts, held, strict=False):
        tokens[first : first + len(one)] = np.frombuffer(one, dtype=np.uint8)
    lost = source().surprisal(_symbols(tokens), starts[:-1], starts[1:])
    return _known(np.add.reduceat(lost, starts[:-1]), np.diff(starts) - 1)


def on_rows(ids: np.ndarray, starts: np.ndarray, length: int, *, most: int | None = None) -> Known:
    """Return the least that anything can lose on rows of a stream, which a document may have begun before.

    The source reads what a model reads: of a document, what stands in the row. So no model loses less on average.

    Parameters
    ----------
    ids, starts
        ``(N,)`` tokens, each a byte or ``SEPARATOR``, and ``(D + 1,)`` where documents begin.
    length
        Targets of a row.
    most
        Only so many rows, evenly spread, as models are measured on them; null: all.
    """
    rows = Stream(ids, starts, length)
    count = len(rows) if most is None else min(most, len(rows))
    chosen = np.arange(count) * len(rows) // count
    begins = np.union1d(starts[:-1], np.arange(len(rows)) * length)
    ends = np.append(begins[1:], len(ids))
    ends = ends + ~np.isin(ends, starts)  # a row that is cut predicts the token that the next one begins with
    wanted = np.isin(begins // length, chosen)
    lost = source().surprisal(_symbols(ids), begins[wanted], ends[wanted])
    table = np.zeros(len(rows) * length)
    table[: len(lost) - 1] = lost[1:]
    return _known(table.reshape(len(rows), length).sum(axis=1)[chosen], rows.kept()[chosen])


def on_part(table: Path, length: int, *, most: int | None = None) -> Known:
    """Return what ``on_rows`` says of a part that the stage ``text`` has written."""
    lists = pq.read_table(table, columns=["input_ids"])["input_ids"].combine_chunks()
    return on_rows(lists.values.to_numpy(), lists.offsets.to_numpy(), length, most=most)


def source_nats(parts: Parts, names: Sequence[str] = ("valid", "test")) -> dict[str, float]:
    """Return what the source loses for a token of whole documents of these parts: a little less than on rows."""
    return {name: on_texts(one.text for one in parts[name]).nats for name in names}


def _symbols(tokens: np.ndarray) -> np.ndarray:
    """Return the source's symbols of these tokens, its alphabet's length for a separator."""
    known = np.full(SEPARATOR + 1, -1)
    known[[*ALPHABET, SEPARATOR]] = np.arange(len(ALPHABET) + 1)
    found = known[tokens]
    if found.size and found.min() < 0:
        raise ValueError("there are tokens that the source does not have")
    return found


def _known(lost: np.ndarray, counts: np.ndarray) -> Known:
    """Return what sums of losses and numbers of targets for each row or document say, ``(n,)`` each."""
    mean = float(lost.sum() / counts.sum())
    apart = (lost - mean * counts)[counts > 0]
    error = float(np.sqrt(len(apart) / max(1, len(apart) - 1) * (apart**2).sum()) / counts.sum())
    return Known(nats=mean, stderr=error, tokens=int(counts.sum()))
