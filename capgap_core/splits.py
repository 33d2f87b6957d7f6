"""Cuts a part out of a data set so that no text stands on both sides.

What must stay on one side is a *group*: rows of equal normalised texts, texts one of which contains the
other (:data:`SHORTEST` words or more, as a run of whole words), pairs that share a text. A plain random cut of
SST-2 would leave 99% of its longer selection rows with a training row that contains them or that they contain.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

SHORTEST = 4
"""Words of the shortest text whose containment in another counts; punctuation written apart is a word here."""
FEWEST = 2
"""Words proper that such a text has at least."""
GIANT = 0.1
"""Share of all rows above which one group makes a cut by groups unrepresentative."""
CATEGORY = 0.1
"""Share of all rows above which a text of a pair shorter than :data:`SHORTEST` is a category, not a text."""

_APOSTROPHES = re.compile(r"['’`´]")
_WORDS = re.compile(r"[^\W_]+")
_PRIME = (1 << 61) - 1
_BASE = 1_000_003

How = Literal["groups", "overlap-left-out"]
Words = tuple[str, ...]


@dataclass(frozen=True)
class Cut:
    """Which rows go where; every row is in exactly one of ``train``, ``part`` and ``dropped``."""

    train: list[int]
    part: list[int]
    dropped: list[int]
    groups: int
    """Groups among all rows."""
    largest_group: int
    """Rows of the largest group."""
    how: How


def normalised(text: str) -> Words:
    """Return the words of a text without case, punctuation and spacing; a text of punctuation only is one word.

    Unicode's variants of one text (NFKC) have the same words.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return tuple(_WORDS.findall(_APOSTROPHES.sub("", folded))) or ((folded.strip(),) if folded.strip() else ())


def cut(texts: Sequence[Sequence[str]], *, rows: int, seed: int, labels: Sequence[int] | None = None) -> Cut:
    """Take ``rows`` rows out as ``part``, whole groups at random, so that no row of ``train`` overlaps one of them.

    Parameters
    ----------
    texts
        One list of texts, or the two parallel lists of a pair.
    rows
        Rows the part should have; it has fewer only where no group fits the room that is left.
    seed
        Draws the groups; which texts are drawn does not depend on the order of the rows.
    labels
        Class of each row; where given, no class is taken out of ``train`` as a whole.

    Notes
    -----
    Where a group has more than a tenth of all rows, whole groups cannot make a representative part. Then rows
    whose texts no other text contains are drawn, with the rows that they contain, and what is left of the rows
    that overlap them is ``dropped``. At least half of all rows stay in ``train``, so the part may be smaller.
    """
    count = len(texts[0])
    if any(len(column) != count for column in texts):
        raise ValueError(f"the text columns have {[len(column) for column in texts]} rows; they must be parallel")
    if not 0 < rows < count:
        raise ValueError(f"cannot take {rows} rows out of {count}; take at least 1 and leave at least 1")
    overlaps = _Overlaps(texts)
    groups = overlaps.groups()
    largest = max(map(len, groups))
    kept = _Kept(labels)
    rng = np.random.default_rng(seed)
    order = [groups[i] for i in rng.permutation(len(groups))]
    how: How = "overlap-left-out" if largest > GIANT * count else "groups"
    if how == "groups":
        part, dropped = _whole_groups(order, rows, kept), set[int]()
    else:
        part, dropped = _left_out(overlaps, rows, kept, rng)
    train = [row for row in range(count) if row not in part and row not in dropped]
    return Cut(train, sorted(part), sorted(dropped), len(groups), largest, how)


def overlapping(texts_a: Sequence[Sequence[str]], texts_b: Sequence[Sequence[str]]) -> list[int]:
    """Return the rows of ``a`` that equal, contain, are contained in or share a text with a row of ``b``.

    Both are one list of texts or the two parallel lists of a pair, as in :func:`cut`.
    """
    count = len(texts_a[0])
    joined = [[*a, *b] for a, b in zip(texts_a, texts_b, strict=True)]
    overlaps = _Overlaps(joined)
    return [row for row in range(count) if any(other >= count for other in overlaps.of_row(row))]


class _Kept:
    """Counts the rows of each class that are left, so that none is taken out as a whole."""

    def __init__(self, labels: Sequence[int] | None) -> None:
        self._labels = labels
        self._left = Counter(labels or ())

    def take(self, rows: Iterable[int]) -> bool:
        """Take the rows, or say no where a class would have none left."""
        if self._labels is None:
            return True
        taken = Counter(self._labels[row] for row in rows)
        if any(self._left[label] <= number for label, number in taken.items()):
            return False
        self._left -= taken
        return True


def _whole_groups(groups: Iterable[list[int]], rows: int, kept: _Kept) -> set[int]:
    part: set[int] = set()
    for group in groups:
        if len(group) <= rows - len(part) and kept.take(group):
            part.update(group)
        if len(part) == rows:
            break
    return part


def _left_out(overlaps: "_Overlaps", rows: int, kept: _Kept, rng: np.random.Generator) -> tuple[set[int], set[int]]:
    """Draw root rows and what they contain; return the part and the rows that overlap it."""
    roots = [row for row in overlaps.in_order if not overlaps.is_contained(row)]
    order = [roots[i] for i in rng.permutation(len(roots))]
    costs = [_cost(*overlaps.with_root(root)) for root in order[:500]]
    limit = float(np.median(costs)) if costs else 0.0
    part: set[int] = set()
    dropped: set[int] = set()
    for bar in (limit, float("inf")):
        for root in order:
            if len(part) == rows:
                return part, dropped
            if root in part:
                continue
            taken, lost = overlaps.with_root(root)
            taken, lost = taken - part, lost - part - taken - dropped
            fits = len(taken) <= rows - len(part)
            most = (overlaps.rows - len(part | dropped | taken | lost)) >= overlaps.rows / 2
            if fits and most and _cost(taken, lost) <= bar and kept.take((taken | lost) - dropped):
                dropped = (dropped | lost) - taken
                part |= taken
    return part, dropped


def _cost(taken: set[int], lost: set[int]) -> float:
    """Return how many rows are lost for one that is taken."""
    return len(lost) / max(len(taken), 1)


class _Overlaps:
    """Which rows overlap: by distinct normalised text, and by which distinct text contains which."""

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        self.rows = len(texts[0])
        known: dict[Words, int] = {}
        by_raw: dict[str, int] = {}
        for column in texts:
            for text in column:
                if text not in by_raw:
                    by_raw[text] = known.setdefault(normalised(text), len(known))
        self.words = list(known)
        written = [0] * len(known)
        for text, number in by_raw.items():
            written[number] = max(written[number], len(text.split()))
        ids = [{by_raw[text] for text in row} for row in zip(*texts, strict=True)]
        self.texts_of = self._without_categories(ids) if len(texts) > 1 else [sorted(row) for row in ids]
        self.rows_of: dict[int, list[int]] = defaultdict(list)
        for row, mine in enumerate(self.texts_of):
            for text in mine:
                self.rows_of[text].append(row)
        self.contains, self.within = _containment(self.words, written)

    def _without_categories(self, ids: list[set[int]]) -> list[list[int]]:
        """Return the texts of each pair without those that say nothing: empty ones and names of a category."""
        uses = Counter(text for row in ids for text in row)
        most = max(10, CATEGORY * self.rows)
        said = [bool(words) and (len(words) >= SHORTEST or uses[i] <= most) for i, words in enumerate(self.words)]
        return [sorted(text for text in row if said[text]) for row in ids]

    @cached_property
    def in_order(self) -> list[int]:
        """The rows in an order that their texts decide, equal rows apart."""
        return sorted(range(self.rows), key=lambda row: [self.words[text] for text in self.texts_of[row]])

    def groups(self) -> list[list[int]]:
        """Return the rows of each group; the groups are in an order that their texts decide."""
        parent = list(range(len(self.words)))

        def find(a: int) -> int:
            while parent[a] != a:
                parent[a] = parent[parent[a]]
                a = parent[a]
            return a

        for outer, inner in self.contains.items():
            for text in inner:
                parent[find(text)] = find(outer)
        for row in self.texts_of:
            for text in row[1:]:
                parent[find(text)] = find(row[0])
        groups: dict[int, list[int]] = defaultdict(list)
        for row in self.in_order:
            mine = self.texts_of[row]
            groups[find(mine[0]) if mine else -1 - row].append(row)
        return list(groups.values())

    def is_contained(self, row: int) -> bool:
        """Return whether another row has a text that contains one of this row's."""
        return any(
            other != row
            for text in self.texts_of[row]
            for outer in self.within.get(text, ())
            for other in self.rows_of[outer]
        )

    def with_root(self, root: int) -> tuple[set[int], set[int]]:
        """Return the row with the rows it equals or contains, and the other rows that overlap these."""
        inner = {text for mine in self.texts_of[root] for text in (mine, *self.contains.get(mine, ()))}
        taken = {root} | {row for text in inner for row in self.rows_of[text] if inner.issuperset(self.texts_of[row])}
        return taken, {other for row in taken for other in self.of_row(row)} - taken

    def of_row(self, row: int) -> set[int]:
        """Return the rows that overlap this one, with itself."""
        mine = self.texts_of[row]
        near = {n for text in mine for n in (text, *self.contains.get(text, ()), *self.within.get(text, ()))}
        return {other for text in near for other in self.rows_of[text]} | {row}


def _containment(texts: Sequence[Words], written: Sequence[int]) -> tuple[dict[int, set[int]], dict[int, set[int]]]:
    """Return which texts each text contains, and which texts each is contained in.

    An index of the first words gives the lengths that may begin at a place, and a polynomial hash of the words up
    to each place decides each of them in constant time; every hit is then compared word by word. ``written`` has
    the words of each text with punctuation that stands apart.
    """
    vocabulary: dict[str, int] = {}
    lengths: dict[Words, set[int]] = defaultdict(set)
    whole: dict[tuple[int, int], int] = {}
    powers = [1]
    for number, words in enumerate(texts):
        while len(powers) <= len(words):
            powers.append(powers[-1] * _BASE % _PRIME)
        if len(words) >= SHORTEST or (written[number] >= SHORTEST and len(words) >= FEWEST):
            lengths[words[:SHORTEST]].add(len(words))
            whole[len(words), _prefix_hashes(words, vocabulary)[-1]] = number
    contains: dict[int, set[int]] = defaultdict(set)
    within: dict[int, set[int]] = defaultdict(set)
    for outer, words in enumerate(texts):
        hashes = _prefix_hashes(words, vocabulary)
        for start, length in _beginnings(words, lengths):
            end = start + length
            inner = whole.get((length, (hashes[end] - hashes[start] * powers[length]) % _PRIME))
            if inner is not None and words[start:end] == texts[inner]:
                contains[outer].add(inner)
                within[inner].add(outer)
    return contains, within


def _prefix_hashes(words: Words, vocabulary: dict[str, int]) -> list[int]:
    """Return the hash of the words before each place, and of all."""
    total, hashes = 0, [0]
    for word in words:
        total = (total * _BASE + vocabulary.setdefault(word, len(vocabulary) + 1)) % _PRIME
        hashes.append(total)
    return hashes


def _beginnings(words: Words, lengths: dict[Words, set[int]]) -> Iterator[tuple[int, int]]:
    """Yield where a shorter text may begin, and how long it is."""
    for known in range(FEWEST, SHORTEST + 1):
        for start in range(len(words) - known + 1):
            for length in lengths.get(words[start : start + known], ()):
                if length < len(words) and start + length <= len(words):
                    yield start, length
