"""The tokenizer of a llama2.c model as one of transformers, with the ids that run.c gives.

run.c begins with the characters of a text and puts together, again and again, the two neighbours whose whole is the
piece of the highest score, the leftmost of them where scores are equal. ``tokenizers`` does the same with a list of
merges, best first, but a merge names two parts, and a score only their whole. One merge for each piece does: when run.c
makes a piece from two neighbours, nothing has yet crossed the ends of the two, so what happened between these is what
happens to the characters of the piece alone, and the last step of that is the only way in which it is ever made.

Different pieces of equal scores, such as Llama's runs of spaces, have to follow one another in the list. That comes to
the same as leftmost first where (1) no piece with one of them as a part is better than they are, so that nothing comes
between, and (2) at most one of them has a left part that is also a right part among them: no other can lose a part to a
neighbour on its left, so that one comes last. Where this does not hold, the file is at fault.
"""

import math
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from capgap_core.errors import Fault, fault

UNKNOWN, BOS, EOS = "<unk>", "<s>", "</s>"
FIXED = (UNKNOWN, BOS, EOS, *(f"<0x{byte:02X}>" for byte in range(256)))
"""The first pieces of every vocabulary; a byte of a character that is no piece becomes token 3 + byte."""
LOWEST = -1e10
"""A score must be above it for run.c to make the piece."""
EXPORT = "Give the file that llama2.c's Tokenizer.export writes for the model."

Pair = tuple[str, str]


class Piece(NamedTuple):
    """An entry of the vocabulary; its place is its id."""

    score: float
    text: str | None
    """None where its bytes are not UTF-8."""
    size: int
    """Bytes."""


def read_tokenizer(path: Path, vocabulary: int | None) -> tuple[PreTrainedTokenizerFast | None, list[Fault]]:
    """Return the tokenizer of a file, or none and every fault of the file.

    Parameters
    ----------
    path
        An int32, the most bytes of a piece, and for each piece its score (fp32), its length in bytes (int32) and its
        bytes; little-endian.
    vocabulary
        Pieces of the model that it is for; None where that is not known.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        return None, [unreadable("tokenizer", path, error)]
    pieces = _pieces(data)
    if pieces is None:
        why = "it ends within a piece, or a piece has an impossible length"
        return None, [fault("tokenizer", str(path), why, EXPORT)]
    scores = {piece.text: piece.score for piece in pieces[len(FIXED) :] if piece.text is not None}
    pairs = {text: pair for text in scores if (pair := _last_pair(text, scores)) is not None}
    (longest,) = struct.unpack_from("<i", data)
    wrong = [
        *_count_rules(pieces, vocabulary),
        *_piece_rules(pieces, longest),
        *_score_rules(pieces, _unclear(scores, pairs)),
    ]
    if wrong:
        return None, [fault("tokenizer", str(path), rule, EXPORT) for rule in wrong]
    ids = {text: i for i, text in enumerate([*FIXED, *scores])}
    return _fast(ids, _merges(scores, pairs)), []


def _pieces(data: bytes) -> list[Piece] | None:
    """Return the entries of a file, None where it cannot be taken apart."""
    pieces, at = [], 4
    while at + 8 <= len(data):
        score, size = struct.unpack_from("<fi", data, at)
        at += 8 + size
        if size < 1 or at > len(data):
            return None
        try:
            text = data[at - size : at].decode("utf8")
        except UnicodeDecodeError:
            text = None
        pieces.append(Piece(score, text, size))
    return pieces if at == len(data) else None


def _last_pair(text: str, scores: Mapping[str, float]) -> Pair | None:
    """Return the two parts that run.c puts together last to make a piece, None where it never makes it."""
    parts = list(text)
    if any(part not in scores for part in parts):
        return None
    while len(parts) > 2:
        made = [scores.get(left + right, -math.inf) for left, right in pairwise(parts)]
        best = max(made)
        if best == -math.inf:
            return None
        at = made.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None


def _rights(scores: Mapping[str, float], pairs: Mapping[str, Pair]) -> dict[float, set[str]]:
    """Return the right parts of the pieces of each score."""
    rights: dict[float, set[str]] = defaultdict(set)
    for text, (_, right) in pairs.items():
        rights[scores[text]].add(right)
    return rights


def _merges(scores: Mapping[str, float], pairs: Mapping[str, Pair]) -> list[Pair]:
    """Return the parts of each piece, best first; of equal scores, the one that may be made last."""
    rights = _rights(scores, pairs)
    return [pairs[text] for text in sorted(pairs, key=lambda t: (-scores[t], pairs[t][0] in rights[scores[t]]))]


def _unclear(scores: Mapping[str, float], pairs: Mapping[str, Pair]) -> set[str]:
    """Return the pieces of equal scores for which one of the two conditions above does not hold."""
    rights = _rights(scores, pairs)
    times = Counter(scores[text] for text in pairs)
    lasts = Counter(scores[text] for text, (left, _) in pairs.items() if left in rights[scores[text]])
    better = ((scores[part], part) for text, parts in pairs.items() for part in parts if scores[part] < scores[text])
    overtaken = {score for score, part in better if part in pairs}
    return {text for text in pairs if times[s := scores[text]] > 1 and (lasts[s] > 1 or s in overtaken)}


def _count_rules(pieces: Sequence[Piece], vocabulary: int | None) -> Iterable[str]:
    """Yield what is wrong with the number of pieces and with the first of them."""
    if vocabulary is not None and len(pieces) != vocabulary:
        yield f"it has {len(pieces)} pieces and the model {vocabulary}"
    # The export writes BOS and EOS between line ends.
    first = [piece.text if i > 2 else (piece.text or "").strip("\n") for i, piece in enumerate(pieces[: len(FIXED)])]
    if tuple(first) != FIXED:
        yield f"its first {len(FIXED)} pieces are not {UNKNOWN}, {BOS}, {EOS} and the bytes {FIXED[3]} to {FIXED[-1]}"


def _piece_rules(pieces: Sequence[Piece], longest: int) -> Iterable[str]:
    """Yield what is wrong with the texts of pieces."""
    times = Counter([*FIXED, *(piece.text for piece in pieces[len(FIXED) :])])
    if too_long := [i for i, piece in enumerate(pieces) if piece.size > longest]:
        yield f"pieces have more than the {longest} bytes that it states: {_some(too_long)}"
    if not_text := [i for i, piece in enumerate(pieces) if piece.text is None]:
        yield f"pieces are not UTF-8: {_some(not_text)}"
    if twice := [i for i, piece in enumerate(pieces) if piece.text is not None and times[piece.text] > 1]:
        yield f"pieces are there more than once: {_some(twice)}"
    if not times[" "]:
        yield "no piece is a space, which run.c puts before every text"


def _score_rules(pieces: Sequence[Piece], unclear: Set[str]) -> Iterable[str]:
    """Yield what is wrong with scores."""
    if wild := [i for i, piece in enumerate(pieces) if not LOWEST < piece.score < math.inf]:
        yield f"scores are not finite numbers above {LOWEST:g}: {_some(wild)}"
    if tied := [i for i, piece in enumerate(pieces) if piece.text in unclear]:
        yield f"pieces have equal scores, and no order for them is that of run.c: {_some(tied)}"


def _some(ids: Sequence[int]) -> str:
    """Return the first ids as text."""
    return f"{', '.join(map(str, ids[:3]))}{f' and {len(ids) - 3} more' if len(ids) > 3 else ''}"


def unreadable(field: str, path: Path, error: OSError) -> Fault:
    """Return the fault of a file that cannot be opened."""
    return fault(field, str(path), f"it cannot be read ({type(error).__name__})", "Name a file that is there.")


def _fast(ids: dict[str, int], merges: list[Pair]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of these pieces and merges, best first."""
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=UNKNOWN, byte_fallback=True))
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, ids[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # run.c takes "<s>" in a text for three characters
        model_input_names=["input_ids", "attention_mask"],
    )
