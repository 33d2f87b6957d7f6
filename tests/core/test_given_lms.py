"""What is wrong with teachers of a grid that are given is said before any work, all at once."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import builders
import pytest
from lms import folder_of
from safetensors.torch import load_file, save_file
from texts import write_text

from capgap_core import lm_tokens, preflight, slimming
from capgap_core.errors import Fault, InputFaults
from capgap_core.families import llama
from capgap_core.given_lms import GivenLm

Asked = dict[str, Any]
GIVEN = "ladder.given"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("given")


@pytest.fixture(scope="module")
def good(root: Path) -> Path:
    return folder_of(root / "good")


@pytest.fixture(scope="module")
def asked(root: Path) -> Asked:
    return {
        "dataset": str(write_text(root)), "run": {"root": str(root / "art")}, "training": {"length": 32},
        "ladder": {"teachers": [4.9e4], "students": [3e3]},
    }  # fmt: skip


def given(asked: Asked, folders: Sequence[Path], changes: Asked | None = None, **more: Any) -> Asked:
    ladder = {**asked["ladder"], "given": [str(one) for one in folders], **(changes or {})}
    return {**asked, "ladder": ladder, **more}


def faults_of(parameters: Asked) -> tuple[Fault, ...]:
    with pytest.raises(InputFaults) as caught:
        preflight.check(parameters, flow="law")
    assert not (Path(parameters["run"]["root"]) / "store").exists()
    return caught.value.faults


def the_fault(parameters: Asked) -> Fault:
    (one,) = faults_of(parameters)
    return one


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gpt_neox", "gpt2"])
def test_a_model_that_will_do_is_known_by_its_size(kind: str, asked: Asked, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / kind, kind)
    (one,) = preflight.check(given(asked, [folder]), flow="law").given
    model: Any = builders.decoder(kind, language=True, vocabulary=257)
    names = [n for n, _ in model.named_parameters() if not any(w in n for w in ("embed", "lm_head", "wte", "wpe"))]
    assert isinstance(one, GivenLm)
    assert one.parameters == sum(model.get_parameter(name).numel() for name in names)
    assert (one.folder, one.name) == (folder, str(folder))


def test_a_checkpoint_of_pythia_calls_its_output_matrix_otherwise(asked: Asked, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pythia", "gpt_neox")
    weights = load_file(folder / "model.safetensors")
    assert "embed_out.weight" in weights
    assert preflight.check(given(asked, [folder]), flow="law").given
    weights["lm_head.weight"] = weights.pop("embed_out.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert preflight.check(given(asked, [folder]), flow="law").given
    weights["other.weight"] = weights.pop("lm_head.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "1 weights are missing" in the_fault(given(asked, [folder])).rule


def test_a_teacher_that_is_given_may_be_the_only_one(asked: Asked, good: Path) -> None:
    checked = preflight.check(given(asked, [good], {"teachers": []}), flow="law")
    assert [one.family for one in checked.given] == ["llama"]


def test_what_is_no_model_at_all(asked: Asked, root: Path, tmp_path: Path, good: Path) -> None:
    builders.bert().save_pretrained(tmp_path / "bert")
    shutil.copytree(good, tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    shutil.copytree(tmp_path / "bare", tmp_path / "parts")
    (tmp_path / "parts" / "model.safetensors.index.json").write_text("{}")
    shutil.copytree(good, tmp_path / "odd")
    config = json.loads((good / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps({**config, "hidden_size": "wide"}))
    (tmp_path / "empty").mkdir()
    names = ("nowhere", "empty", "bert", "bare", "parts", "odd")
    found = faults_of(given(asked, [tmp_path / name for name in names]))
    assert {one.field for one in found} == {GIVEN}
    said = {Path(one.value).name: f"{one.rule}: {one.remedy}" for one in found}
    for name, words in {
        "nowhere": "there is no such folder: Give a folder, or a name on the hub", "empty": "holds no config.json",
        "bert": "is a bert, none of llama, mistral, qwen2, qwen3, gpt_neox, gpt2", "bare": "holds no weights",
        "parts": "its weights are in several files", "odd": "hidden_size = 'wide'",
    }.items():  # fmt: skip
        assert words in said[name], said


def test_weights_that_are_not_those_of_the_config(asked: Asked, good: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "own"))
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.0.mlp.up_proj.weight")
    weights["model.norm.weight"] = weights["model.norm.weight"][:-1].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    one = the_fault(given(asked, [folder]))
    assert "2 weights are missing or do not fit its config: layers.0.mlp.up_proj.weight, norm.weight" in one.rule
    (folder / "model.safetensors").write_bytes(b"no")
    assert "model.safetensors cannot be read" in the_fault(given(asked, [folder])).rule


def test_a_model_that_reads_otherwise(asked: Asked, tmp_path: Path) -> None:
    small, own = folder_of(tmp_path / "small", vocabulary=256), folder_of(tmp_path / "own")
    builders.decoder_tokenizer().save_pretrained(own)
    found = faults_of(given(asked, [small, own], training={"length": 200}))
    rules = sorted(f"{one.field}: {one.rule}" for one in found if "not two rows" not in one.rule)
    assert rules == [
        "ladder.given: its embeddings have 256 entries, and the text has ids up to 256",
        "ladder.given: its tokenizer has other pieces than the one that the text is read with",
        "training.length: rows have so many tokens, and the model own has 128 positions",
        "training.length: rows have so many tokens, and the model small has 128 positions",
    ]
    assert all("data.tokenizer=<folder>" in one.remedy for one in found if one.field == GIVEN)
    own_words = {"training": {"length": 32}, "data": {"tokenizer": str(own)}}
    assert preflight.check(given(asked, [own], **own_words), flow="law").given
    trained = the_fault(given(asked, [own], data={"tokenizer": "trained"}))
    assert (trained.field, "has its own" in trained.rule) == ("data.tokenizer", True)


def test_positions_of_gpt2_have_another_name(asked: Asked, tmp_path: Path) -> None:
    one = the_fault(given(asked, [folder_of(tmp_path / "gpt2", "gpt2")], training={"length": 129}))
    assert one.rule == "rows have so many tokens, and the model gpt2 has 128 positions"


def test_teachers_that_a_grid_cannot_tell_apart(asked: Asked, good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "again")
    other = folder_of(tmp_path / "other", seed=5)
    same, alike = (one.rule for one in faults_of(given(asked, [good, tmp_path / "again", other])))
    assert same == f"is the same model as {good}"
    assert f"parameters outside the embeddings, as {good} has: a grid knows teachers by them" in alike
    assert "stands there more than once" in the_fault(given(asked, [good, good])).rule


def test_students_that_cannot_begin_as_slices(asked: Asked, good: Path, tmp_path: Path) -> None:
    whole = builders.decoder(language=True, vocabulary=257)
    small = slimming.slim(llama, whole, llama.shape_of(whole.config), builders.kept([2, 1], [24, 8])).eval()
    small.save_pretrained(tmp_path / "slim")
    assert preflight.check(given(asked, [tmp_path / "slim"]), flow="law").given, "it may teach others"
    slim = the_fault(given(asked, [tmp_path / "slim"], {"begin": "slimmed"}))
    assert "is slimmed already" in slim.rule
    large = the_fault(given(asked, [good], {"begin": "slimmed", "students": [1e5]}))
    assert (large.field, "no student is smaller" in large.rule) == ("ladder.begin", True)
    far = faults_of(given(asked, [good], {"begin": "slimmed", "students": [3e3], "teachers": [3e6]}))
    assert [one.field for one in far] == ["ladder.students"]
    assert "no slice of the teacher of 3.11M comes near" in far[0].rule
    fast = faults_of(given(asked, [good], {"begin": "slimmed"}, training={"length": 32, "learning_rate": 0.4}))
    assert {one.field for one in fast} == {"training.learning_rate"}
    assert any("a slice of width" in one.rule for one in fast)


def test_everything_that_is_wrong_is_said_together(asked: Asked, good: Path, tmp_path: Path) -> None:
    wrong = given(
        asked, [tmp_path / "nowhere", good], {"budgets": [-1]}, data={"tokenizer": "trained"}, dataset="/no/x"
    )
    assert {one.field for one in faults_of(wrong)} == {GIVEN, "ladder.budgets.0", "dataset", "data.tokenizer"}


def test_bytes_are_what_their_own_tokenizer_says(asked: Asked, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "own")
    lm_tokens.byte_tokenizer().save_pretrained(folder)
    for tokenizer in ("bytes", str(folder)):
        assert preflight.check(given(asked, [folder], data={"tokenizer": tokenizer}), flow="law").given
