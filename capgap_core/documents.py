"""Documents for language models: what a part is made of, which are held out, and in what order they stand."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

HELD_OUT = 0.05
"""Share of the bytes that each of the two held-out parts should have."""
_EXCEEDED = 1.1
"""A document that would make a held-out part this many times as large as it should be is passed over."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text that is read from its beginning to its end."""

    text: str
    source: str
    """Of what kind it is, or from where: losses are told for each source."""
    path: str
    """Where it is found again: never the place on a machine."""


Parts = dict[str, list[Document]]
"""Documents of ``train``, ``valid`` and ``test``."""


@dataclass(frozen=True)
class LmText:
    """Text for a language model that has been read and has no faults."""

    name: str
    parts: Parts
    digest: str
    """Of all texts and their sources as they were read: neither a cut nor an order by seed moves it."""
    empty: int
    """Documents left out because they hold nothing but space."""
    repeated: int
    """Documents left out because their text stands elsewhere too: where, its reader says."""
    notes: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Return the bytes of each part's texts in UTF-8."""
        return {part: sum(len(one.text.encode()) for one in documents) for part, documents in self.parts.items()}


def digest_of(parts: Mapping[str, Sequence[Document]]) -> str:
    """Return the digest of all texts and sources, part by part and in their order."""
    whole = hashlib.sha256()
    for part, documents in sorted(parts.items()):
        whole.update(f"{part} {len(documents)}\n".encode())
        for document in documents:
            for held in (document.source.encode(), document.text.encode()):
                whole.update(f"{len(held)} ".encode())
                whole.update(held)
    return whole.hexdigest()


def held_out(sizes: Mapping[str, int], *, seed: str, parts: Sequence[str] = ("valid", "test")) -> dict[str, str]:
    """Return which documents are held out, as name → part; the same names and sizes give the same.

    A document's place is drawn by its name and the seed. The first of ``parts`` is filled from the one end, the
    second from the other, each up to :data:`HELD_OUT` of all bytes, so that neither moves the other and a size that
    changes moves few documents. Each has at least one.

    Parameters
    ----------
    sizes
        Name → bytes; at least one document more than there are parts.
    """
    order = sorted(sizes, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    wanted = HELD_OUT * sum(sizes.values())
    taken: dict[str, str] = {}
    for number, (part, names) in enumerate(zip(parts, (order, order[::-1]), strict=False)):
        left = [name for name in names if name not in taken]
        filled = 0
        others = len(parts) - number  # one document for each part that follows, and one that is not held out
        for name in left:
            if len(sizes) - len(taken) > others and filled < wanted and filled + sizes[name] <= _EXCEEDED * wanted:
                taken[name] = part
                filled += sizes[name]
        if not filled:
            taken[min(left, key=lambda name: sizes[name])] = part
    return taken


def shuffled(parts: Parts, seed: int) -> Parts:
    """Return the parts with the documents of each in an order that the seed draws: files are grouped by source."""
    found: Parts = {}
    for number, (part, documents) in enumerate(sorted(parts.items())):
        order = np.random.default_rng([seed, number]).permutation(len(documents))
        found[part] = [documents[place] for place in order]
    return found
