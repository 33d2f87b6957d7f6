"""Decoders of every layout: groups of heads, fused and gated projections, answers at the last token."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
import torch
from decoder_models import CASES, KINDS, answers, batch_of, columns_of, ends_of, made, masks, silenced
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from capgap_core import flops, models, plan, slimming
from capgap_core.batches import Batch
from capgap_core.errors import StageFailed
from capgap_core.families import bert, capgap_gpt2, gpt2, gpt_neox, llama
from capgap_core.given_forms import FORMS
from capgap_core.progress import Silent
from capgap_core.shapes import AXES
from capgap_core.stages import importance


@st.composite
def plans(draw: Any) -> tuple[str, bool, tuple[float, float, int, int]]:
    shares = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    neurons = st.sampled_from([0, 1, 24, 64])
    return draw(st.sampled_from(sorted(CASES))), draw(st.booleans()), (
        draw(shares), draw(shares), draw(neurons), draw(neurons)
    )  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(plans())
def test_a_slim_model_answers_as_the_full_one_with_the_rest_silent(drawn: Any) -> None:
    case, language, (first, second, *neurons) = drawn
    model, shape, family = made(case, language=language)
    keep = builders.kept([round(share * shape.heads) for share in (first, second)], neurons)
    inputs = batch_of()
    expected = answers(silenced(model, shape, keep), inputs)
    small = slimming.slim(family, model, shape, keep).eval()
    assert torch.allclose(answers(small, inputs), expected, atol=1e-5)
    with slimming.gated(family, model, shape, masks(shape, keep)):
        assert torch.allclose(answers(model, inputs), expected, atol=1e-5)
    gone = model.num_parameters() - small.num_parameters()
    assert gone == plan.prunable(family, shape, shape.full()) - plan.prunable(family, shape, keep)
    assert keep == shape.full() or not torch.allclose(expected, answers(model, inputs), atol=1e-3)
    assert models.kept_by(family, small) == keep
    assert vars(family.shape_of(small.config)) == vars(shape)


KEYS: Any = {
    gpt_neox: ("gpt_neox.layers.1.attention.query_key_value.weight", (4, 3, 8, 32), 0),
    gpt2: ("transformer.h.1.attn.c_attn.weight", (32, 3, 4, 8), 2),
}
"""Family → a weight that holds keys, how its heads lie in it as transformers' own code takes them, and in which."""


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("language", [False, True])
def test_reordering_keeps_the_function_and_moves_every_projection(case: str, language: bool) -> None:
    model, shape, family = made(case, language=language)
    before, weights = answers(model, batch_of()), copy.deepcopy(model.state_dict())
    order: Any = {(i, axis): np.roll(np.arange(shape.units(axis)), 1) for axis in AXES for i in range(2)}
    slimming.reorder(family, model, shape, order)
    assert torch.allclose(answers(model, batch_of()), before, atol=1e-5)
    after = model.state_dict()
    moved = {name for name in after if not torch.equal(after[name], weights[name])}
    out = [p.name.format(layer=i) for p in family.PROJECTIONS if p.side == "out" for i in range(2)]
    columns = [p.name.format(layer=i) for p in family.PROJECTIONS if p.side == "in" for i in range(2)]
    biases = {f"{name}.bias" for name in out} & set(after)
    assert moved == {f"{name}.weight" for name in (*out, *columns)} | biases
    (name, split, dim) = KEYS.get(family, ("model.layers.1.self_attn.k_proj.weight", (-1, shape.head_size, 32), 0))
    keys, were = (held[name].reshape(split) for held in (after, weights))
    assert torch.equal(keys, were.roll(1, dim)), "one key head further"


@pytest.mark.parametrize("case", CASES)
def test_sub_networks_share_their_weights_as_prefixes(case: str) -> None:
    model, shape, family = made(case)
    model = capgap_gpt2.following(model) if family is gpt2 else model
    keep, inputs = builders.kept([1, 0], [24, 64]), batch_of()
    small = slimming.slim(family, model, shape, keep).eval()
    prefixes = slimming.Prefixes(family, model, shape, {0.3: keep})
    prefixes.begin(torch.float32)
    leaves = prefixes.of(0.3)
    functional_call(model, leaves, args=(), kwargs=inputs).logits.square().sum().backward()
    prefixes.settle(0.3, leaves)
    small(**inputs).logits.square().sum().backward()
    theirs = dict(small.named_parameters())
    if family is llama:
        assert len(leaves) == 14 + 2 * (3 * shape.head_biases + 2 * shape.neuron_biases)
    places = {name: torch.arange(p.numel()).view_as(p) for name, p in model.named_parameters()}
    places |= slimming.prefix(family, places, shape, keep)
    for name, parameter in model.named_parameters():
        held, narrow = torch.zeros_like(parameter), theirs[name].grad
        held.view(-1)[places[name].flatten()] = 0.0 if narrow is None else narrow.flatten()
        assert torch.allclose(torch.zeros(()) if parameter.grad is None else parameter.grad, held, atol=1e-4), name


@pytest.mark.parametrize(
    "case", ["llama", "llama, four queries a key", "llama with biases", "qwen2", "qwen3", "gpt_neox", "gpt2"]
)
def test_importance_is_the_mean_slope_of_each_gate(case: str, tmp_path: Path) -> None:
    """A gate g before y = W(g ∘ x) has dL/dg_u = Σ_i W_iu dL/dW_iu; and some units a little louder and quieter."""
    model, shape, family = made(case)
    part, eps = builders.examples(tmp_path, 10), 1e-3
    found = importance.importance(
        family, copy.deepcopy(model), part, shape, batch_size=4, batch_means=False, progress=Silent()
    )

    def loss_of(place: int) -> Tensor:
        batch = part.batch([place])
        return torch.nn.functional.cross_entropy(model(**batch.named(family.INPUTS)).logits, batch.labels)

    slopes: dict[str, list[Any]] = {axis: [[], []] for axis in AXES}
    for place in range(len(part)):
        model.zero_grad()
        loss_of(place).backward()
        for axis, layer, dense in ends_of(model):
            columns = (dense.weight * dense.weight.grad).sum(dim=int(isinstance(dense, Conv1D))).detach()
            slopes[axis][layer].append(columns.reshape(shape.units(axis), -1).sum(dim=1).abs())
    for axis, layers in slopes.items():
        expected = np.stack([torch.stack(rows).mean(dim=0).numpy() for rows in layers])
        assert np.allclose(found[axis], expected, rtol=1e-4, atol=1e-6)

    model.requires_grad_(False)
    for axis, layer, dense in ends_of(model):
        unit, weight = shape.units(axis) - 1, columns_of(dense)
        width, kept, sides = weight.shape[1] // shape.units(axis), dense.weight.clone(), []
        for place in range(len(part)):
            ends = []
            for sign in (1, -1):
                weight[:, unit * width :][:, :width] *= 1 + sign * eps
                ends.append(loss_of(place).item())
                dense.weight.copy_(kept)
            sides.append(abs(ends[0] - ends[1]) / (2 * eps))
        assert found[axis][layer, unit] == pytest.approx(np.mean(sides), rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("language", [False, True])
def test_forward_flops_are_what_torch_counts(case: str, language: bool) -> None:
    model, shape, family = made(case, language=language)
    for keep in (shape.full(), builders.kept([1, 2], [40, 8]), builders.kept([0, 1], [16, 0])):
        small = slimming.slim(family, model, shape, keep).eval()
        small.config._attn_implementation = "eager"
        for length in (5, 32):
            ids = torch.ones(1, length, dtype=torch.long)
            with FlopCounterMode(display=False) as counter:
                small(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
            assert flops.forward_flops(family, shape, keep, length) == counter.get_total_flops()


def test_flops_by_hand() -> None:
    """Two layers of 4 query heads of 8 on 2 keys, 64 neurons, width 32, three labels, 10 tokens."""
    _, shape, _ = made("llama")
    layer = 2 * 10 * 32 * (32 + 16 + 16 + 32 + 3 * 64) + 2 * 2 * 10 * 10 * 32
    assert flops.forward_flops(llama, shape, shape.full(), 10) == 2 * layer + 2 * 10 * 32 * 3
    keep = builders.kept([1, 0], [8, 0])
    assert flops.forward_flops(llama, shape, keep, 10) == (
        2 * 10 * 32 * (16 + 8 + 8 + 16 + 3 * 8) + 2 * 2 * 10 * 10 * 16 + 2 * 10 * 32 * 3
    )


LOADER = """
import json, sys
hide("capgap_core", "tasks", "flows")
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

inputs = {name: torch.tensor(held) for name, held in json.loads(sys.stdin.readline()).items()}
for path in json.loads(sys.stdin.readline()):
    kind = AutoModelForCausalLM if "language" in path else AutoModelForSequenceClassification
    model = kind.from_pretrained(path, trust_remote_code=True, dtype="float32").eval()
    with torch.no_grad():
        print(json.dumps(model(**inputs).logits.tolist()))
    if "language" in path:
        ids = inputs["input_ids"][:1]
        said = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
        for _ in range(4):
            ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), dim=1)
        assert torch.equal(said, ids), (said, ids)
assert not [name for name in sys.modules if name.partition(".")[0] == "capgap_core"]
"""


def test_a_slim_model_loads_where_capgap_is_not_installed(tmp_path: Path) -> None:
    expected, inputs = {}, batch_of()
    for language in (False, True):
        for case in ("llama with biases", "mistral", "qwen2", "qwen3", "tied", "gpt_neox", "gpt2"):
            model, shape, family = made(case, language=language)
            keep = builders.kept([0, 1], [24, 0]) | ({"hidden": [24]} if language else {})
            small = slimming.slim(family, model, shape, keep).eval()
            folder = tmp_path / f"{'language' if language else 'class'}-{case.replace(' ', '-')}"
            small.save_pretrained(folder)
            expected[str(folder)] = small(**inputs).logits
            ours = family.load_slimmed(folder).eval()
            assert type(ours) is type(small)
            assert torch.equal(answers(ours, inputs), answers(small, inputs))
    alone = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    asked = [{name: x.tolist() for name, x in inputs.items()}, list(expected)]
    done = subprocess.run(
        [sys.executable, "-I", "-c", builders.HIDE + LOADER], input="\n".join(map(json.dumps, asked)),
        capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ, **alone},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for line, found in zip(done.stdout.splitlines(), expected.values(), strict=True):
        assert torch.allclose(torch.tensor(json.loads(line)), found, atol=1e-5)


def test_a_slim_language_model_generates_as_it_was_told_to() -> None:
    model, shape, family = made("llama", language=True)
    model.generation_config.eos_token_id = [5, 6]
    small = slimming.slim(family, model, shape, builders.kept([1, 1], [24, 8]))
    assert small.generation_config.eos_token_id == [5, 6]
    assert small.generation_config is not model.generation_config


@pytest.mark.parametrize("case", KINDS)
def test_the_first_layers_are_a_model_of_their_own(case: str, tmp_path: Path) -> None:
    model, _, family = made(case)
    small = family.first_layers(model, 1)
    small.save_pretrained(tmp_path)
    inputs, small = batch_of(), family.load(tmp_path).eval()
    assert len(getattr(small.config, "layer_types", None) or [1]) == 1
    (layers,) = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    del layers[1]
    model.config.num_hidden_layers = 1
    assert torch.allclose(answers(small, inputs), answers(model, inputs), atol=1e-6)
    assert type(small) is type(model)


@pytest.mark.parametrize("case", KINDS)
def test_a_model_comes_back_as_what_it_was_saved(case: str, tmp_path: Path) -> None:
    for language in (False, True):
        model, _, family = made(case, language=language)
        model.save_pretrained(tmp_path / str(language))
        again = family.load(tmp_path / str(language)).eval()
        assert type(again) is type(model)
        assert torch.equal(answers(again, batch_of()), answers(model, batch_of()))


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("case", ["qwen3", "gpt_neox", "gpt2"])
def test_a_language_model_becomes_a_classifier_with_a_head_drawn_from_its_seed(
    case: str, bare: bool, tmp_path: Path
) -> None:
    model, _, family = made(case, language=True)
    body: Any = model.base_model
    (body if bare else model).save_pretrained(tmp_path)
    content = models.content_of(tmp_path)
    how = {"stage": "teacher", "labels": 5, "pad": 7, "seed": 3}
    one, two = (models.given(family, str(tmp_path), content, **how) for _ in range(2))
    assert one.config.num_labels == 5
    assert one.config.pad_token_id == 7
    assert torch.equal(one.get_parameter(family.HEAD), two.get_parameter(family.HEAD))
    other = models.given(family, str(tmp_path), content, **{**how, "seed": 4})
    assert not torch.equal(one.get_parameter(family.HEAD), other.get_parameter(family.HEAD))
    for name, tensor in body.state_dict().items():
        assert torch.equal(one.get_parameter(f"{model.base_model_prefix}.{name}"), tensor)
    with pytest.raises(StageFailed, match=r"score\.weight"):
        family.load_given(tmp_path, new_head=False)


def test_forms_and_adapters_say_the_same() -> None:
    for family in (llama, gpt_neox, gpt2):
        of = {kind for kind, form in FORMS.items() if family.__name__.endswith(f".{form.family}")}
        assert of == set(family.CLASSES.classifiers)
    for family in (bert, llama, gpt_neox, gpt2):
        (form, *others) = [form for form in FORMS.values() if family.__name__.endswith(form.family)]
        assert {(f.head, f.causal) for f in (form, *others)} == {(family.HEAD, family.CAUSAL)}
        assert all(p.name.startswith(form.prefix) for p in family.PROJECTIONS)
    for kind, form in FORMS.items():
        if form.causal:
            model = builders.decoder(kind)
            assert type(model).__name__ == form.classifier
            config = model.config.to_dict()
            sizes = {name: config.get(form.names.get(name, name), size) for name, size in form.sizes.items()}
            held = {name.removeprefix(form.prefix): tuple(p.shape) for name, p in model.named_parameters()}
            assert form.tensors(sizes).items() <= held.items()
            usual = type(model.config)()
            stated = {name: getattr(usual, form.names.get(name, name), None) for name in form.sizes}
            assert all(size is None or stated[name] == size for name, size in form.sizes.items()), kind


def test_a_batch_ends_where_its_texts_do() -> None:
    inputs = batch_of(more=2)
    labels = torch.zeros(3, dtype=torch.long)
    batch = Batch(index=np.arange(3), token_type_ids=inputs["input_ids"], labels=labels, room=27, **inputs)
    assert batch.ends.argmax(1).tolist() == [6, 2, 4]
    assert batch.ends.sum(1).tolist() == [1, 1, 1]
