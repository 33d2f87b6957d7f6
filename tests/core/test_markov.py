"""The control of a law: its source's own loss is exact, its text the same everywhere, and no model can be below it."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from capgap_core import given_text, hmm, law_control, lm_losses, lm_model, lm_parts, preflight
from capgap_core.build import build
from capgap_core.documents import LmText
from capgap_core.errors import InputFaults
from capgap_core.ladder import sizes_for
from capgap_core.law import grid_of, resolved
from capgap_core.lm_recipes import ALONE
from capgap_core.lm_text import read_text
from capgap_core.loading import Cache
from capgap_core.machine import ready
from capgap_core.markov import Markov, stationary
from capgap_core.progress import Silent
from capgap_core.recipes import Execution
from capgap_core.recipes_law import Law, LmTraining
from capgap_core.records import Reference
from capgap_core.training import train

SHORT = 20_000
"""Bytes of a held-out part, where the forward algorithm should not take long."""


@pytest.fixture(scope="module")
def small() -> Markov:
    """A source of three states and two symbols."""
    draw = np.random.default_rng(0)
    move = draw.dirichlet(np.ones(3), 3)
    start = stationary(move, np.full(3, 1 / 3))
    return Markov(start=start, move=move, emit=draw.dirichlet(np.ones(2), 3), end=0.1)


def chance(source: Markov, symbols: tuple[int, ...]) -> float:
    """The probability of symbols, were there no ends, as the sum over every way through the states."""
    paths = itertools.product(range(len(source.start)), repeat=len(symbols))
    return sum(
        source.start[path[0]]
        * math.prod(source.move[a, b] for a, b in itertools.pairwise(path))
        * math.prod(source.emit[state, symbol] for state, symbol in zip(path, symbols, strict=True))
        for path in paths
    )


# What the source itself loses


def test_the_forward_algorithm_is_the_sum_over_all_paths(small: Markov) -> None:
    documents = [(0, 1, 1, 0, 2), (1, 2), (0, 0, 0, 1, 1, 0)]  # the last one's end is not seen
    starts = np.cumsum([0, *map(len, documents)])
    stream = np.concatenate([np.array(one) for one in documents])
    cost = small.surprisal(stream, starts[:-1], starts[1:])
    for begin, one in zip(starts, documents, strict=False):
        symbols = tuple(symbol for symbol in one if symbol != 2)
        whole = chance(small, symbols) / chance(small, symbols[:1]) * 0.9 ** (len(symbols) - 1)
        whole *= 0.1 if one[-1] == 2 else 1.0
        assert cost[begin] == 0.0, "the first token is predicted from nothing"
        assert cost[begin : begin + len(one)].sum() == pytest.approx(-math.log(whole), rel=1e-12)
    assert cost[1] == pytest.approx(-math.log(chance(small, (0, 1)) / chance(small, (0,)) * 0.9), rel=1e-12)


def test_a_stretch_from_the_middle_is_as_one_from_the_beginning(small: Markov) -> None:
    stretch = (1, 0, 0)
    after = sum(chance(small, (*before, *stretch)) for before in itertools.product(range(2), repeat=4))
    assert after == pytest.approx(chance(small, stretch), rel=1e-12)


def test_probabilities_of_all_that_may_follow_are_one(small: Markov) -> None:
    read = [0, 1, 1]
    streams = np.array([[*read, token] for token in range(3)]).ravel()
    begins = np.arange(3) * 4
    cost = small.surprisal(streams, begins, begins + 4)
    assert np.exp(-cost[3::4]).sum() == pytest.approx(1.0, rel=1e-12)


def test_a_chain_that_shows_its_states_has_the_known_rate() -> None:
    move = np.array([[0.9, 0.1, 0.0], [0.0, 0.5, 0.5], [0.25, 0.0, 0.75]])
    start = stationary(move, np.full(3, 1 / 3))
    assert start == pytest.approx(np.array([10, 2, 4]) / 16, rel=1e-12)
    chain = Markov(start=start, move=move, emit=np.eye(3), end=0.01)
    each = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.9, 0.5, 0.25)]
    assert chain.entropy_of_moves() == pytest.approx(float(start @ each), rel=1e-12)
    rate, error = chain.rate(100_000, 0)
    assert error < 0.01
    assert abs(rate - chain.entropy_of_moves()) < 3 * error
    documents = list(chain.draw(200_000, 1))
    counts = np.zeros((3, 3))
    for one in documents:
        np.add.at(counts, (one[:-1], one[1:]), 1)
    assert counts / counts.sum(axis=1, keepdims=True) == pytest.approx(move, abs=0.01)
    lengths = np.array([len(one) for one in documents])
    assert abs(lengths.mean() - 100) < 4 * lengths.std() / math.sqrt(len(lengths))


def test_no_distribution_is_made_up_where_none_stays() -> None:
    with pytest.raises(ValueError, match="no distribution stays"):
        stationary(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([1.0, 0.0]))


# The text


@pytest.fixture(scope="module")
def made() -> LmText:
    return hmm.read_hmm(400_000)


def test_it_is_the_same_everywhere(made: LmText) -> None:
    assert made.digest == "d51b3cc07708fd2d6f09c2755ae2d644e9f7b1383098eaa1c5d79320b68bfb99"
    assert hmm.source().start.sum() == pytest.approx(1.0, rel=1e-12)
    assert (hmm.source().emit > 0).sum(axis=1).max() == 2
    for part, least in (("train", 400_000), ("valid", hmm.HELD_OUT_BYTES), ("test", hmm.HELD_OUT_BYTES)):
        documents = made.parts[part]
        assert made.sizes[part] - len(documents[-1].text) < least <= made.sizes[part]


def test_no_long_document_stands_twice(made: LmText) -> None:
    long = [one.text for documents in made.parts.values() for one in documents if len(one.text) >= 32]
    assert len(set(long)) == len(long) > 3000


def test_what_is_known_is_of_the_targets_that_count(made: LmText) -> None:
    texts = [one.text for one in made.parts["test"][:60]]
    ids = np.concatenate([np.array([*text.encode(), hmm.SEPARATOR]) for text in texts])
    starts = np.cumsum([0, *(len(text) + 1 for text in texts)])
    whole = hmm.on_texts(texts)
    assert whole.tokens == len(ids) - len(texts)
    long = hmm.on_rows(ids, starts, len(ids))
    assert (long.nats, long.tokens) == (pytest.approx(whole.nats, rel=1e-12), whole.tokens)
    cut = hmm.on_rows(ids, starts, 32)
    assert cut.tokens == whole.tokens
    assert whole.nats < cut.nats < whole.nats + 0.1, "a row hides what stands before it"
    some = hmm.on_rows(ids, starts, 32, most=40)
    assert some.nats == pytest.approx(cut.nats, abs=4 * some.stderr)
    assert 32 * 39 < some.tokens + len(texts) <= 32 * 40 + len(texts)
    with pytest.raises(ValueError, match="the source does not have"):
        hmm.on_texts(["a text"])


# What may be asked for


def read(tmp_path: Path, dataset: str = "hmm", **asked: Any) -> LmText:
    return read_text(dataset, seed=0, cache=Cache(tmp_path), **asked)


def test_more_text_begins_alike_and_moves_the_digest(tmp_path: Path, made: LmText) -> None:
    more = read(tmp_path, synthetic_bytes=500_000)
    assert more.digest != made.digest
    for part, documents in made.parts.items():
        apart = {one.path: one for one in more.parts[part]}
        assert [apart[one.path] for one in documents] == documents
        assert len(apart) == len(documents) if part != "train" else len(apart) > len(documents)
        assert more.parts[part][: len(documents)] != documents, "an order is drawn by the seed"


@pytest.mark.parametrize(
    ("asked", "field", "value", "rule", "remedy"),
    [
        ({"dataset": "pysource", "data": {"synthetic_bytes": 10_000}}, "data.synthetic_bytes", "10000", "only hmm",
         "dataset=hmm"),
        ({"dataset": "/nowhere", "data": {"synthetic_bytes": 10_000}}, "data.synthetic_bytes", "10000", "only hmm",
         "Leave it out"),
        ({"data": {"synthetic_bytes": 9}}, "data.synthetic_bytes", "9", "greater than or equal to 10000", "hmm"),
        ({"data": {"text_columns": "text"}}, "data.text_columns", "text", "does not fit hmm", "Leave it out"),
        ({"data": {"splits": {"train": "a"}}}, "data.splits", "{'train': 'a'}", "does not fit hmm", "Leave it out"),
    ],
)  # fmt: skip
def test_an_option_that_is_wrong(
    asked: dict[str, Any], field: str, value: str, rule: str, remedy: str, tmp_path: Path
) -> None:
    with pytest.raises(InputFaults) as caught:
        preflight.check({"dataset": "hmm", **asked, "run": {"root": str(tmp_path / "art")}}, flow="law")
    found = [f for f in caught.value.faults if (f.field, f.value) == (field, value)]
    assert [rule in f.rule and remedy in f.remedy for f in found] == [True], caught.value.faults


@pytest.mark.parametrize(
    ("data", "rule", "remedy"),
    [
        ({"synthetic_bytes": 100_000}, "a model is to see 3,", "Give 4000000."),
        ({"tokenizer": "trained"}, "a byte a token", "Leave it out."),
    ],
)
def test_what_would_be_no_control(data: dict[str, Any], rule: str, remedy: str) -> None:
    (one,) = given_text.across(Law.model_validate({"dataset": "hmm", "data": data}), set())
    assert one.field == f"data.{next(iter(data))}"
    assert rule in one.rule
    assert one.remedy == remedy
    assert given_text.across(Law(dataset="hmm"), set()) == []


def test_what_is_asked_for_reaches_the_stage(tmp_path: Path) -> None:
    asked = {"dataset": "hmm", "data": {"synthetic_bytes": 40_000}, "ladder": {"teachers": [3e3], "students": [3e3]}}
    checked = preflight.check({**asked, "run": {"root": str(tmp_path / "art")}}, flow="law")
    recipe = grid_of(checked).text
    assert recipe.source.synthetic_bytes == 40_000
    assert recipe.content == law_control.text_recipe(40_000, Execution(root=str(tmp_path))).content
    assert checked.text.name == "hmm"


def test_a_name_that_is_a_folder_too_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hmm").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputFaults, match=r"Write \./hmm"):
        read(tmp_path)


# Models on it


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """The stage ``text`` of a little of it."""
    root = tmp_path_factory.mktemp("control")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(hmm, "HELD_OUT_BYTES", SHORT)
        execution = Execution(root=str(root), threads=1)
        return build("text", law_control.text_recipe(120_000, execution), {}, execution=execution, progress=Silent())


def lost(text: Reference, part: str, *, steps: int, rows: int) -> tuple[float, float, hmm.Known]:
    """Train a small model on the first rows of a part.

    Return what it loses on the first rows of the test part, its error, and what the source loses there.
    """
    own = LmTraining(length=64, batch_size=8)
    seen = lm_parts.rows(text, part, own.length, first=rows)
    held = lm_parts.rows(text, "test", own.length, first=rows)
    sizes = sizes_for(2.5e4)
    model = lm_model.scratch(sizes, vocabulary=257, context=own.length, end=hmm.SEPARATOR, seed=1)
    cell = law_control.Cell(student=sizes, tokens=steps * 8 * own.length, teacher=None, seed=1)
    training = resolved(own, cell, len(seen))
    with ready(Execution(threads=1), seed=1) as device:
        model.train()
        steps_of = lm_losses.loss_of(model, None, ALONE, dtype="float32")
        for _ in train(model, seen, training, steps_of, device=device, stage="pretrain"):
            pass
        found = lm_losses.held_out(model, held, np.zeros(10_000, dtype=np.int64), None, device=device)[lm_losses.ALL]
    lists = pq.read_table(text.table("test"))["input_ids"].combine_chunks()
    last = rows * own.length + 1
    starts = lists.offsets.to_numpy()
    known = hmm.on_rows(lists.values.to_numpy()[:last], np.append(starts[starts < last], last), own.length)
    assert known.tokens == found.tokens, "both are told of the same targets"
    return found.nats, found.stderr, known


def test_no_model_is_below_the_source_on_fresh_text(text: Reference) -> None:
    assert set(text.summary["source_nats"]) == {"valid", "test"}
    nats, error, known = lost(text, "train", steps=100, rows=200)
    assert nats > known.nats - 2 * error
    assert nats < math.log(64) - 0.5, "it has learned"


def test_a_leak_would_be_seen(text: Reference) -> None:
    nats, error, known = lost(text, "test", steps=120, rows=8)
    assert nats < known.nats - 2 * error
