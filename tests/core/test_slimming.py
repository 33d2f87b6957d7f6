"""Units are reordered without moving the function, and taking a prefix is the same as silencing the rest."""

import copy
from types import ModuleType

import builders
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from capgap_core import slimming
from capgap_core.families import bert
from capgap_core.shapes import AXES, Kept, Shape

PLANS = [
    builders.kept([4, 4], [64, 64]),
    builders.kept([3, 1], [40, 8]),
    builders.kept([0, 2], [16, 64]),
    builders.kept([2, 1], [0, 24]),
    builders.kept([0, 1], [8, 0]),
]
FAMILY: ModuleType = bert


@pytest.fixture
def model() -> nn.Module:
    return builders.bert()


@pytest.fixture
def shape(model: nn.Module) -> Shape:
    return FAMILY.shape_of(model.config)


@pytest.fixture
def inputs(tmp_path) -> dict[str, Tensor]:
    return builders.examples(tmp_path).batch(range(8)).named(bert.INPUTS)


def logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def silenced(model: nn.Module, shape: Shape, keep: Kept) -> nn.Module:
    """A second source for both slices and gates: a copy in which nobody listens to the units that go."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for i, layer in enumerate(changed.bert.encoder.layer):
            layer.attention.output.dense.weight[:, keep["heads"][i] * shape.head_size :] = 0.0
            layer.output.dense.weight[:, keep["neurons"][i] :] = 0.0
    return changed


def masks(shape: Shape, keep: Kept) -> dict[tuple[int, str], Tensor]:
    return {
        (layer, axis): (torch.arange(shape.units(axis)) < keep[axis][layer]).float()
        for axis in AXES
        for layer in range(shape.layers)
    }


def orders(shape: Shape, seed: int) -> dict[tuple[int, str], np.ndarray]:
    draw = np.random.default_rng(seed)
    return {(i, axis): draw.permutation(shape.units(axis)) for axis in AXES for i in range(shape.layers)}


def test_reordering_keeps_the_function(model, shape, inputs):
    before, weights = logits(model, inputs), copy.deepcopy(model.state_dict())
    order = orders(shape, seed=3)
    slimming.reorder(FAMILY, model, shape, order)
    assert torch.allclose(logits(model, inputs), before, atol=1e-5)
    for projection in FAMILY.PROJECTIONS:
        name = projection.name.format(layer=1) + ".weight"
        assert not torch.equal(model.state_dict()[name], weights[name]), name


def test_reordering_puts_the_named_unit_first(model, shape):
    before = copy.deepcopy(model.state_dict())
    order = orders(shape, seed=5)
    slimming.reorder(FAMILY, model, shape, order)
    after, size = model.state_dict(), shape.head_size
    for layer in range(shape.layers):
        prefix = f"bert.encoder.layer.{layer}."
        for new, old in enumerate(order[layer, "heads"]):
            for name in ("query", "key", "value"):
                for kind in ("weight", "bias"):
                    key = f"{prefix}attention.self.{name}.{kind}"
                    assert torch.equal(after[key][new * size :][:size], before[key][old * size :][:size])
            key = prefix + "attention.output.dense.weight"
            assert torch.equal(after[key][:, new * size :][:, :size], before[key][:, old * size :][:, :size])
        for kind in ("weight", "bias"):
            key = f"{prefix}intermediate.dense.{kind}"
            assert torch.equal(after[key], before[key][order[layer, "neurons"]])
        key = prefix + "output.dense.weight"
        assert torch.equal(after[key], before[key][:, order[layer, "neurons"]])


@pytest.mark.parametrize("keep", PLANS, ids=str)
def test_a_slim_model_answers_as_the_full_one_with_the_rest_silent(model, shape, inputs, keep):
    small = slimming.slim(FAMILY, model, shape, keep).eval()
    expected = logits(silenced(model, shape, keep), inputs)
    assert torch.allclose(logits(small, inputs), expected, atol=1e-5)
    with slimming.gated(FAMILY, model, shape, masks(shape, keep)):
        assert torch.allclose(logits(model, inputs), expected, atol=1e-5)
    assert keep == shape.full() or not torch.allclose(expected, logits(model, inputs), atol=1e-3)


def test_gates_of_each_example_are_its_own_and_go_with_the_context(model, shape, inputs):
    before = logits(model, inputs)
    chosen = [PLANS[i % len(PLANS)] for i in range(8)]
    gates = {key: torch.stack([masks(shape, keep)[key] for keep in chosen]) for key in masks(shape, PLANS[0])}
    with slimming.gated(FAMILY, model, shape, gates):
        together = logits(model, inputs)
    for row, keep in enumerate(chosen):
        alone = logits(silenced(model, shape, keep), {name: x[row : row + 1] for name, x in inputs.items()})
        assert torch.allclose(together[row], alone[0], atol=1e-5)
    with pytest.raises(KeyError), slimming.gated(FAMILY, model, shape, gates):
        raise KeyError
    assert torch.equal(logits(model, inputs), before)


@pytest.mark.parametrize("keep", PLANS, ids=str)
def test_a_prefix_of_shared_weights_is_the_slim_model_and_moves_nothing_else(model, shape, inputs, keep):
    shared = dict(model.named_parameters())
    output = functional_call(model, slimming.prefix(FAMILY, shared, shape, keep), args=(), kwargs=inputs)
    small = slimming.slim(FAMILY, model, shape, keep).eval()
    expected = small(**inputs)
    assert torch.allclose(output.logits, expected.logits, atol=1e-5)

    output.logits.square().sum().backward()
    expected.logits.square().sum().backward()
    theirs = dict(small.named_parameters())
    for name, parameter in shared.items():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        held = torch.zeros_like(gradient)
        narrow = theirs[name].grad
        held[tuple(slice(0, n) for n in theirs[name].shape)] = 0.0 if narrow is None else narrow
        assert torch.allclose(gradient, held, atol=1e-4), name
        outside = torch.ones_like(gradient, dtype=torch.bool)
        outside[tuple(slice(0, n) for n in theirs[name].shape)] = False
        assert not gradient[outside].any(), name


def test_sizes_that_a_family_has_no_use_for_stand_in_no_record(shape):
    """A BERT's record, and so what every later stage is named by, is as it was before there were any."""
    assert list(shape.stated()) == ["layers", "heads", "head_size", "neurons", "hidden", "labels"]
    assert Shape(**shape.stated()) == shape


def test_slimming_copies(model, shape):
    small = slimming.slim(FAMILY, model, shape, PLANS[1])
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
