"""What each layer keeps: the global sort, its rounding, and the parameters that really go."""

import builders
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from capgap_core import plan, slimming
from capgap_core.families import bert
from capgap_core.shapes import AXES, Shape

SHAPE = Shape(layers=2, heads=4, head_size=8, neurons=64, hidden=32, labels=3)


def shape_of(layers: int, heads: int, neurons: int) -> Shape:
    return Shape(layers=layers, heads=heads, head_size=4, neurons=neurons, hidden=4 * heads, labels=2)


def drawn(shape: Shape, seed: int) -> dict:
    draw = np.random.default_rng(seed)
    return {axis: draw.gamma(0.7, size=(shape.layers, shape.units(axis))) for axis in AXES}


def sorted_by_hand(scale: float, table: np.ndarray) -> list[int]:
    """A second source: drop the lowest of all units one at a time, out of plain lists."""
    units = []
    for layer, row in enumerate(table.tolist()):
        length = sum(x * x for x in row) ** 0.5
        units += [(x / length if length else 0.0, layer) for x in row]
    units.sort(key=lambda pair: pair[0])
    left = units[min(round((1.0 - scale) * len(units)), len(units) - 1) :]
    return [sum(layer == i for _, layer in left) for i in range(len(table))]


shapes = st.builds(shape_of, st.integers(1, 6), st.integers(1, 16), st.sampled_from([8, 16, 64, 200]))
scales = st.floats(0.01, 0.99)


@settings(deadline=None, max_examples=60)
@given(shapes, scales, st.integers(0, 10**6))
def test_the_plan_is_the_global_sort_rounded_to_multiples_of_eight(shape: Shape, scale: float, seed: int) -> None:
    scores = drawn(shape, seed)
    kept = plan.kept_at(scale, scores, shape)
    assert kept["heads"] == sorted_by_hand(scale, scores["heads"])
    exact = sorted_by_hand(scale, scores["neurons"])
    rounded = [min((2 * count + 8) // 16 * 8, shape.neurons) for count in exact]
    assert kept["neurons"] == rounded or (
        sum(rounded) == 0 and sorted(kept["neurons"])[-1] == sum(kept["neurons"]) == 8
    )


@settings(deadline=None, max_examples=60)
@given(shapes, scales, scales, st.integers(0, 10**6))
def test_plans_stay_within_the_model_and_grow_with_the_scale(shape: Shape, a: float, b: float, seed: int) -> None:
    low, high = min(a, b), max(a, b)
    scores = drawn(shape, seed)
    small, large = plan.kept_at(low, scores, shape), plan.kept_at(high, scores, shape)
    for kept in (small, large):
        for axis in AXES:
            assert len(kept[axis]) == shape.layers
            assert all(0 <= count <= shape.units(axis) for count in kept[axis])
        assert sum(kept["heads"]) >= 1
        assert sum(kept["neurons"]) >= 8
        assert all(count % 8 == 0 for count in kept["neurons"])
    # Heads are not rounded by layer: a smaller model's are always among a larger one's.
    assert all(s <= g for s, g in zip(small["heads"], large["heads"], strict=True))


@settings(deadline=None, max_examples=60)
@given(shapes, scales, st.integers(0, 10**6))
def test_the_achieved_scale_is_the_one_asked_for_up_to_rounding(shape: Shape, scale: float, seed: int) -> None:
    kept = plan.kept_at(scale, drawn(shape, seed), shape)
    one_head = 4 * shape.hidden * shape.head_size + 3 * shape.head_size
    one_neuron = 2 * shape.hidden + 1
    # Half a head (or the one that must stay), and four neurons a layer (or the eight that must stay).
    allowed = one_head + one_neuron * (4 * shape.layers + 8)
    whole = shape.layers * (shape.heads * one_head + shape.neurons * one_neuron)
    assert abs(plan.achieved_scale(bert, shape, kept) - scale) <= allowed / whole
    assert plan.achieved_scale(bert, shape, shape.full()) == 1.0


@pytest.mark.parametrize("scale", [0.9, 0.5, 0.3, 0.15, 0.1, 0.001])
def test_a_slim_model_is_smaller_by_exactly_what_the_plan_says(scale: float) -> None:
    model = builders.bert()
    kept = plan.kept_at(scale, drawn(SHAPE, 1), SHAPE)
    small = slimming.slim(bert, model, SHAPE, kept)
    gone = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in small.parameters())
    assert gone == plan.prunable(bert, SHAPE, SHAPE.full()) - plan.prunable(bert, SHAPE, kept)
    assert gone > 0


def test_a_layer_of_zeros_is_the_first_to_go_and_equal_scores_keep_their_order() -> None:
    scores = {"heads": np.array([[0.0] * 4, [1.0] * 4]), "neurons": np.array([[1.0] * 64, [0.0] * 64])}
    assert plan.kept_at(0.5, scores, SHAPE) == {"heads": [0, 4], "neurons": [64, 0]}
    assert plan.ranking(np.array([[1.0, 3.0, 1.0, 3.0]])).tolist() == [[1, 3, 0, 2]]
    normal = plan.normalise(np.array([[3.0, 4.0], [0.0, 0.0]]))
    assert np.allclose(normal, [[0.6, 0.8], [0.0, 0.0]])


def test_layers_are_compared_by_their_share_and_not_by_their_size() -> None:
    """Without the normalisation every unit of the layer with small gradients would go."""
    loud = np.linspace(1.0, 2.0, 64)
    scores = {"heads": np.array([[4.0, 3.0, 2.0, 1.0]] * 2), "neurons": np.stack([loud, loud / 1000])}
    assert plan.kept_at(0.5, scores, SHAPE)["neurons"] == [32, 32]


def test_at_the_smallest_scale_one_head_and_one_multiple_of_neurons_stay() -> None:
    kept = plan.kept_at(1e-6, drawn(SHAPE, 2), SHAPE)
    assert sum(kept["heads"]) == 1
    assert sum(kept["neurons"]) == 8


def test_plans_and_scores_come_back_from_their_rows() -> None:
    scores = drawn(SHAPE, 3)
    plans = {scale: plan.kept_at(scale, scores, SHAPE) for scale in (0.7, 0.3, 0.1)}
    rows = plan.rows_of(plans, SHAPE)
    assert plan.from_rows(reversed(rows)) == plans
    assert [row["scale"] for row in rows] == sorted(row["scale"] for row in rows)
    assert {row["of"] for row in rows if row["axis"] == "heads"} == {4}
    table = [
        {"axis": axis, "layer": i, "unit": u, "score": float(scores[axis][i, u])}
        for axis in AXES
        for i in range(SHAPE.layers)
        for u in range(SHAPE.units(axis))
    ]
    again = plan.scores_from_rows(table[::-1], SHAPE)
    assert all(np.array_equal(again[axis], scores[axis]) for axis in AXES)
