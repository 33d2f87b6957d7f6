"""Cuts: nothing stands on both sides, held against a comparison of every row with every other."""

import json
import lzma
import os
import random
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from capgap_core.splits import cut, normalised, overlapping

SHARED = os.environ.get("CAPGAP_SHARED")
WORDS = st.sampled_from(["the", "film", "was", "good", "bad", "a", "Fine", "."])
TEXT = st.lists(WORDS, min_size=1, max_size=8).map(" ".join)
SINGLES = st.lists(TEXT, min_size=4, max_size=30).map(lambda texts: [texts])
PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=4, max_size=9).map(
    lambda rows: [list(c) for c in zip(*rows, strict=True)]
)


def words_of(text: str) -> str:
    """Return the words as a run with a blank on each side, by other means than the module's."""
    kept = "".join(c if c.isalnum() else " " for c in text.lower() if c != "'")
    return f" {' '.join(kept.split()) or text} "


def share(a: str, b: str) -> bool:
    """Return whether two texts are equal, or the longer holds the shorter and that one is long enough."""
    x, y = words_of(a), words_of(b)
    if x == y:
        return True
    holds_b = y in x and len(y.split()) >= 2 and (len(y.split()) >= 4 or len(b.split()) >= 4)
    holds_a = x in y and len(x.split()) >= 2 and (len(x.split()) >= 4 or len(a.split()) >= 4)
    return holds_a or holds_b


def compared(columns_a: Sequence[Sequence[str]], columns_b: Sequence[Sequence[str]]) -> list[int]:
    rows_a, rows_b = list(zip(*columns_a, strict=True)), list(zip(*columns_b, strict=True))
    both = enumerate(any(share(s, t) for row_b in rows_b for s in row for t in row_b) for row in rows_a)
    return [row for row, shared in both if shared]


def rows_of(columns: Sequence[Sequence[str]], rows: Sequence[int]) -> list[list[str]]:
    return [[column[row] for row in rows] for column in columns]


@given(st.one_of(SINGLES, PAIRS), st.integers(0, 5), st.data())
@settings(deadline=None, max_examples=150)
def test_no_training_row_overlaps_a_row_of_the_part(texts: list[list[str]], seed: int, data: st.DataObject) -> None:
    count = len(texts[0])
    rows = data.draw(st.integers(1, count - 1))
    made = cut(texts, rows=rows, seed=seed)
    assert sorted(made.train + made.part + made.dropped) == list(range(count))
    assert len(made.part) <= rows
    assert made.how == "overlap-left-out" or not made.dropped
    train, part = rows_of(texts, made.train), rows_of(texts, made.part)
    assert not compared(part, train)
    assert not overlapping(part, train)


@given(st.one_of(SINGLES, PAIRS), st.data())
@settings(deadline=None, max_examples=100)
def test_overlaps_are_those_of_a_comparison_of_all_rows(texts: list[list[str]], data: st.DataObject) -> None:
    at = data.draw(st.integers(1, len(texts[0]) - 1))
    a, b = [c[:at] for c in texts], [c[at:] for c in texts]
    assert overlapping(a, b) == compared(a, b)


@given(SINGLES, st.integers(0, 3), st.randoms())
@settings(deadline=None, max_examples=50)
def test_which_texts_are_drawn_does_not_depend_on_the_order_of_rows(
    texts: list[list[str]], seed: int, rng: random.Random
) -> None:
    shuffled = list(range(len(texts[0])))
    rng.shuffle(shuffled)
    again = rows_of(texts, shuffled)
    rows = max(1, len(texts[0]) // 3)
    one, two = cut(texts, rows=rows, seed=seed), cut(again, rows=rows, seed=seed)
    assert sorted(normalised(t) for t in rows_of(texts, one.part)[0]) == sorted(
        normalised(t) for t in rows_of(again, two.part)[0]
    )


def different(count: int, seed: int = 0, shortest: int = 3) -> list[str]:
    """Return texts that have nothing in common."""
    rng = random.Random(seed)
    return [" ".join(f"w{rng.randrange(10**9)}" for _ in range(rng.randrange(shortest, 12))) for _ in range(count)]


def test_planted_duplicates_stay_on_one_side() -> None:
    texts = different(300)
    for row in range(0, 300, 10):
        texts[row + 1] = texts[row].upper().replace(" ", "  ") + " !"
        texts[row + 2] = f"so, {texts[row]}; really"
    for seed in range(5):
        part = set(cut([texts], rows=60, seed=seed).part)
        assert len(part) == 60
        for row in range(0, 300, 10):
            same = (row, row + 1, row + 2) if len(texts[row].split()) >= 4 else (row, row + 1)
            assert len({other in part for other in same}) == 1


def test_a_planted_shared_sentence_of_a_pair_stays_on_one_side() -> None:
    first, second = different(200, 1), different(200, 2)
    for row in range(0, 200, 20):
        second[row + 1] = first[row]
        first[row + 2] = first[row + 1].title()
    for seed in range(5):
        part = set(cut([first, second], rows=50, seed=seed).part)
        for row in range(0, 200, 20):
            assert len({other in part for other in (row, row + 1, row + 2)}) == 1


def test_where_one_group_is_giant_overlapping_rows_are_left_out_and_counted() -> None:
    texts = different(400, shortest=4)
    chain = [f"{a} {b}" for a, b in pairwise(texts)]
    every = texts + chain
    made = cut([every], rows=60, seed=0)
    assert made.how == "overlap-left-out"
    assert made.largest_group > len(every) / 10
    assert 40 <= len(made.part) <= 60
    assert 0 < len(made.dropped) < 150
    assert not compared(rows_of([every], made.part), rows_of([every], made.train))


def test_at_least_half_stays_in_train_even_where_everything_hangs_together() -> None:
    first = different(100)
    made = cut([first, ["What is this whole text about?"] * 100], rows=20, seed=0)
    assert len(made.train) >= 50


def test_a_category_as_second_text_joins_nothing() -> None:
    made = cut([different(100), ["food", "service"] * 50], rows=20, seed=0)
    assert (len(made.part), made.groups) == (20, 100)


def test_no_class_is_taken_out_of_train() -> None:
    labels = [2] + [0, 1] * 20
    for seed in range(10):
        made = cut([different(41)], rows=20, seed=seed, labels=labels)
        assert {labels[row] for row in made.train} == {0, 1, 2}


def test_the_seed_decides() -> None:
    texts = [different(100)]
    assert cut(texts, rows=20, seed=1) == cut(texts, rows=20, seed=1)
    assert cut(texts, rows=20, seed=1).part != cut(texts, rows=20, seed=2).part


@pytest.mark.parametrize("rows", [0, 3, 4])
def test_a_cut_takes_some_and_leaves_some(rows: int) -> None:
    with pytest.raises(ValueError, match="leave at least 1"):
        cut([["a", "b", "c"]], rows=rows, seed=0)


@pytest.mark.skipif(SHARED is None, reason="CAPGAP_SHARED is not set")
def test_sst2_selection_shares_nothing_with_train() -> None:
    path = Path(SHARED or "") / "data/glue/sst-2/train.jsonl.xz"
    with lzma.open(path, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["sentence"] for line in file]
    made = cut([texts], rows=2000, seed=0)
    assert (len(made.part), made.dropped) == (2000, [])
    # The words as they are written, punctuation too: a second opinion on what a word is.
    spaced = [re.sub(r"\s+", " ", f" {text.strip()} ") for text in texts]
    train = "|".join(spaced[row] for row in made.train)
    assert not [row for row in made.part if len(spaced[row].split()) >= 4 and spaced[row] in train]
    lengths = [len(spaced[row].split()) for row in made.part]
    assert abs(sum(lengths) / 2000 - 9.4) < 1
    assert sum(n > 15 for n in lengths) > 200
