"""FLOPs against torch's own counter, and the steps that spend equal FLOPs."""

import builders
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from capgap_core import batches, budget, costs, flops, slimming
from capgap_core.families import bert
from capgap_core.recipes import TrainRecipe
from capgap_core.training import Training

PLANS = [builders.kept([4, 4], [64, 64]), builders.kept([3, 1], [40, 8]), builders.kept([0, 2], [16, 0])]


def counted(model: torch.nn.Module, length: int, *, backward: bool = False) -> int:
    model.config._attn_implementation = "eager"  # the counter does not know every fused attention
    ids = torch.ones(1, length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("keep", PLANS, ids=str)
@pytest.mark.parametrize("length", [5, 32])
def test_forward_flops_are_what_torch_counts(keep, length: int) -> None:
    model = builders.bert()
    shape = bert.shape_of(model.config)
    small = model if keep == shape.full() else slimming.slim(bert, model, shape, keep).eval()
    found = flops.forward_flops(bert, shape, keep, length)
    assert found == pytest.approx(counted(small, length), rel=0.01)


def test_a_step_of_training_costs_three_forward_passes_and_the_teachers() -> None:
    model = builders.bert()
    forward = flops.forward_flops(bert, bert.shape_of(model.config), bert.shape_of(model.config).full(), 16)
    assert counted(model, 16, backward=True) == pytest.approx((1 + flops.BACKWARD) * forward, rel=0.02)
    assert flops.step_flops(3.0, 10.0) == 19.0


def test_parameters_are_all_of_the_models_and_those_outside_the_embeddings() -> None:
    model = builders.bert()
    every, outside = flops.parameters(bert, model)
    assert every == model.num_parameters()
    assert every - outside == sum(p.numel() for p in model.bert.embeddings.parameters())
    assert flops.megabytes(model) == pytest.approx(4e-6 * every)


@pytest.mark.parametrize("total", [1.03e9, 3.301e10, 7.77e11])
def test_equal_flops_are_equal_within_half_a_step(total: float) -> None:
    per_example, batch = 2.5e6, 16
    steps = costs.steps_for(total, per_example=per_example, examples=batch)
    assert abs(steps * per_example * batch - total) <= per_example * batch / 2
    assert costs.steps_for(1.0, per_example=per_example, examples=batch) == 1


@pytest.mark.parametrize(
    ("rows", "asked", "batch", "examples"), [(64, 32, 32, 32), (65, 32, 32, 65 / 3), (20, 32, 20, 20)]
)
def test_a_step_has_the_examples_that_its_batches_have(rows: int, asked: int, batch: int, examples: float) -> None:
    made = budget.resolve(
        TrainRecipe(batch_size=asked), "student", lengths=np.full(rows, 5), hidden=384, scratch=False,
        protocol="capgap", dtype="float32", seed=1,
    )  # fmt: skip
    assert made.batch_size == batch
    assert costs.examples_of_a_step(made, rows) == pytest.approx(examples)
    order = batches.epoch_order(np.full(rows, 5), batch_size=made.batch_size, room=made.room, seed=1, epoch=0)
    assert np.mean([len(index) for index in order]) == pytest.approx(examples)


def recipe_of(steps: int, rows: int) -> Training:
    asked = TrainRecipe(batch_size=32)
    made = budget.resolve(
        asked,
        "student",
        lengths=np.full(rows, 5),
        hidden=384,
        scratch=False,
        protocol="capgap",
        dtype="float32",
        seed=1,
    )
    return made.model_copy(update={"steps": steps})


@pytest.mark.parametrize("rows", [64, 65])
def test_the_control_spends_what_the_way_round_costs_with_a_candidate_of_mean_cost(rows: int) -> None:
    here = costs.Costs(teacher=40.0, scales={0.5: 20.0, 0.3: 12.0, 0.2: 4.0, 0.1: 2.0}, rows=rows, sampled=None)
    training = {"sandwich": recipe_of(50, rows), "student": recipe_of(300, rows)}
    steps = here.steps_of_equal_flops(training["sandwich"], training["student"])
    spent = here.spent({**training, "direct_flops": recipe_of(steps, rows)}, 0.3)
    batch = rows / (2 if rows == 64 else 3)
    assert spent["sandwich"] == pytest.approx(50 * batch * (40 + 3 * (20 + 12 + 4 + 2)))
    assert spent["student"] == pytest.approx(spent["sandwich"] + 300 * batch * (3 * 2 + 12))
    assert abs(spent["direct_flops"] - spent["student"]) <= batch * (3 * 2 + 40) / 2
    assert here.spent(training, 0.5)["student"] > spent["student"]


def test_the_sandwich_costs_the_teacher_once_and_each_sub_network_thrice() -> None:
    candidates = [8.0, 5.0, 3.0, 1.0]
    assert costs.sandwich_flops(20.0, candidates, sampled=None) == 20 + 3 * (8 + 5 + 3 + 1)
    # One drawn of the two between: 4 on the average, beside the largest and the smallest.
    assert costs.sandwich_flops(20.0, candidates, sampled=1) == 20 + 3 * (8 + 4 + 1)
    assert costs.sandwich_flops(20.0, candidates, sampled=2) == costs.sandwich_flops(20.0, candidates, sampled=None)


@pytest.mark.parametrize(("rows", "batch", "rate", "steps"), [(3668, 16, 3e-5, 10 * 230), (14041, 32, 2e-5, 10 * 439)])
def test_the_papers_budget(rows: int, batch: int, rate: float, steps: int) -> None:
    """MRPC and CoNLL by the released scripts: ten epochs, batch 16 at 3e-5 and 32 at 2e-5."""
    made = budget.resolve(
        TrainRecipe(),
        "student",
        lengths=np.full(rows, 5),
        hidden=768,
        scratch=False,
        protocol="paper",
        dtype="float32",
        seed=1,
    )
    assert (made.batch_size, made.learning_rate, made.steps) == (batch, rate, steps)
    assert (made.weight_decay, made.warmup, made.clip) == (0.01, 0.1, 5.0)


def test_capgaps_budget_has_a_floor_and_a_cap_and_gives_way_to_what_is_asked() -> None:
    def steps(rows: int, **asked: float) -> int:
        recipe = TrainRecipe(**asked)
        made = budget.resolve(
            recipe,
            "student",
            lengths=np.full(rows, 5),
            hidden=384,
            scratch=False,
            protocol="capgap",
            dtype="float32",
            seed=1,
        )
        return made.steps

    student = budget.BUDGETS["student"]
    assert steps(100) == student.floor
    assert steps(10**6) == student.cap
    assert steps(6400) == 5 * 200
    assert steps(6400, epochs=0.5) == 100
    assert steps(6400, epochs=2, batch_size=64) == 200
    assert steps(16, epochs=0.001) == 1
