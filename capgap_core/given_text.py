"""Looks at what a law is given: the text, its tokenizer, and whether both do for the ladder that is asked for."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from capgap_core import hmm
from capgap_core.errors import Fault, InputFaults, fault
from capgap_core.given_files import tokenizer_of
from capgap_core.ladder import Ladder, cells, rate as rate_of, sizes_for, teachers
from capgap_core.lm_text import read_text
from capgap_core.loading import Cache
from capgap_core.recipes_law import Law

VOCABULARY = 4096
"""Tokens of a BPE that is trained, where none are asked for."""
OWN = ("bytes", "trained")
MILLION = 10**6
READING = {"dataset", "data", "data.text_columns", "data.splits", "data.seed", "data.synthetic_bytes"}
"""What decides how the text is read: where one of them is wrong, nothing can be said of it."""


@dataclass(frozen=True, kw_only=True)
class GivenText:
    """A text that has been read and has no faults."""

    name: str
    content: str
    """Its digest."""
    sizes: dict[str, int]
    """Bytes of each part."""
    tokenizer: str
    """``bytes``, ``trained``, or the digest of the files of one that is given."""


def look(p: Law, wrong: set[str], *, cache: Cache) -> tuple[GivenText | None, list[Fault]]:
    """Return what was given and every fault of it; what is ``wrong`` already is not looked at."""
    tokenizer, faults = _tokenizer(p) if not wrong & {"data", "data.tokenizer"} else (None, [])
    if wrong & READING:
        return None, faults
    try:
        text = read_text(
            p.dataset, column=p.data.text_columns, splits=p.data.splits, seed=p.data.seed, cache=cache,
            synthetic_bytes=p.data.synthetic_bytes,
        )  # fmt: skip
    except InputFaults as error:
        return None, faults + list(error.faults)
    sizes = text.sizes
    faults += _too_short(p, sizes) if not wrong & {"training", "training.length"} else []
    if tokenizer is None:
        return None, faults
    return GivenText(name=text.name, content=text.digest, sizes=sizes, tokenizer=tokenizer), faults


def across(p: Law, wrong: set[str]) -> list[Fault]:
    """Return the faults between the parameters that are not wrong already."""
    faults = []
    if not wrong & {"objective", "objective.prediction"} and not p.objective.prediction:
        rule = "students would learn nothing from any teacher"
        faults.append(fault("objective.prediction", 0, rule, "Give a weight above 0."))
    if not wrong & {"training", "training.learning_rate", "ladder", "ladder.teachers", "ladder.students"}:
        faults += _too_fast(p.training.learning_rate, p.ladder)
    if "dataset" not in wrong:
        faults += _no_control(p, wrong) if p.dataset == hmm.NAME else _not_drawn(p, wrong)
    return faults


def _not_drawn(p: Law, wrong: set[str]) -> list[Fault]:
    if wrong & {"data", "data.synthetic_bytes"} or p.data.synthetic_bytes is None:
        return []
    rule = f"only {hmm.NAME} is drawn in any amount, and dataset is {p.dataset}"
    return [fault("data.synthetic_bytes", p.data.synthetic_bytes, rule, f"Leave it out, or give dataset={hmm.NAME}.")]


def _no_control(p: Law, wrong: set[str]) -> list[Fault]:
    """Return why the source's own loss would not be what a grid comes down to."""
    faults = []
    if not wrong & {"data", "data.tokenizer"} and p.data.tokenizer != "bytes":
        rule = "hmm is read a byte a token: its own loss is known for these"
        faults.append(fault("data.tokenizer", p.data.tokenizer, rule, "Leave it out."))
    if wrong & {"data", "data.synthetic_bytes", *(name for name in wrong if name.startswith("ladder"))}:
        return faults
    seen = [tokens for _, tokens in teachers(p.ladder)] + [cell.tokens for cell in cells(p.ladder)]
    most, held = math.ceil(max(seen) / MILLION) * MILLION, p.data.synthetic_bytes or hmm.BYTES
    if held < max(seen):
        rule = f"a model is to see {max(seen):,} tokens, and of hmm none is seen twice"
        faults.append(fault("data.synthetic_bytes", held, rule, f"Give {most}."))
    return faults


def _too_fast(asked: float, ladder: Ladder) -> list[Fault]:
    narrow = min((sizes_for(size) for size in (*ladder.teachers, *ladder.students)), key=lambda shape: shape.hidden)
    rate = rate_of(asked, narrow.hidden)
    if rate <= 1.0:
        return []
    rule = f"a model of width {narrow.hidden} would learn at {rate:g}, and more than 1 cannot be asked for"
    return [fault("training.learning_rate", asked, rule, f"Give {asked / rate:.3g} or less.")]


def _too_short(p: Law, sizes: dict[str, int]) -> list[Fault]:
    """Return a fault for each part with less than two rows, where a token is a byte at least."""
    length = p.training.length
    return [
        fault("training.length", length, f"{part} has {size:,} bytes: not two rows", "Give fewer, or more text.")
        for part, size in sorted(sizes.items())
        if size < 2 * length
    ]


def _tokenizer(p: Law) -> tuple[str | None, list[Fault]]:
    """Return how the tokenizer is known, and its faults."""
    asked, vocabulary = p.data.tokenizer, p.data.vocabulary
    faults = []
    if vocabulary is not None and asked != "trained":
        rule = f"data.tokenizer is {asked}: none is trained"
        faults.append(fault("data.vocabulary", vocabulary, rule, "Leave it out, or give data.tokenizer=trained."))
    if asked in OWN:
        return asked, faults
    folder = Path(asked).expanduser()
    if not folder.is_dir():
        rule, remedy = "is no folder", "Give bytes, trained, or a folder with a tokenizer.json."
        return None, [*faults, fault("data.tokenizer", asked, rule, remedy)]
    from capgap_core import lm_tokens  # noqa: PLC0415 - seconds to import, and only a given tokenizer needs it

    try:
        lm_tokens.given(str(folder))
    except InputFaults as error:
        return None, faults + [replace(found, field="data.tokenizer") for found in error.faults]
    return tokenizer_of(folder), faults
