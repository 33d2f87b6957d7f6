"""A language model that is given, beside a text: what it loses, what is refused, and what learns from it."""

import shutil
from pathlib import Path
from typing import Any

import builders
import pytest
import torch
from decoder_models import FAMILIES
from lms import BYTES, LENGTH, folder_of, given, learned
from safetensors.torch import load_file, save_file
from texts import text_of, write_text
from transformers import PreTrainedModel

from capgap_core import lm_parts, lm_tokens, models, slimming, tables
from capgap_core.errors import InputFaults, StageFailed
from capgap_core.families import llama
from capgap_core.lm_losses import ALL, held_out
from capgap_core.lm_recipes import LmObjective
from capgap_core.records import Reference


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    root = tmp_path_factory.mktemp("lm")
    return text_of(root, write_text(root))


def measured(model: PreTrainedModel, text: Reference, part: str) -> float:
    rows = lm_parts.rows(text, part, LENGTH)
    sources = torch.zeros(text.summary["documents"][part], dtype=torch.long).numpy()
    return held_out(model, rows, sources, None, device=torch.device("cpu"))[ALL].nats


@pytest.mark.parametrize(
    ("kind", "tied"),
    [("llama", True), ("llama", False), ("mistral", False), ("qwen3", True), ("gpt_neox", False), ("gpt2", True)],
)
def test_a_given_model_is_measured_and_kept_as_it_is(kind: str, tied: bool, text: Reference, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "own", kind, tie_word_embeddings=tied)
    family = FAMILIES.get(kind, llama)
    made = given(tmp_path, text, folder, family=family.__name__.rpartition(".")[2])
    own, kept = family.load(folder), models.load(family, made)
    assert type(kept) is type(own)
    assert all(torch.equal(tensor, kept.state_dict()[name]) for name, tensor in own.state_dict().items())
    facts = made.summary
    assert facts["nats_test"] == pytest.approx(measured(own, text, "test"), abs=1e-6)
    assert facts["nats_valid"] == pytest.approx(measured(own, text, "valid"), abs=1e-6)
    assert {row["source"] for row in tables.read(made.table("held_out"))} == {None, "day", "night"}
    positions = 128 if kind == "gpt2" else 0
    assert facts["non_embedding"] == facts["parameters"] - ((1 if tied else 2) * BYTES + positions) * 32
    assert (facts["tokens"], facts["epochs"]) == (None, None)
    assert models.load_tokenizer(made.folder / "model").eos_token == lm_tokens.END


def test_a_summary_says_what_that_of_a_trained_model_says(text: Reference, tmp_path: Path) -> None:
    """Whoever reads one reads the other; and where a model lies does not move what it is."""
    made = given(tmp_path, text, folder_of(tmp_path / "own"))
    trained = learned(tmp_path, text, {"start": made}, steps=1)
    assert set(made.summary) == set(trained.summary)
    moved = shutil.copytree(tmp_path / "own", tmp_path / "elsewhere")
    assert given(tmp_path, text, moved).reused


def faults_of(root: Path, text: Reference, folder: Path, **changes: Any) -> list[str]:
    with pytest.raises(InputFaults) as caught:
        given(root, text, folder, **changes)
    return [f"{fault.field}: {fault.rule}" for fault in caught.value.faults]


def test_every_way_in_which_a_model_does_not_go_with_the_text_is_said(text: Reference, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "small", vocabulary=256)
    assert faults_of(tmp_path, text, folder, length=129) == [
        "model: its embeddings have 256 entries, and the text has ids up to 256",
        "length: rows have so many tokens, and the model small has 128 positions",
    ]
    assert given(tmp_path, text, folder_of(tmp_path / "fits"), length=128).summary["nats_test"] > 0


def test_a_model_with_another_tokenizer_is_refused(text: Reference, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "own")
    builders.decoder_tokenizer().save_pretrained(folder)
    assert faults_of(tmp_path, text, folder) == [
        "model: its tokenizer has other pieces than the one that the text is read with"
    ]
    lm_tokens.byte_tokenizer().save_pretrained(folder)
    assert given(tmp_path, text, folder).summary["nats_test"] > 0


def test_a_model_of_another_kind_is_refused(text: Reference, tmp_path: Path) -> None:
    builders.bert().save_pretrained(tmp_path / "bert")
    assert faults_of(tmp_path, text, tmp_path / "bert") == ["model: is a bert, none of llama, mistral, qwen2, qwen3"]


def test_a_folder_that_is_not_whole_or_has_changed_fails_the_stage(text: Reference, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "own")
    with pytest.raises(StageFailed, match="changed after the run began"):
        given(tmp_path, text, folder, content="other")
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StageFailed, match=r"given_lm: 1 weights are missing in .*up_proj"):
        given(tmp_path, text, folder)


def test_a_slim_model_goes_on_from_disk_and_keeps_its_modelling_file(
    text: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = builders.decoder(language=True, vocabulary=BYTES)
    small = slimming.slim(llama, whole, llama.shape_of(whole.config), builders.kept([2, 0], [24, 8])).eval()
    small.save_pretrained(tmp_path / "slim")
    for kind in (type(small), type(small.config)):
        monkeypatch.setattr(kind, "_auto_class", None)  # as in a process that has slimmed nothing
    made = given(tmp_path, text, tmp_path / "slim")
    assert made.summary["nats_test"] == pytest.approx(measured(small, text, "test"), abs=1e-6)
    before = learned(tmp_path, text, {"start": made}, steps=1)
    inputs = {"start": made, "teacher": before}
    after = learned(tmp_path, text, inputs, steps=20, objective=LmObjective(), keep="float32")
    assert models.kept_by(llama, models.load(llama, after)) == builders.kept([2, 0], [24, 8])
    assert after.summary["parameters"] == small.num_parameters()
    for one in (made, before, after):
        assert (one.folder / "model" / "capgap_llama.py").is_file()
        assert set(models.read_config(one.folder / "model")["auto_map"]) == {"AutoConfig", "AutoModelForCausalLM"}
