"""What heads and neurons of a language model are worth on text, and the slices that the plan makes of it."""

import copy
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
import torch
from decoder_models import FAMILIES
from lms import BYTES, LENGTH, folder_of, given, learned, stage
from texts import text_of, write_text
from transformers import PreTrainedModel

from capgap_core import lm_parts, lm_slices, models, plan, slimming, tables
from capgap_core.errors import StageFailed
from capgap_core.families import llama
from capgap_core.lm_batches import LmRows
from capgap_core.lm_recipes import LmObjective, Sizes
from capgap_core.lm_slices import SCALES, SLICED
from capgap_core.progress import Silent
from capgap_core.records import ModelInput, Reference
from capgap_core.shapes import AXES
from capgap_core.stages import lm_evaluate, lm_importance

CPU = torch.device("cpu")
SIZES = Sizes(layers=2, hidden=32, heads=4, kv_heads=2, neurons=64)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    root = tmp_path_factory.mktemp("lm")
    return text_of(root, write_text(root))


def scored(root: Path, text: Reference, teacher: Any, *, scales: tuple[float, ...] = (0.5,)) -> Reference:
    recipe = lm_importance.Recipe(family="llama", scales=scales, length=LENGTH, rows=24)
    return stage(root, "lm_importance", recipe, text=text, teacher=teacher)


def scores_of(model: PreTrainedModel, rows: LmRows, *, most: int) -> Any:
    return lm_importance.importance(llama, copy.deepcopy(model), rows, most=most, device=CPU, progress=Silent())


@pytest.mark.parametrize("case", [{}, {"group": 4, "tie_word_embeddings": True}, {"kind": "qwen2"}])
def test_importance_is_the_mean_over_rows_of_each_ones_slope(case: dict[str, Any], text: Reference) -> None:
    """A gate g before y = W(g ∘ x) has dL/dg_u = Σ_i W_iu dL/dW_iu; the loss here is transformers' own logits'."""
    model = builders.decoder(language=True, vocabulary=BYTES, **case)
    rows, shape = lm_parts.rows(text, "train", LENGTH), llama.shape_of(model.config)
    found = scores_of(model, rows, most=7)
    slopes: dict[str, list[Any]] = {axis: [[], []] for axis in AXES}
    for batch in rows.spread(1, most=7):
        model.zero_grad()
        logits = model(**batch.inputs, use_cache=False).logits[0]
        torch.nn.functional.cross_entropy(logits[batch.keep], batch.targets[batch.keep]).backward()
        layers: Any = model.get_submodule("model.layers")
        for i, layer in enumerate(layers):
            for axis, dense in (("heads", layer.self_attn.o_proj), ("neurons", layer.mlp.down_proj)):
                columns = (dense.weight * dense.weight.grad).sum(dim=0).detach()
                slopes[axis][i].append(columns.reshape(shape.units(axis), -1).sum(dim=1).abs())
    for axis in AXES:
        expected = np.stack([torch.stack(rows).mean(dim=0).numpy() for rows in slopes[axis]])
        assert found[axis].shape == (2, shape.units(axis))
        assert np.allclose(found[axis], expected, rtol=1e-4, atol=1e-7)


def test_importance_does_not_depend_on_the_batch(text: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    model = builders.decoder(language=True, vocabulary=BYTES)
    rows = lm_parts.rows(text, "train", LENGTH)
    whole = scores_of(model, rows, most=10)
    monkeypatch.setattr(lm_importance, "ROWS_AT_ONCE", 3)
    again = scores_of(model, rows, most=10)
    assert all(np.allclose(whole[axis], again[axis], rtol=1e-4) for axis in AXES)
    assert not np.allclose(whole["heads"], scores_of(model, rows, most=3)["heads"], rtol=1e-2)


def test_a_slice_answers_as_the_whole_model_with_its_gates_shut(text: Reference, tmp_path: Path) -> None:
    teacher = given(tmp_path, text, folder_of(tmp_path / "own"))
    made = scored(tmp_path, text, teacher, scales=(0.5, 0.8))
    whole, own = models.load(llama, made), models.load(llama, teacher)
    shape = llama.shape_of(whole.config)
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        assert torch.allclose(whole(ids).logits, own(ids).logits, atol=1e-5), "it is the teacher, reordered"
    for row in tables.read(made.table("importance")):
        assert (row["rank"] == 0) <= (row["score"] > 0)
    ranked = {(r["layer"], r["axis"], r["rank"]): r["score"] for r in tables.read(made.table("importance"))}
    assert all(score >= ranked.get((i, axis, n + 1), 0.0) for (i, axis, n), score in ranked.items())
    for scale in (0.5, 0.8):
        keep = models.kept_of(made, scale)
        small = models.load(llama, ModelInput(reference=made, scale=scale))
        shut: Any = {
            (i, axis): (torch.arange(shape.units(axis)) < keep[axis][i]).float() for axis in AXES for i in range(2)
        }
        with torch.no_grad(), slimming.gated(llama, whole, shape, shut):
            assert torch.allclose(small(ids).logits, whole(ids).logits, atol=1e-5)
        assert models.kept_by(llama, small) == keep
        assert made.summary["achieved"][str(scale)] == plan.achieved_scale(llama, shape, keep) < 1
    with pytest.raises(StageFailed, match="has been slimmed before"):
        scored(tmp_path, text, ModelInput(reference=made, scale=0.5))


def test_a_slice_learns_from_the_whole_model_and_teaches(text: Reference, tmp_path: Path) -> None:
    teacher = learned(tmp_path, text, {}, steps=60, scratch=SIZES)
    made = scored(tmp_path, text, teacher)
    start = ModelInput(reference=made, scale=0.5)
    measure = lm_evaluate.Recipe(family="llama", length=LENGTH)
    slimmed = stage(tmp_path, "lm_evaluate", measure, text=text, model=start)
    again = stage(tmp_path, "lm_evaluate", measure, text=text, model=teacher)
    assert again.summary["nats_test"] == pytest.approx(teacher.summary["nats_test"], abs=1e-6)
    student = learned(tmp_path, text, {"start": start, "teacher": teacher}, steps=30, objective=LmObjective())
    left, after, best = (one.summary["nats_test"] for one in (slimmed, student, teacher))
    assert best < after < left - 0.1
    assert student.summary["non_embedding"] == slimmed.summary["non_embedding"] < teacher.summary["non_embedding"]
    other = learned(tmp_path, text, {"start": teacher, "teacher": start}, steps=30, objective=LmObjective())
    assert best < other.summary["nats_test"], "the slice is a worse teacher than nothing"
    whole = learned(tmp_path, text, {"start": made, "teacher": teacher}, steps=30, objective=LmObjective())
    assert whole.identity != student.identity


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt_neox", "gpt2"])
def test_slices_over_width_too_have_the_sizes_that_are_told(kind: str, text: Reference, tmp_path: Path) -> None:
    """The model is loaded and counted; before its units are scored about as many are foreseen."""
    family = FAMILIES.get(kind, llama)
    name = family.__name__.rpartition(".")[2]
    teacher = given(tmp_path, text, folder_of(tmp_path / "own", kind), family=name)
    recipe = lm_importance.Recipe(family=name, scales=SCALES, length=LENGTH, rows=8, axes=SLICED)
    made = stage(tmp_path, "lm_importance", recipe, text=text, teacher=teacher)
    told, whole = made.summary["slices"], models.load(family, made)
    foreseen = lm_slices.foreseen(family, family.bare_language(teacher.folder / "model"))
    for scale in (SCALES[0], SCALES[20], SCALES[60]):
        small: Any = models.load(family, ModelInput(reference=made, scale=scale))
        tables_ = [m for m in small.modules() if isinstance(m, torch.nn.Embedding)] + [small.get_output_embeddings()]
        apart = {id(m.weight): m.weight.numel() for m in tables_}
        assert told[str(scale)]["parameters"] == small.num_parameters() - sum(apart.values())
        assert told[str(scale)]["hidden"] == small.config.kept_hidden <= whole.config.hidden_size
        assert foreseen[scale].hidden == told[str(scale)]["hidden"]
        assert foreseen[scale].parameters == pytest.approx(told[str(scale)]["parameters"], rel=0.25)
    size = teacher.summary["non_embedding"]
    sizes = {s: one["parameters"] for s, one in told.items()}
    assert size == sizes[str(SCALES[0])], "so small a model loses nothing there: it is no slice"
    found = lm_slices.nearest({float(s): n for s, n in sizes.items()}, size, whole=size)
    assert sizes[str(found)] == max(n for n in sizes.values() if n < size)


def test_the_width_is_scored_by_what_is_added_to_the_stream(text: Reference) -> None:
    """A gate g on all that is written to the stream has dL/dg_u = Σ W_u dL/dW_u over its writers and embeddings."""
    model: Any = builders.decoder(language=True, vocabulary=BYTES)
    rows = lm_parts.rows(text, "train", LENGTH)
    model_again = copy.deepcopy(model)
    found = lm_importance.importance(llama, model_again, rows, most=5, device=CPU, progress=Silent(), axes=("hidden",))
    expected = []
    for batch in rows.spread(1, most=5):
        model.zero_grad()
        logits = model(**batch.inputs, use_cache=False).logits[0]
        torch.nn.functional.cross_entropy(logits[batch.keep], batch.targets[batch.keep]).backward()
        table = model.model.embed_tokens.weight
        slope = (table * table.grad).sum(dim=0)
        for layer in model.model.layers:
            for dense in (layer.self_attn.o_proj, layer.mlp.down_proj):
                slope = slope + (dense.weight * dense.weight.grad).sum(dim=1)
        expected.append(slope.detach().abs())
    assert found["hidden"].shape == (1, 32)
    assert np.allclose(found["hidden"][0], torch.stack(expected).mean(dim=0).numpy(), rtol=1e-3, atol=1e-6)
