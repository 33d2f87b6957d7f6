"""Which rows train, calibrate, select and are reported on."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from capgap_core import splits
from capgap_core.columns import Resolved
from capgap_core.corpus import Corpus, Part
from capgap_core.errors import InputFaults, fault
from capgap_core.recipes import Protocol

PARTS = ("train", "calibration", "selection", "evaluation")
SHARE = 10
"""A part cut from train is at most the tenth part of it."""
FEW = 5000
"""Different texts below which a cut is tried before a run begins; it takes a second."""


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """What decides which rows go where."""

    protocol: Protocol
    task: Resolved
    train_rows: int | None
    selection_rows: int
    calibration_rows: int
    seed: int


Cut = dict[str, tuple[Part, list[int]]]
"""Part → its texts and labels, and the row of each in the file it comes from."""


def cut_parts(corpus: Corpus, asked: Cutting) -> tuple[Cut, dict[str, Any]]:
    """Return the four parts, and what is known of how they were cut; none is empty."""
    whole = corpus.parts["train"]
    rows: Sequence[int] = range(len(whole.labels))
    facts: dict[str, Any] = {"notes": [], "cuts": {}}
    parts: Cut = {}
    if "eval" in corpus.parts:
        given = corpus.parts["eval"]
        parts["evaluation"] = (given, list(range(len(given.labels))))
    else:
        chosen, rows = _cut(whole, rows, _tenth(rows, len(rows)), asked, facts, "evaluation")
        parts["evaluation"] = (_take(whole, chosen), chosen)
    if asked.protocol == "paper":
        parts["selection"] = parts["calibration"] = parts["evaluation"]
        facts["notes"].append("protocol=paper: importance, choice and report all read the evaluation part")
    else:
        if "selection" in corpus.parts:
            given = corpus.parts["selection"]
            parts["selection"] = (given, list(range(len(given.labels))))
        else:
            chosen, rows = _cut(whole, rows, _tenth(rows, asked.selection_rows), asked, facts, "selection")
            parts["selection"] = (_take(whole, chosen), chosen)
        chosen, rows = _calibration(whole, rows, _tenth(rows, asked.calibration_rows), asked.seed + 2)
        parts["calibration"] = (_take(whole, chosen), chosen)
    if asked.train_rows is not None and asked.train_rows < len(rows):
        rows = sorted(random.Random(asked.seed).sample(list(rows), asked.train_rows))
    parts["train"] = (_take(whole, rows), list(rows))
    _refuse_empty(parts, len(whole.labels))
    return {name: parts[name] for name in PARTS}, facts


def check(corpus: Corpus, asked: Cutting) -> None:
    """Cut, to see whether it can be done, where the train part has so few different texts that it may not.

    Raises
    ------
    InputFaults
        Where a part would be empty.
    """
    if len(set(zip(*corpus.parts["train"].texts, strict=True))) < FEW:
        cut_parts(corpus, asked)


def _refuse_empty(parts: Cut, rows: int) -> None:
    empty = [name for name in PARTS if not parts[name][1]]
    if empty:
        rule = f"nothing is left for {', '.join(empty)}: rows whose texts overlap stay together, and no class may end"
        remedy = "Give more different rows, or the parts as files of their own (data.splits)."
        raise InputFaults([fault("dataset", f"{rows} rows in train", rule, remedy)])


def _tenth(rows: Sequence[int], most: int) -> int:
    return max(1, min(most, len(rows) // SHARE))


def _take(part: Part, rows: Sequence[int]) -> Part:
    texts = tuple([column[i] for i in rows] for column in part.texts)
    return Part(texts=texts, labels=[part.labels[i] for i in rows], files=part.files)


def _cut(
    whole: Part, rows: Sequence[int], size: int, asked: Cutting, facts: dict[str, Any], name: str
) -> tuple[list[int], list[int]]:
    """Cut a part by group out of some rows; note how."""
    here = _take(whole, rows)
    salt = PARTS.index(name)
    classes = [int(label) for label in here.labels] if asked.task == "classification" else None
    cut = splits.cut(here.texts, rows=size, seed=asked.seed + salt, labels=classes)
    facts["cuts"][name] = {
        "how": cut.how, "groups": cut.groups, "largest_group": cut.largest_group, "left_out": len(cut.dropped),
    }  # fmt: skip
    if cut.dropped:
        facts["notes"].append(f"{len(cut.dropped)} training rows overlap the {name} part and were left out")
    return [rows[i] for i in cut.part], [rows[i] for i in cut.train]


def _calibration(whole: Part, rows: Sequence[int], size: int, seed: int) -> tuple[list[int], list[int]]:
    """Draw calibration rows; equal texts stay on one side, since importance is not a score of anything."""
    keys: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        keys.setdefault(tuple(column[row] for column in whole.texts), []).append(row)
    order = list(keys)
    random.Random(seed).shuffle(order)
    chosen: set[int] = set()
    for key in order:
        if len(chosen) >= size:
            break
        chosen.update(keys[key])
    return sorted(chosen), [row for row in rows if row not in chosen]


def overlap(parts: Cut, protocol: Protocol) -> dict[str, int]:
    """Return how many rows of each held-out part overlap a row read before it: of train, or of another part."""
    apart = () if protocol == "paper" else ("calibration", "selection")  # one and the same part in the paper's way
    before = {"selection": apart[:1], "evaluation": apart}
    return {
        name: len(splits.overlapping(parts[name][0].texts, _together(parts, "train", *others)))
        for name, others in before.items()
    }


def _together(parts: Cut, *names: str) -> tuple[list[str], ...]:
    columns = zip(*(parts[name][0].texts for name in names), strict=True)
    return tuple([text for part in column for text in part] for column in columns)
