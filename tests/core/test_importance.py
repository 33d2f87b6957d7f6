"""How much a head or a neuron matters: gradients of gates, against a loop over examples and finite differences."""

import copy

import builders
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capgap_core import gates
from capgap_core.batches import Examples
from capgap_core.families import bert
from capgap_core.progress import Silent
from capgap_core.shapes import AXES
from capgap_core.stages import importance

Scores = dict[str, np.ndarray]


def scored(model: nn.Module, part: Examples, *, size: int, means: bool = False) -> Scores:
    shape = bert.shape_of(model.config)
    return importance.importance(bert, model, part, shape, batch_size=size, batch_means=means, progress=Silent())


def close(a: Scores, b: Scores, tolerance: float) -> bool:
    return all(np.linalg.norm(a[axis] - b[axis]) <= tolerance * np.linalg.norm(b[axis]) for axis in AXES)


def loss_of(model: nn.Module, part: Examples, places: list[int]) -> Tensor:
    """Return the mean loss of some examples, in float64."""
    batch = part.batch(places)
    logits = model(**batch.named(bert.INPUTS)).logits
    if batch.labels.is_floating_point():
        return F.mse_loss(logits[:, 0], batch.labels.double())
    return F.cross_entropy(logits, batch.labels)


def gradients(model: nn.Module, part: Examples, places: list[int]) -> Scores:
    """A second source: a gate g before y = W(g ∘ x) has dL/dg_u = Σ_i W_iu dL/dW_iu at g = 1; no gates are needed."""
    model.zero_grad()
    loss_of(model, part, places).backward()
    found: dict[str, list[Tensor]] = {axis: [] for axis in AXES}
    for layer in model.bert.encoder.layer:
        for axis, dense in (("heads", layer.attention.output.dense), ("neurons", layer.output.dense)):
            columns = (dense.weight * dense.weight.grad).sum(dim=0)
            found[axis].append(columns.reshape(4 if axis == "heads" else 64, -1).sum(dim=1).detach())
    return {axis: torch.stack(rows).numpy() for axis, rows in found.items()}


@pytest.fixture(params=["classification", "regression"])
def case(request, tmp_path) -> tuple[nn.Module, Examples]:
    regression = request.param == "regression"
    model = builders.bert(seed=4, labels=1 if regression else 3)
    return model, builders.examples(tmp_path, 20, seed=2, regression=regression)


def test_importance_does_not_depend_on_the_batch_size(case) -> None:
    model, part = case
    alone = scored(model, part, size=1)
    for size in (3, 8, 20, 64):
        assert close(scored(model, part, size=size), alone, 1e-5)
    assert all((alone[axis] > 0).all() for axis in AXES)


def test_importance_is_the_mean_over_examples_of_each_ones_gradient(case) -> None:
    model, part = case
    found = scored(copy.deepcopy(model), part, size=8)
    double = copy.deepcopy(model).double()
    each = [gradients(double, part, [place]) for place in range(len(part))]
    expected = {axis: np.mean([np.abs(g[axis]) for g in each], axis=0) for axis in AXES}
    assert close(found, expected, 1e-5)


def test_importance_is_what_finite_differences_give(case) -> None:
    """Turn one unit up and down a little, example by example."""
    model, part = case
    found = scored(copy.deepcopy(model), part, size=8)
    double, eps = copy.deepcopy(model).double().requires_grad_(False), 1e-4
    for axis, layer, unit in (("heads", 0, 2), ("heads", 1, 0), ("neurons", 0, 5), ("neurons", 1, 63)):
        block = double.bert.encoder.layer[layer]
        dense, width = (block.attention.output.dense, 8) if axis == "heads" else (block.output.dense, 1)
        columns = slice(unit * width, (unit + 1) * width)
        kept = dense.weight[:, columns].clone()
        slopes = []
        for place in range(len(part)):
            ends = []
            for sign in (1, -1):
                dense.weight[:, columns] = kept * (1 + sign * eps)
                ends.append(loss_of(double, part, [place]).item())
            slopes.append(abs(ends[0] - ends[1]) / (2 * eps))
        dense.weight[:, columns] = kept
        assert found[axis][layer, unit] == pytest.approx(np.mean(slopes), rel=1e-4)


def test_the_papers_way_is_the_gradient_of_batch_means(case) -> None:
    model, part = case
    double = copy.deepcopy(model).double()
    everything = list(range(len(part)))
    whole = gradients(double, part, everything)
    assert close(
        scored(copy.deepcopy(model), part, size=20, means=True), {k: np.abs(v) for k, v in whole.items()}, 1e-5
    )

    by_length = np.argsort(part.lengths, kind="stable").tolist()
    halves = [gradients(double, part, by_length[:10]), gradients(double, part, by_length[10:])]
    expected = {axis: np.mean([np.abs(half[axis]) for half in halves], axis=0) for axis in AXES}
    found = scored(copy.deepcopy(model), part, size=10, means=True)
    assert close(found, expected, 1e-5)
    assert not close(found, whole, 1e-2), "it depends on the batch size"


def test_ranks_follow_scores() -> None:
    scores = {"heads": np.array([[0.1, 0.4, 0.2]]), "neurons": np.array([[3.0, 1.0, 2.0, 4.0]])}
    order = {axis: np.argsort(-table, axis=1) for axis, table in scores.items()}
    rows = gates.rows(scores, order)
    assert [(r["axis"], r["unit"], r["rank"]) for r in rows] == [
        ("heads", 0, 2), ("heads", 1, 0), ("heads", 2, 1),
        ("neurons", 0, 1), ("neurons", 1, 3), ("neurons", 2, 2), ("neurons", 3, 0),
    ]  # fmt: skip
