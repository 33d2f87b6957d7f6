"""Best teachers of single students, and how they grow with the student."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from scipy import stats

from capgap_core.laws import line, optimum, rivals, simulate
from capgap_core.laws.grid import Alone, Cells, NotEstimable
from capgap_core.laws.optimum import Noise, Optimum


def curve(losses: list[list[float]], *, student: float = 1.0, teachers: list[float] | None = None) -> Cells:
    """The cells of one student: a list of losses over seeds for each teacher."""
    table = np.array(losses)
    sizes = np.array(teachers or [2.0**i for i in range(len(table))])
    return Cells(
        student=np.full(table.size, student), tokens=np.full(table.size, 10.0),
        teacher=np.repeat(sizes, table.shape[1]),
        teacher_loss=np.ones(table.size), loss=table.ravel(), seed=np.tile(np.arange(table.shape[1]), len(table)),
    )  # fmt: skip


def joined(*parts: Cells) -> Cells:
    return Cells(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def test_the_vertex_of_a_parabola_is_found_and_sizes_may_have_any_unit() -> None:
    sizes = np.array([1.0, 3.0, 8.0, 20.0, 70.0])
    loss = 2.0 + 0.1 * (np.log(sizes) - np.log(10.0)) ** 2
    noise = Noise(variance=1e-8, freedom=20)
    for unit in (1.0, 1e6):
        (found,) = optimum.optima(curve([[x] for x in loss], teachers=(sizes * unit).tolist()), noise)
        assert found.teacher == pytest.approx(10.0 * unit)
        assert found.loss == pytest.approx(2.0)
        low, high = np.log(found.interval().low / unit), np.log(found.interval().high / unit)
        assert high - np.log(10.0) == pytest.approx(np.log(10.0) - low)


def test_the_error_of_the_vertex_is_that_of_many_draws() -> None:
    sizes = np.array([1.0, 3.0, 8.0, 20.0, 70.0])
    exact = 2.0 + 0.1 * (np.log(sizes) - np.log(10.0)) ** 2
    draw, sd = np.random.default_rng(0), 0.003
    found = [
        optimum.optima(
            curve([[x] for x in exact + sd * draw.standard_normal(5)], teachers=sizes.tolist()),
            Noise(variance=sd**2, freedom=100),
        )[0]
        for _ in range(400)
    ]
    assert {one.found for one in found} == {"bracketed"}
    spread = np.std([np.log(one.teacher) for one in found])
    assert np.median([one.error for one in found]) == pytest.approx(spread, rel=0.25)


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([[1.0, 1.01], [2.0, 2.0], [3.0, 3.01], [4.0, 4.0]], "the smallest teacher is best"),
        ([[4.0, 4.01], [3.0, 3.0], [2.0, 2.01], [1.0, 1.0]], "the largest teacher is best"),
        ([[4.0, 4.01], [1.0, 1.0], [1.01, 1.0], [4.0, 4.0]], "too close to call"),
        ([[1.0, 1.2], [1.1, 1.0], [1.0, 1.1], [1.2, 1.0]], "too close to call"),
        ([[4.0, 4.01], [1.0, 1.0], [4.0, 4.0]], "too few teachers"),
        ([[4.0], [3.0], [1.0], [4.0]], "one seed"),
        ([[4.0, 4.01], [3.0, 3.0], [1.0, 1.01], [4.0, 4.0]], "bracketed"),
    ],
)  # fmt: skip
def test_what_a_curve_says(losses: list[list[float]], said: str) -> None:
    (found,) = optimum.optima(curve(losses))
    assert found.found == said
    if said != "bracketed":
        assert np.isnan(found.teacher)
        assert (found.interval().low, found.interval().high) == (0.0, np.inf)


def test_all_losses_equal_name_no_teacher() -> None:
    (found,) = optimum.optima(curve([[1.0, 1.0]] * 5))
    assert found.found == "too close to call"


def test_what_a_seed_does_to_all_teachers_is_no_noise() -> None:
    draw = np.random.default_rng(0)
    table = draw.normal(3.0, 0.1, (6, 3))
    moved = table + np.array([[0.0, 5.0, -7.0]])
    assert optimum.noise_of(curve(moved.tolist())).variance == pytest.approx(
        optimum.noise_of(curve(table.tolist())).variance
    )
    assert optimum.noise_of(curve(table.tolist())).freedom == 10
    assert optimum.noise_of(curve([[1.0]] * 4)) == Noise(variance=0.0, freedom=0)


def made(x: np.ndarray, y: np.ndarray, error: float) -> list[Optimum]:
    return [
        Optimum(student=float(s), tokens=1.0, found="bracketed", teacher=float(t), error=error, freedom=10, loss=1.0)
        for s, t in zip(np.exp(x), np.exp(y), strict=True)
    ]


def test_equal_errors_smaller_than_the_scatter_leave_ordinary_least_squares() -> None:
    draw = np.random.default_rng(1)
    x = np.linspace(0, 3, 8)
    y = 0.9 + 1.1 * x + 0.2 * draw.standard_normal(8)
    found = line.fit_power(made(x, y, 0.01))
    assert not isinstance(found, NotEstimable)
    ols = stats.linregress(x, y)
    assert found.exponent().value == pytest.approx(ols.slope)
    half = stats.t.ppf(0.95, 6) * ols.stderr
    assert found.exponent().high - found.exponent().value == pytest.approx(half, rel=1e-3)
    alone = stats.t.interval(0.90, 7, np.mean(y - x), stats.sem(y - x))
    assert (found.constant_ratio().low, found.constant_ratio().high) == pytest.approx(tuple(np.exp(alone)), rel=1e-3)


def test_a_new_student_has_a_wider_interval_than_the_line() -> None:
    draw = np.random.default_rng(2)
    x = np.linspace(0, 3, 8)
    found = line.fit_power(made(x, x + 1 + 0.3 * draw.standard_normal(8), 0.01))
    assert not isinstance(found, NotEstimable)
    one, ratio = found.teacher(float(np.exp(1.5))), found.constant_ratio()
    assert one.high / one.low > ratio.high / ratio.low


def test_four_optima_are_no_law() -> None:
    x = np.linspace(0, 3, 5)
    four = [*made(x, x, 0.01)[:4], replace(made(x, x, 0.01)[4], found="too close to call")]
    found = line.fit_power(four)
    assert isinstance(found, NotEstimable)
    assert "4 of 5" in found.why
    assert isinstance(line.fit_power(made(np.array([0.0, 0, 0, 1, 1]), x, 0.01)), NotEstimable)


def test_token_budgets_have_laws_of_their_own() -> None:
    x = np.log([1.0, 2.0, 4.0, 8.0, 16.0])
    few, many = (
        [replace(one, tokens=budget * one.student) for one in made(x, x + np.log(ratio), 0.01)]
        for budget, ratio in ((20.0, 2.5), (100.0, 8.0))
    )
    assert isinstance(line.fit_power([*few, *many]), NotEstimable), "two optima of a student are no two points"
    ratios = {}
    for budget, optima in line.by_budget([*few, *many]).items():
        power = line.fit_power(optima)
        assert not isinstance(power, NotEstimable)
        ratios[budget] = power.constant_ratio().value
    assert ratios == pytest.approx({20.0: 2.5, 100.0: 8.0})


def test_a_missing_cell_makes_no_optimum() -> None:
    """The seed that a teacher lacks is worse for all: its other losses alone would look better."""
    draw = np.random.default_rng(0)
    whole = curve((3.0 + np.array([0.0, 0.05]) + 0.001 * draw.standard_normal((5, 2))).tolist())
    for cells in (whole, whole.where(~((whole.teacher == 4.0) & (whole.seed == 1)))):
        (found,) = optimum.optima(cells, Noise(variance=1e-6, freedom=20))
        assert found.found != "bracketed"
    none = whole.where((whole.teacher == 1.0) == (whole.seed == 0))
    assert optimum.optima(none, Noise(variance=1e-6, freedom=20))[0].found == "no seed of all teachers"


def test_the_published_line_is_found_in_its_own_points() -> None:
    sizes = np.geomspace(50e6, 1e9, 8)
    found = line.straight(sizes, line.PUBLISHED_SLOPE * sizes + line.PUBLISHED_INTERCEPT)
    assert found.coefficients == pytest.approx([line.PUBLISHED_INTERCEPT, line.PUBLISHED_SLOPE])


def test_a_random_ratio_looks_like_a_law_to_r_squared() -> None:
    draw = np.random.default_rng(0)
    sizes = np.geomspace(50.0, 1600.0, 5)
    squared = [stats.linregress(sizes, sizes * draw.uniform(1.5, 4, 5)).rvalue ** 2 for _ in range(2000)]
    assert np.median(squared) == pytest.approx(0.98, abs=0.02)


@pytest.mark.parametrize("source", ["power", "straight"])
def test_intervals_hold_what_grids_were_made_from(source: simulate.Source) -> None:
    held: dict[str, list[bool]] = {}
    for grid in range(150):
        for one in simulate.SOURCES[source](grid):
            held.setdefault(one.quantity, []).append(one.covered)
    for quantity, found in held.items():
        assert stats.binomtest(sum(found), len(found), 0.9).pvalue > 1e-3, (quantity, np.mean(found))


def test_rivals_are_judged_on_students_they_have_not_seen() -> None:
    cells = simulate.power_grid(simulate.CURVES, np.random.default_rng(0), between=0.0)
    alone = Alone(parameters=np.ones(1), tokens=np.ones(1), loss=np.ones(1), teaches=np.ones(1, dtype=bool))
    found = list(rivals.left_out(cells, alone, teacher_tokens=20.0))
    assert {one.student for one in found} == set(cells.student)
    by_law = {name: [one for one in found if one.law == name] for name in rivals.NAMES}
    assert all(one.why_not for one in by_law["apple"]), "one budget is too few"
    for name in ("power", "constant ratio", "published ratio"):
        assert max(one.regret for one in by_law[name]) < 0.02
    largest = by_law["largest teacher"]
    assert all(one.regret > 5 * one.regret_error > 0 for one in largest)
    assert min(one.loss_error for one in largest) > max(one.loss_error for one in by_law["power"])


def test_one_size_of_student_and_one_seed_are_told() -> None:
    cells = simulate.power_grid(simulate.CURVES, np.random.default_rng(0))
    alone = Alone(parameters=np.ones(1), tokens=np.ones(1), loss=np.ones(1), teaches=np.ones(1, dtype=bool))
    alike = cells.where(cells.student == cells.student[0])
    assert {one.why_not for one in rivals.left_out(alike, alone, teacher_tokens=20.0)} == {
        "there is no student of another size"
    }
    once = list(rivals.left_out(cells.where(cells.seed == 0), alone, teacher_tokens=20.0))
    assert all(np.isnan(one.regret_error) for one in once if one.why_not is None)


def test_what_was_named_before_is_judged_as_it_was_named() -> None:
    cells = simulate.power_grid(simulate.CURVES, np.random.default_rng(0), between=0.0)
    alone = Alone(parameters=np.ones(1), tokens=np.ones(1), loss=np.ones(1), teaches=np.ones(1, dtype=bool))
    size = float(cells.student.min())
    seen, unseen = cells.where(cells.student != size), cells.where(cells.student == size)
    told = list(rivals.named(seen, alone, [(size, float(unseen.tokens[0]))], teacher_tokens=20.0))
    noise = optimum.noise_of(seen)
    found = list(rivals.came_of(told, unseen, noise))
    assert [one.law for one in found] == list(rivals.NAMES)
    first = list(islice(rivals.left_out(cells, alone, teacher_tokens=20.0), len(found)))
    assert list(map(repr, first)) == list(map(repr, found)), "the same laws, fitted to the same cells"
    changed = [replace(one, named=0.01, predicted=one.predicted + 1.0) for one in told]
    power = next(one for one in rivals.came_of(changed, unseen, noise) if one.law == "power")
    assert power.taken == unseen.teacher.min(), "what was said counts, not what a law would say now"
    assert power.loss_error == pytest.approx(1.0, abs=0.05)
    assert not list(rivals.came_of(told, seen, noise)), "nobody spoke of these students"
    fewer = unseen.where(unseen.teacher != unseen.teacher[0])
    assert [one.law for one in rivals.came_of(told, fewer, noise)] == ["apple"], "a teacher that was named is lacking"


def test_apple_is_judged_where_there_are_budgets_enough() -> None:
    cells, alone = simulate.apple_grid(simulate.SMALL, np.random.default_rng(0))
    size = float(np.unique(cells.student)[2])
    seen, unseen = cells.where(cells.student != size), cells.where(cells.student == size)
    students = [(student, tokens) for student, tokens, _ in unseen.curves()]
    told = list(rivals.named(seen, alone, students, teacher_tokens=20.0))
    found = [one for one in rivals.came_of(told, unseen, optimum.noise_of(seen)) if one.law == "apple"]
    assert len(found) == 2
    assert all(one.why_not is None and one.loss_error < 0.05 for one in found)


def test_a_best_teacher_beyond_the_measured_ones_is_taken_for_the_nearest_of_them() -> None:
    cells, alone = simulate.apple_grid(simulate.SMALL, np.random.default_rng(0))
    small = cells.where(cells.teacher <= np.unique(cells.teacher)[3])
    largest, size = float(small.teacher.max()), float(small.student.max())
    seen, unseen = small.where(small.student != size), small.where(small.student == size)
    tokens = float(unseen.tokens.max())
    told = list(rivals.named(seen, alone, [(size, tokens)], teacher_tokens=20.0))
    named = [one for one in told if one.law == "apple"]
    assert [one.taken for one in named] == [False, False, False, True]
    assert named[0].named > largest
    (judged,) = (one for one in rivals.came_of(told, unseen, optimum.noise_of(seen)) if one.law == "apple")
    assert np.isfinite(judged.named)
    assert judged.taken == largest
