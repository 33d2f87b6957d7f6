"""Width and depth of decoders: what stays at a scale, and that the smaller model is the masked one."""

import copy
from typing import Any

import builders
import numpy as np
import pytest
import torch
from decoder_models import answers, batch_of, columns_of, ends_of, made, masks, silenced
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from capgap_core import axes, flops, models, plan, slimming, tables
from capgap_core.families import bert, capgap_llama, gpt2, llama
from capgap_core.progress import Silent
from capgap_core.shapes import EVERY, Kept, Shape
from capgap_core.stages import importance

TABLE = {10: 5, 20: 11, 30: 16, 40: 23, 50: 29, 60: 37, 70: 45, 80: 55, 85: 61, 90: 68, 95: 78, 98: 86, 99: 90}
"""p → p', both in per cent, as MiniMoE's code rounds them."""
SHAPE = Shape(layers=6, heads=16, head_size=64, neurons=2816, hidden=1024, labels=100)


class Over(nn.Module):
    """A norm over the first dimensions of a state, by the names of its formula; the others become 0."""

    def __init__(self, norm: Any, width: int) -> None:
        super().__init__()
        self.norm, self.width = norm, width

    def forward(self, x: Tensor) -> Tensor:
        weight, here = self.norm.weight[: self.width], x[..., : self.width]
        if isinstance(self.norm, nn.LayerNorm):
            found = nn.functional.layer_norm(here, (self.width,), weight, self.norm.bias[: self.width], self.norm.eps)
        else:
            found = nn.functional.rms_norm(here, (self.width,), weight, self.norm.variance_epsilon)
        return nn.functional.pad(found, (0, x.shape[-1] - self.width))


def masked(model: PreTrainedModel, shape: Shape, keep: Kept) -> PreTrainedModel:
    """A second source: nothing is written to what goes of the width, norms see the rest, and layers are left out."""
    changed, width = silenced(model, shape, keep), keep.get("hidden", [shape.hidden])[0]
    with torch.no_grad():
        for module in changed.modules():
            if isinstance(module, nn.Embedding):
                module.weight[:, width:] = 0.0
        for _, _, module in ends_of(changed):
            columns_of(module)[width:] = 0.0
            if module.bias is not None:
                module.bias[width:] = 0.0
    (layers,) = [module for module in changed.modules() if isinstance(module, nn.ModuleList)]
    for name, module in list(changed.named_modules()):
        # Those of queries and keys (Qwen3) are of heads.
        if type(module).__name__.endswith("Norm") and not name.endswith(("q_norm", "k_norm")):
            changed.set_submodule(name, Over(module, width))
    for layer in reversed(range(shape.layers)):
        if not keep.get("layers", [1] * shape.layers)[layer]:
            del layers[layer]
    changed.config.num_hidden_layers, changed.config.use_cache = len(layers), False
    return changed


KEPT: list[dict[str, list[int]]] = [
    {**builders.kept([1, 2, 1], [24, 64, 8]), "hidden": [24]},
    {**builders.kept([1, 0, 2], [64, 8, 40]), "layers": [1, 0, 1]},
    {**builders.kept([2, 1, 0], [8, 0, 24]), "hidden": [8], "layers": [0, 1, 1]},
]


CHOSEN = (
    "llama", "llama with biases", "llama, wide heads", "tied", "mistral", "qwen2, four", "qwen3", "gpt_neox",
    "gpt_neox, one after the other", "gpt_neox, half turned", "gpt2",
)  # fmt: skip


@pytest.mark.parametrize("case", CHOSEN)
@pytest.mark.parametrize("language", [False, True])
@pytest.mark.parametrize("keep", KEPT, ids=["width", "layers", "both"])
def test_a_slim_model_is_the_masked_one_whose_norms_are_over_what_stays(case: str, language: bool, keep: Any) -> None:
    model, shape, family = made(case, language=language, layers=3)
    inputs, small = batch_of(), slimming.slim(family, model, shape, keep).eval()
    expected = answers(masked(model, shape, keep), inputs)
    assert torch.allclose(answers(small, inputs), expected, atol=1e-5)
    with slimming.gated(family, model, shape, masks(shape, keep)):
        assert torch.allclose(answers(model, inputs), expected, atol=1e-5)
    assert not torch.allclose(expected, answers(model, inputs), atol=1e-3)
    cut, left = shape.cut(keep)
    assert family.shape_of(small.config) == cut
    assert models.kept_by(family, small) == left
    held = dict(small.named_parameters())
    names = [(p, p.name.format(layer=i)) for p in family.PROJECTIONS for i in range(cut.layers)]
    sizes = [held[f"{name}.weight"].numel() for _, name in names]
    sizes += [held[f"{name}.bias"].numel() for p, name in names if p.side == "out" and f"{name}.bias" in held]
    assert sum(sizes) == plan.prunable(family, shape, keep)
    small.config._attn_implementation = "eager"
    ids = torch.ones(1, 9, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        small(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    assert flops.forward_flops(family, shape, keep, 9) == counter.get_total_flops()


@pytest.mark.parametrize("case", CHOSEN)
@pytest.mark.parametrize("language", [False, True])
def test_the_width_is_reordered_without_moving_the_function(case: str, language: bool) -> None:
    model, shape, family = made(case, language=language)
    before, weights = answers(model, batch_of()), copy.deepcopy(model.state_dict())
    draw = np.random.default_rng(1)
    scores: Any = {axis: draw.random((shape.sets(axis), shape.units(axis))) for axis in ("heads", "neurons", "hidden")}
    order = axes.order(scores)
    slimming.reorder(family, model, shape, order)
    assert torch.allclose(answers(model, batch_of()), before, atol=1e-5)
    name = f"{family.EMBEDDINGS[0]}weight"
    units = torch.as_tensor(order[0, "hidden"])
    assert torch.equal(model.state_dict()[name], weights[name][:, units]), "once, though tied"
    small = slimming.slim(family, model, shape, {**shape.full(), "hidden": [24]})
    assert torch.equal(small.state_dict()[name], weights[name][:, units[:24]])


@pytest.mark.parametrize("case", ["llama", "qwen3", "gpt_neox", "gpt2"])
def test_importance_of_width_and_layers_is_the_mean_slope_of_what_they_add(case: str, tmp_path: Any) -> None:
    """A second source: what writes to a dimension, or all that a layer writes, a little louder and quieter."""
    model, shape, family = made(case, layers=3)
    part, eps = builders.examples(tmp_path, 8), 2e-3
    found = importance.importance(
        family, copy.deepcopy(model), part, shape, batch_size=3, batch_means=False, progress=Silent(), axes=EVERY
    )
    model.requires_grad_(False)
    assert {axis: table.shape for axis, table in found.items()} == {
        "heads": (3, shape.heads), "neurons": (3, 64), "hidden": (1, 32), "layers": (3, 1)
    }  # fmt: skip

    def loss_of(place: int) -> float:
        batch = part.batch([place])
        return nn.functional.cross_entropy(model(**batch.named(family.INPUTS)).logits, batch.labels).item()

    def slope(louder: list[Tensor]) -> float:
        kept, sides = [tensor.clone() for tensor in louder], []
        for place in range(len(part)):
            ends = []
            for sign in (1, -1):
                for tensor, own in zip(louder, kept, strict=True):
                    tensor.copy_(own * (1 + sign * eps))
                ends.append(loss_of(place))
            sides.append(abs(ends[0] - ends[1]) / (2 * eps))
        for tensor, own in zip(louder, kept, strict=True):
            tensor.copy_(own)
        return float(np.mean(sides))

    tables_of_words = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    for unit in (0, 17, 31):
        writers = [columns_of(module)[unit] for _, _, module in ends_of(model)]
        biases = [module.bias[unit] for _, _, module in ends_of(model) if module.bias is not None]
        words = [table[:, unit] for table in tables_of_words]
        assert found["hidden"][0, unit] == pytest.approx(slope([*writers, *biases, *words]), rel=5e-3, abs=1e-4)
    for layer in range(3):
        ends = [module for _, i, module in ends_of(model) if i == layer]
        written = [module.weight for module in ends] + [module.bias for module in ends if module.bias is not None]
        assert found["layers"][layer, 0] == pytest.approx(slope(written), rel=5e-3, abs=1e-4)


@pytest.mark.parametrize("case", ["llama", "qwen2, four", "gpt_neox", "gpt2"])
def test_what_is_kept_is_what_matters_most(case: str, tmp_path: Any) -> None:
    """Scored, reordered, planned and slimmed: the same as silencing the units of the lowest scores where they were."""
    model, shape, family = made(case, layers=4)
    part = builders.examples(tmp_path, 10)
    whole = copy.deepcopy(model)
    scores = importance.importance(
        family, model, part, shape, batch_size=8, batch_means=False, progress=Silent(), axes=EVERY
    )
    slimming.reorder(family, model, shape, axes.order(scores))
    layers = axes.layers_by_score(scores["layers"], 3)
    keep = axes.kept_at(0.3, scores, shape, layers=layers)
    small = slimming.slim(family, model, shape, keep).eval()
    gates: Any = {(i, "layers"): torch.tensor([float(here)]) for i, here in enumerate(keep["layers"])}
    for axis in ("heads", "neurons", "hidden"):
        for i in range(shape.sets(axis)):
            best = np.argsort(-scores[axis][i], kind="stable")[: keep[axis][i]]
            gates[i, axis] = torch.zeros(shape.units(axis)).index_fill(0, torch.as_tensor(best), 1.0)
    with slimming.gated(family, whole, shape, gates):
        assert torch.allclose(answers(small, batch_of()), answers(whole, batch_of()), atol=1e-5)
    assert small.num_parameters() < 0.6 * whole.num_parameters()


@pytest.mark.parametrize(("p", "each"), TABLE.items())
def test_the_share_of_each_axis_is_the_published_one(p: int, each: int) -> None:
    assert 100 - round(100 * axes.share(1 - p / 100)) == each
    assert axes.share(1 - p / 100) ** 2 == pytest.approx(1 - p / 100)


def test_where_layers_go_less_of_the_width_does() -> None:
    assert axes.share(0.42, depth=0.75) ** 2 * 0.75 == pytest.approx(0.42)
    assert axes.share(1.0) == 1.0
    with pytest.raises(ValueError, match="at most"):
        axes.share(0.6, depth=0.5)


def drawn(shape: Shape, seed: int) -> Any:
    draw = np.random.default_rng(seed)
    return {axis: draw.gamma(0.7, size=(shape.sets(axis), shape.units(axis))) for axis in EVERY}


@settings(deadline=None, max_examples=40)
@given(st.floats(0.02, 0.98), st.integers(1, 6), st.integers(0, 10**6))
def test_a_plan_keeps_the_scale_of_the_prunable_parameters(scale: float, depth: int, seed: int) -> None:
    layers = axes.layers_by_score(drawn(SHAPE, seed)["layers"], depth)
    scale = scale * depth / SHAPE.layers
    for chosen in (layers, None):
        kept = axes.kept_at(scale, drawn(SHAPE, seed), SHAPE, layers=chosen)
        assert plan.achieved_scale(llama, SHAPE, kept) == pytest.approx(scale, rel=0.06, abs=0.004)
        (width,) = kept["hidden"]
        assert width % 8 == 0
        assert 8 <= width <= SHAPE.hidden
    assert "layers" not in kept
    stays = axes.kept_at(scale, drawn(SHAPE, seed), SHAPE, layers=layers)
    assert [i for i, here in enumerate(stays["layers"]) if here] == layers
    assert all(not stays[a][i] for a in ("heads", "neurons") for i in range(SHAPE.layers) if i not in layers)


def test_heads_and_neurons_of_the_layers_that_stay_are_compared_with_one_another_alone() -> None:
    scores = drawn(SHAPE, 3)
    kept = axes.kept_at(0.2, scores, SHAPE, layers=[1, 2, 4])
    each = axes.share(0.2, depth=0.5)
    for axis in ("heads", "neurons"):
        assert [kept[axis][i] for i in (1, 2, 4)] == plan.counts(axis, scores[axis][[1, 2, 4]], each)
    assert axes.kept_at(0.25, scores, SHAPE)["heads"] == plan.kept_at(0.5, scores, SHAPE)["heads"]


def test_layers_go_by_their_place_or_by_their_score() -> None:
    assert axes.layers_by_place("ends", 24, of=32) == list(range(4, 28))
    assert axes.layers_by_place("ends", 2, of=5) == [1, 2]
    assert axes.layers_by_place("first", 2, of=5) == [0, 1]
    assert axes.layers_by_place("last", 2, of=5) == [3, 4]
    assert axes.layers_by_place("spread", 3, of=5) == [0, 2, 4]
    assert axes.layers_by_score(np.array([[1.0], [3.0], [1.0], [2.0]]), 3) == [0, 1, 3]
    for count in range(1, 13):
        for place in ("first", "last", "ends", "spread"):
            found = axes.layers_by_place(place, count, of=12)
            assert len(found) == count
            assert found == sorted(set(found))
            assert set(found) <= set(range(12))


def test_minima_has_its_size() -> None:
    """LLaMA2-7B with 49,216 pieces, of which MiniMA-3B keeps three quarters of every axis: 3.02 billion parameters."""
    with torch.device("meta"):
        config = LlamaConfig(vocab_size=49216, intermediate_size=11008)
        model = LlamaForCausalLM(config)
        config.architectures = ["LlamaForCausalLM"]
        shape = llama.shape_of(config)
        stay = axes.layers_by_place("ends", 24, of=32)
        here = [int(i in stay) for i in range(32)]
        keep = {"heads": [24] * 32, "neurons": [8192] * 32, "hidden": [3072], "layers": here}
        small = slimming.slim(llama, model, shape, keep)
    assert small.num_parameters() == 3_020_442_624
    assert type(small) is capgap_llama.CapgapLlamaForCausalLM
    assert plan.achieved_scale(llama, shape, keep) == pytest.approx(0.42, abs=0.003)


def test_a_plan_with_width_and_layers_comes_back_from_its_table(tmp_path: Any) -> None:
    shape, scores = SHAPE, drawn(SHAPE, 5)
    plans = {scale: axes.kept_at(scale, scores, shape, layers=[0, 3, 5]) for scale in (0.4, 0.2)}
    rows = plan.rows_of(plans, shape)
    tables.write(tmp_path / "plan.parquet", "plan", rows)
    again = plan.from_rows(tables.read(tmp_path / "plan.parquet"))
    assert again == plans
    assert {row["of"] for row in rows if row["axis"] == "hidden"} == {1024}
    named = [
        {"axis": a, "layer": i, "unit": u, "score": float(scores[a][i, u])}
        for a in EVERY for i in range(shape.sets(a)) for u in range(shape.units(a))
    ]  # fmt: skip
    back = plan.scores_from_rows(named, shape)
    assert set(back) == set(EVERY)
    assert all(np.array_equal(back[axis], scores[axis]) for axis in EVERY)


def test_what_cannot_be_cut_is_refused() -> None:
    model, keep = builders.bert(), {**builders.kept([4, 4], [64, 64]), "hidden": [24]}
    shape = bert.shape_of(model.config)
    with pytest.raises(ValueError, match="keeps its width"):
        slimming.slim(bert, model, shape, keep)
    with pytest.raises(ValueError, match="keeps its width"), slimming.gated(bert, model, shape, masks(shape, keep)):
        pass
    with pytest.raises(ValueError, match="share the width"):
        slimming.Prefixes(llama, model, shape, {0.5: keep})
    scaled, shape, _ = made("gpt2, scaled by layer")
    with pytest.raises(ValueError, match="keep all layers"):
        slimming.slim(gpt2, scaled, shape, {**shape.full(), "layers": [1, 0]})
