"""Holds the choice of the assistant against the published table and against trying every λ."""

from fractions import Fraction
from pathlib import Path

import builders
import pytest
from hypothesis import given, strategies as st

from capgap_core import tables
from capgap_core.errors import InputFaults, StageFailed
from capgap_core.identity import canonical
from capgap_core.tradeoff import Choice, Option, choose

SCALES = (0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
# Read off the paper's figure (MiniDisc, BERT-base, 10% student): assistant's metric, and m + 0.2(1 - s).
MRPC = (0.915, 0.913, 0.9125, 0.899, 0.889, 0.8705, 0.867)
MRPC_T = (0.975, 0.993, 1.0125, 1.019, 1.029, 1.0305)
QQP = (0.8875, 0.8855, 0.8825, 0.881, 0.877, 0.8695, 0.8435)
QQP_T = (0.9475, 0.9655, 0.9825, 1.001, 1.017, 1.0295)


def options(
    metrics: tuple[float, ...], scales: tuple[float, ...] = SCALES, stderr: float | None = None
) -> list[Option]:
    return [Option(scale=s, achieved=s, metric=m, stderr=stderr) for s, m in zip(scales, metrics, strict=True)]


def chosen(choice: Choice) -> float:
    (row,) = [r for r in choice.rows if r.chosen]
    assert row.scale == choice.scale
    return row.scale


@pytest.mark.parametrize(("metrics", "published"), [(MRPC, MRPC_T), (QQP, QQP_T)])
def test_the_published_table(metrics: tuple[float, ...], published: tuple[float, ...]) -> None:
    choice = choose(options(metrics), target=0.1, lam=0.2)
    assert [row.tradeoff for row in choice.rows[:-1]] == pytest.approx(published)
    assert chosen(choice) == 0.2
    # t(0.1) is 1.047 on MRPC and 1.0235 on QQP: only the first is above every assistant.
    assert choice.rows[-1].target
    assert not choice.rows[-1].chosen
    assert choice.rows[-1].tradeoff == pytest.approx(metrics[-1] + 0.18)
    assert choice.assistant_preferred is (metrics is QQP)


def test_the_margin_on_mrpc_is_within_noise() -> None:
    choice = choose(options(MRPC, stderr=0.012), target=0.1, lam=0.2)
    assert choice.margin == pytest.approx(0.0015)
    assert choice.within_error is True
    assert choose(options(MRPC, stderr=0.001), target=0.1, lam=0.2).within_error is False
    assert choose(options(MRPC), target=0.1, lam=0.2).within_error is None


def test_intervals_by_hand() -> None:
    # t = 0.9 + 0.5λ and 0.8 + 0.8λ cross at 1/3; the target's 0.7 + 0.9λ passes the second at 1.
    choice = choose(options((0.9, 0.8, 0.7), (0.5, 0.2, 0.1)), target=0.1, lam=0.2)
    large, small, target = choice.rows
    assert (large.wins_from, large.wins_to) == (0.0, pytest.approx(1 / 3))
    assert (small.wins_from, small.wins_to) == (pytest.approx(1 / 3), None)
    assert (target.wins_from, target.wins_to) == (None, None)
    assert choice.target_from == pytest.approx(1.0)
    assert (large.margin, small.margin) == (pytest.approx(1.0 - 0.96), None)


def test_a_candidate_below_the_envelope_never_wins() -> None:
    choice = choose(options((0.9, 0.7, 0.8, 0.7), (0.5, 0.4, 0.3, 0.1)), target=0.1, lam=0.2)
    assert (choice.rows[1].wins_from, choice.rows[1].wins_to) == (None, None)


def test_three_lines_through_a_point_leave_the_middle_one_nothing() -> None:
    # 0.9 + 0.4λ, 0.8 + 0.6λ and 0.7 + 0.8λ all are 1.1 at λ = 0.5, where the largest is taken.
    grid = options((0.9, 0.8, 0.7, 0.0), (0.6, 0.4, 0.2, 0.1))
    choice = choose(grid, target=0.1, lam=0.5)
    assert choice.scale == 0.6
    assert [(row.wins_from, row.wins_to) for row in choice.rows[:3]] == [(0.0, 0.5), (None, None), (0.5, None)]


def test_equal_metrics_leave_the_larger_only_lambda_zero() -> None:
    choice = choose(options((0.9, 0.9, 0.0), (0.5, 0.3, 0.1)), target=0.1, lam=0.0)
    assert choice.scale == 0.5
    assert [(row.wins_from, row.wins_to) for row in choice.rows[:2]] == [(0.0, 0.0), (0.0, None)]


def test_equal_tradeoffs_go_to_the_larger_model_as_written() -> None:
    # 0.9 + 0.2 * 0.5 = 0.92 + 0.2 * 0.4, which binary floats would not call equal in every order.
    tied = options((0.92, 0.9, 0.3), (0.6, 0.5, 0.1))
    assert choose(tied, target=0.1, lam=0.2).scale == 0.6
    assert choose(tied[::-1], target=0.1, lam=0.2).scale == 0.6
    assert choose(tied, target=0.1, lam=0.2).margin == 0.0
    assert choose(tied, target=0.1, lam=0.2001).scale == 0.5


def test_scales_are_compared_as_numbers() -> None:
    """As text, "0.05" < "0.1" holds too, but "5" > "40" also does, and 0.10 is not 0.1."""
    choice = choose(options((0.9, 0.99, 0.8, 1.0), (0.15, 0.05, 0.1, 1.0)), target=0.10, lam=0.0)
    assert [row.scale for row in choice.rows] == [0.15, 0.1]
    assert choice.scale == 0.15
    assert choice.margin is None
    assert choice.within_error is None


def test_the_achieved_scale_counts_not_the_nominal_one() -> None:
    given = [
        Option(scale=0.5, achieved=0.5, metric=0.8),
        Option(scale=0.4, achieved=0.49, metric=0.79),
        Option(scale=0.1, achieved=0.1, metric=0.5),
    ]
    choice = choose(given, target=0.1, lam=0.2)
    assert [row.tradeoff for row in choice.rows[:2]] == pytest.approx([0.9, 0.892])
    assert choice.scale == 0.5


def test_normalised_divides_by_what_the_teacher_gains() -> None:
    # (0.9 - 0.5)/0.4 = 1, (0.7 - 0.5)/0.4 = 0.5.
    choice = choose(
        options((0.9, 0.7, 0.5), (0.5, 0.2, 0.1), stderr=0.04),
        target=0.1,
        lam=1.0,
        metric_scale="normalised",
        teacher=0.9,
        chance=0.5,
    )
    assert [row.tradeoff for row in choice.rows] == pytest.approx([1.5, 1.3, 0.9])
    assert [row.metric_value for row in choice.rows] == [0.9, 0.7, 0.5]
    # The standard error is divided too: 0.2 raw margin 0.2, 0.04/0.4 = 0.1.
    assert choice.within_error is False
    wide = options((0.9, 0.7, 0.5), (0.5, 0.2, 0.1), stderr=0.1)
    assert choose(wide, target=0.1, lam=1.0, metric_scale="normalised", teacher=0.9, chance=0.5).within_error is True


def test_normalising_a_teacher_at_chance_is_refused_with_a_remedy() -> None:
    with pytest.raises(StageFailed, match="metric_scale=raw"):
        choose(options(MRPC), target=0.1, lam=0.2, metric_scale="normalised", teacher=0.5, chance=0.5)


def test_no_larger_candidate_is_an_input_fault() -> None:
    with pytest.raises(InputFaults, match=r"sandwich\.grid"):
        choose(options((0.9, 0.8), (0.1, 0.05)), target=0.1, lam=0.2)


@pytest.mark.parametrize("lam", [-0.1, float("nan"), float("inf")])
def test_a_lambda_that_is_no_weight_is_refused(lam: float) -> None:
    with pytest.raises(ValueError, match="lam"):
        choose(options(MRPC), target=0.1, lam=lam)


def test_the_target_has_to_be_measured() -> None:
    with pytest.raises(ValueError, match="exactly once"):
        choose(options((0.9,), (0.5,)), target=0.1, lam=0.2)


# Few distinct values on purpose: ties, equal sizes and three lines through a point must come up.
hundredths = st.integers(1, 99).map(lambda i: i / 100)
coarse = st.integers(0, 10).map(lambda i: i / 10)
grids = st.lists(
    st.tuples(hundredths, st.sampled_from([0.2, 0.3, 0.5, 0.6, 0.9]), coarse),
    min_size=1,
    max_size=6,
    unique_by=lambda o: o[0],
)


def by_hand(grid: list[tuple[float, float, float]], lam: Fraction) -> float:
    """Return the nominal scale that the definition picks, in exact arithmetic, ties to the larger."""

    def key(o: tuple[float, float, float]) -> tuple[Fraction, float, float]:
        return Fraction(str(o[2])) + lam * (1 - Fraction(str(o[1]))), o[1], o[0]

    return max(grid, key=key)[0]


@given(grid=grids, lam=st.integers(0, 300).map(lambda i: i / 100))
def test_the_choice_and_its_margin_are_the_definition(grid: list[tuple[float, float, float]], lam: float) -> None:
    given_options = [Option(scale=s, achieved=a, metric=m) for s, a, m in [*grid, (0.001, 0.001, 0.0)]]
    choice = choose(given_options, target=0.001, lam=lam)
    assert choice.scale == by_hand(grid, Fraction(str(lam)))
    ts = sorted((m + lam * (1 - a) for _, a, m in grid), reverse=True)
    if len(ts) > 1:
        assert choice.margin == pytest.approx(ts[0] - ts[1], abs=1e-12)


@given(grid=grids)
def test_the_intervals_are_the_envelope(grid: list[tuple[float, float, float]]) -> None:
    """Inside its interval, and nowhere else, each candidate is what the definition picks."""
    given_options = [Option(scale=s, achieved=a, metric=m) for s, a, m in [*grid, (0.001, 0.001, 0.0)]]
    rows = choose(given_options, target=0.001, lam=0.0).rows[:-1]
    ends = sorted({e for r in rows for e in (r.wins_from, r.wins_to) if e is not None} | {0.0})
    between = [(a + b) / 2 for a, b in zip(ends, [*ends[1:], ends[-1] + 2], strict=True)]
    for lam in between:
        inside = [
            r.scale
            for r in rows
            if r.wins_from is not None and r.wins_from <= lam and (r.wins_to is None or lam <= r.wins_to)
        ]
        assert inside == [by_hand(grid, Fraction(lam))]
    # The samples above follow the ends that were found; these do not.
    for lam in (Fraction(i, 7) for i in range(80)):
        winner = next(r for r in rows if r.scale == by_hand(grid, lam))
        assert winner.wins_from is not None
        assert winner.wins_from - 1e-12 <= lam
        assert winner.wins_to is None or lam <= winner.wins_to + 1e-12


def test_an_assistant_that_is_asked_for_leaves_the_table_as_it_is(tmp_path: Path) -> None:
    scored = builders.scored(tmp_path)
    asked = builders.TRADEOFF.model_copy(update={"assistant": 0.5})
    chosen, taken = (builders.make_tradeoff(tmp_path, scored, recipe) for recipe in (builders.TRADEOFF, asked))
    assert chosen.identity != taken.identity
    assert "assistant" not in canonical(builders.TRADEOFF), "what nobody asked for moves no identity"
    assert tables.read(taken.table("tradeoff")) == tables.read(chosen.table("tradeoff"))
    assert (chosen.summary["chosen_scale"], "best_scale" in chosen.summary) == (0.3, False)
    assert taken.summary == {
        **chosen.summary, "chosen_scale": 0.5, "best_scale": 0.3, "margin": None, "within_error": None,
    }  # fmt: skip
