"""The ladder: shapes for sizes, and the cells of a grid."""

import math

import pytest
from hypothesis import example, given, settings, strategies as st
from pydantic import ValidationError

from capgap_core import ladder, lm_model
from capgap_core.ladder import Ladder, sizes_for


@settings(deadline=None)
@example(5e5)
@example(6e3)
@given(st.floats(2e3, 3e8))
def test_a_shape_has_about_its_size(parameters: float) -> None:
    found = sizes_for(parameters)
    assert abs(math.log(found.parameters() / parameters)) < math.log(1.5)
    assert found.hidden % found.heads == 0
    assert found.hidden / (ladder.ASPECT * found.layers) <= 2.0
    assert found.hidden >= 0.5 * ladder.ASPECT * found.layers or found.hidden == ladder.HEAD, (
        "the narrowest may be deep"
    )


def test_larger_sizes_are_larger_models() -> None:
    sizes = [sizes_for(3e4 * 2**i) for i in range(12)]
    assert [s.parameters() for s in sizes] == sorted(s.parameters() for s in sizes)
    assert len(set(sizes)) == 12


def test_parameters_are_those_of_the_model() -> None:
    shape = sizes_for(3e4)
    model = lm_model.scratch(shape, vocabulary=257, context=16, end=256, seed=0)
    assert lm_model.parameters(model)[1] == shape.parameters()


def test_a_grid_has_each_student_alone_and_of_each_teacher() -> None:
    asked = Ladder(teachers=(4e5, 1e5), students=(3e4, 6e4, 1e5), budgets=(50.0, 100.0), seeds=(1, 2))
    found = ladder.cells(asked)
    assert len(found) == 3 * 2 * 2 * (1 + 2)
    assert len(set(cell.role for cell in found)) == len(found)
    for cell in found:
        assert cell.tokens in {round(budget * cell.student.parameters()) for budget in asked.budgets}
    (small, few), (large, many) = ladder.teachers(asked)
    assert small.parameters() < large.parameters()
    assert (few, many) == (10 * small.parameters(), 10 * large.parameters())
    assert [cell.seed for cell in found] == sorted(cell.seed for cell in found)


def test_a_size_more_adds_only_its_own_cells() -> None:
    asked = Ladder(teachers=(1e5, 4e5), students=(3e4,))
    more = asked.model_copy(update={"students": (3e4, 6e4)})
    before, after = (set(ladder.cells(one)) for one in (asked, more))
    assert before < after
    assert {cell.student for cell in after - before} == {sizes_for(6e4)}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"students": (3e4, 3e4)}, "30000.0 stands there more than once"),
        ({"students": (9e4, 3e4, 3.01e4)}, "30000 and 30100 come to the same shape, of 27,792 parameters"),
        ({"teachers": ()}, "there is no teacher"), ({"students": (10.0,)}, "no shape has about 10"),
        ({"budgets": (float("nan"),)}, "finite"), ({"budgets": (-5.0,)}, "greater than 0"),
        ({"teachers": (0.0,)}, "greater than 0"), ({"seeds": (1, 1)}, "1 stands there more than once"),
    ],
)  # fmt: skip
def test_a_ladder_that_is_none_is_refused(asked: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Ladder.model_validate({"teachers": (1e5, 4e5), "students": (3e4,), **asked})


def test_teachers_that_are_limited_by_their_data_are_told() -> None:
    assert ladder.data_limited(9.8, 1.0)
    assert not ladder.data_limited(9.97, 1.0), "ten for each parameter, but for the first tokens of documents"
    assert ladder.data_limited(20.0, 4.1)
    assert not ladder.data_limited(10.0, 4.0)


def test_wider_models_learn_at_a_lower_rate() -> None:
    assert [ladder.rate(1e-2, width) for width in (32, 64, 128)] == [2e-2, 1e-2, 5e-3]
