"""Decoder teachers from the folder that is given to the student that loads: MiniDisc, MixKD, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import builders
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer, LlamaForSequenceClassification

from capgap_core import chain, mixkd, models, outcome, preflight, scoring, tables, tokens
from capgap_core.errors import InputFaults
from capgap_core.families import llama
from capgap_core.outcome import Outcome
from capgap_core.progress import Silent
from capgap_core.recipes import Minidisc

GIVEN = {"mode": "auto", "epochs": 6, "learning_rate": 3e-3}
LOADER = """
import json, sys
hide("capgap_core", "tasks", "flows")
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

path, texts = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained(path, trust_remote_code=True, dtype="float32").eval()
for together in ([texts], [[text] for text in texts]):
    logits = []
    for some in together:
        encoded = tokenizer(some, padding=True, truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            logits += model(**encoded).logits.tolist()
    print(json.dumps(logits))
"""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a body with neither a head nor a token for padding, as bases are published."""
    return builders.decoder_folder(tmp_path_factory.mktemp("teacher") / "base", bare=True)


@pytest.fixture(scope="module")
def asked(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        **builders.TINY, "dataset": str(builders.single_csv(folder)), "teacher": str(teacher), "teacher_recipe": GIVEN,
        "data": {**builders.TINY["data"], "max_length": 64},  # whole texts, which are not of one length
        "run": {"root": str(folder / "art"), "threads": 1},
    }  # fmt: skip


@pytest.fixture(scope="module")
def done(asked: dict[str, Any]) -> Outcome:
    p = Minidisc.model_validate(asked)
    return chain.minidisc(**{name: getattr(p, name) for name in asked})


def test_minidisc_compresses_a_decoder(done: Outcome) -> None:
    stages, scores = outcome.named(done.stages), done.result["scores"]
    assert scores["teacher"]["accuracy"] > done.result["constant"]
    assert {"teacher", "assistant", "student", "direct", "direct_flops", "slimmed"} == set(scores)
    assert stages["importance"].summary["shape"] == {
        "layers": 2, "heads": 2, "head_size": 8, "neurons": 64, "hidden": 32, "labels": 2, "group": 2,
        "head_biases": False, "neuron_biases": False,
    }  # fmt: skip
    steps = {row["term"] for row in tables.read(stages["student"].table("steps"))}
    assert steps == {"hidden", "prediction"}
    ids = pq.read_table(stages["data"].table("evaluation"))["input_ids"].to_pylist()
    assert len({len(row) for row in ids}) > 3
    assert not any(stages["data"].summary["pad"] in row for row in ids)
    sizes = {role: tables.read(stages[f"evaluate_{role}"].table("sizes"))[0] for role in ("teacher", "student")}
    plan = tables.read(stages["student"].table("plan"))
    gone = {"heads": 32 * 8 * (2 + 1 + 1 + 2), "neurons": 3 * 32}
    smaller = sum(gone[row["axis"]] * (row["of"] - row["kept"]) for row in plan)
    assert sizes["teacher"]["parameters"] - sizes["student"]["parameters"] == smaller > 0


def test_the_student_answers_where_capgap_is_not_installed(
    asked: dict[str, Any], done: Outcome, tmp_path: Path
) -> None:
    """In one padded batch and one by one: the token for padding, which the teacher lacked, is in its files."""
    stored = tables.read(outcome.named(done.stages)["evaluate_student"].table("predictions"))
    lines = Path(asked["dataset"]).read_text(encoding="utf8").splitlines()[1:]
    texts = [lines[row["row"]].rpartition(",")[0] for row in stored]
    alone = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    path = done.result["paths"]["student"]
    found = subprocess.run(
        [sys.executable, "-I", "-c", builders.HIDE + LOADER], input=json.dumps([path, texts]), capture_output=True,
        text=True, check=False, cwd=tmp_path, env={**os.environ, **alone},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    expected = torch.tensor([row["logits"] for row in stored])
    for line in found.stdout.splitlines():
        assert torch.allclose(torch.tensor(json.loads(line)), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt_neox", "gpt2"])
def test_minidisc_compresses_the_other_decoders_too(kind: str, asked: dict[str, Any], tmp_path: Path) -> None:
    folder = builders.decoder_folder(tmp_path / "teacher", kind, language=True)
    student = {"scale": 0.2, "epochs": 1, "learning_rate": 1e-3}
    teacher = {**GIVEN, "epochs": 3}
    changed = {**asked, "teacher": str(folder), "student": student, "teacher_recipe": teacher}
    p = Minidisc.model_validate(changed)
    made = chain.minidisc(**{name: getattr(p, name) for name in changed})
    stages, scores = outcome.named(made.stages), made.result["scores"]
    assert scores["teacher"]["accuracy"] > made.result["constant"]
    assert {"teacher", "assistant", "student", "direct", "direct_flops", "slimmed"} == set(scores)
    sizes = {role: tables.read(stages[f"evaluate_{role}"].table("sizes"))[0] for role in ("teacher", "student")}
    gone = {"heads": 4 * 32 * 8 + 3 * 8, "neurons": 2 * 32 + 1}
    plan = tables.read(stages["student"].table("plan"))
    smaller = sum(gone[row["axis"]] * (row["of"] - row["kept"]) for row in plan)
    assert sizes["teacher"]["parameters"] - sizes["student"]["parameters"] == smaller > 0
    kind_of_student = models.read_config(Path(made.result["paths"]["student"]))["model_type"]
    assert kind_of_student == f"capgap_{kind}"


def test_mixkd_takes_the_teacher_that_was_fine_tuned(asked: dict[str, Any], done: Outcome, tmp_path: Path) -> None:
    tuned = outcome.named(done.stages)["teacher"].folder / "model"
    names = ("dataset", "data", "evaluate", "run")
    parameters = {
        **{name: asked[name] for name in names}, "teacher": str(tuned), "arms": ["kd", "mixkd", "repeats"],
        "matched": ["epochs"], "student": {"epochs": 1, "learning_rate": 1e-3},
    }  # fmt: skip
    checked = preflight.check(parameters, flow="mixkd")
    assert checked.teacher is not None
    assert checked.teacher.mode == "accept"
    made = mixkd.follow(checked, chain.in_this_process(Silent()))
    assert set(made.result["scores"]) == {"teacher", "kd", "mixkd", "repeats"}
    assert made.result["scores"]["teacher"] == done.result["scores"]["teacher"]
    (begun,) = [ref.folder for _, ref in made.stages if ref.stage == "first_layers"]
    small, whole = (LlamaForSequenceClassification.from_pretrained(path) for path in (begun / "model", tuned))
    assert small.config.num_hidden_layers == 1
    assert torch.equal(small.score.weight, whole.score.weight)
    (mixed,) = [ref for role, ref in made.stages if ref.stage == "distil" and role == "mixkd"]
    terms = {row["term"] for row in tables.read(mixed.table("steps"))}
    assert terms == {"cross_entropy", "prediction", "mixed_cross_entropy", "mixed_prediction"}


def test_a_slimmed_student_learns_from_mixtures_too(asked: dict[str, Any], done: Outcome) -> None:
    names = ("dataset", "teacher", "teacher_recipe", "data", "evaluate", "run")
    student = {"epochs": 0.5, "learning_rate": 1e-3, "scale": 0.3}
    parameters = {**{name: asked[name] for name in names}, "arms": ["mixkd"], "matched": ["epochs"], "student": student}
    made = mixkd.follow(preflight.check(parameters, flow="mixkd"), chain.in_this_process(Silent()))
    teacher, whole = (next(r for _, r in o.stages if r.stage == "teacher") for o in (made, done))
    assert teacher.reused
    assert teacher.identity == whole.identity
    assert made.result["sizes"]["mixkd"]["non_embedding"] < made.result["sizes"]["teacher"]["non_embedding"]


def faults(asked: dict[str, Any], **changes: Any) -> list[str]:
    with pytest.raises(InputFaults) as found:
        preflight.check({**asked, **changes})
    assert all(fault.remedy for fault in found.value.faults)
    return [f"{fault.field}: {fault.rule}" for fault in found.value.faults]


def edited(teacher: Path, place: Path, **config: Any) -> Path:
    shutil.copytree(teacher, place)
    held = json.loads((place / "config.json").read_text(encoding="utf8"))
    (place / "config.json").write_text(json.dumps({**held, **config}), encoding="utf8")
    return place


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gpt_neox", "gpt2"])
def test_each_kind_is_known_and_accepted_where_its_head_fits(kind: str, asked: dict[str, Any], tmp_path: Path) -> None:
    folder = builders.decoder_folder(tmp_path / "own", kind, labels=2)
    found = preflight.check({**asked, "teacher": str(folder)}).teacher
    assert found is not None
    family = kind if kind.startswith("gpt") else "llama"
    assert (found.family, found.mode, found.layers, found.hidden, found.positions) == (family, "accept", 2, 32, 128)
    bare = builders.decoder_folder(tmp_path / "bare", kind, language=True)
    found = preflight.check({**asked, "teacher": str(bare)}).teacher
    assert found is not None
    assert found.mode == "finetune"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"num_hidden_layers": 3}, "layers.2.self_attn.q_proj.weight is missing"),
        ({"vocab_size": 70}, "embed_tokens.weight is (60, 32)"),
        ({"num_key_value_heads": 1}, "k_proj.weight is (16, 32) in its weights, where its config.json says (8, 32)"),
        ({"intermediate_size": 0}, "intermediate_size = 0"),
        ({"head_dim": "8"}, "head_dim = '8'"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    config: dict[str, Any], said: str, teacher: Path, asked: dict[str, Any], tmp_path: Path
) -> None:
    assert any(said in rule for rule in faults(asked, teacher=str(edited(teacher, tmp_path / "other", **config))))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"n_layer": 3}, "h.2.attn.c_attn.weight is missing"),
        ({"n_inner": None}, "h.1.mlp.c_proj.weight is (64, 32) in its weights, where its config.json says (128, 32)"),
        ({"n_positions": 0}, "n_positions = 0"),
    ],
)
def test_a_config_with_names_of_its_own_is_held_against_the_weights_too(
    config: dict[str, Any], said: str, asked: dict[str, Any], tmp_path: Path
) -> None:
    teacher = builders.decoder_folder(tmp_path / "own", "gpt2", labels=2)
    assert any(said in rule for rule in faults(asked, teacher=str(edited(teacher, tmp_path / "other", **config))))


def test_what_a_config_leaves_open_fits(teacher: Path, asked: dict[str, Any], tmp_path: Path) -> None:
    folder = edited(teacher, tmp_path / "open", head_dim=None, sliding_window=None)
    found = preflight.check({**asked, "teacher": str(folder)}).teacher
    assert found is not None
    assert found.positions == 128


def test_an_example_is_no_longer_than_a_sliding_window(asked: dict[str, Any], tmp_path: Path) -> None:
    folder = builders.decoder_folder(tmp_path / "mistral", "mistral", labels=2, sliding_window=12)
    assert [rule.partition(":")[0] for rule in faults(asked, teacher=str(folder))] == [
        "data.max_length", "evaluate.length"
    ]  # fmt: skip
    folder = builders.decoder_folder(tmp_path / "qwen2", "qwen2", labels=2)
    for used in (False, True):
        other = edited(folder, tmp_path / f"window {used}", sliding_window=12, use_sliding_window=used)
        if used:
            assert len(faults(asked, teacher=str(other))) == 2
        else:
            assert preflight.check({**asked, "teacher": str(other)}).teacher is not None


@pytest.mark.parametrize(
    ("special", "said"),
    [({"pad_token": "</s>"}, "ends every text with </s>"), ({"pad_token": "<unk>"}, None), ({}, None)],
)
def test_padding_that_cannot_be_told_from_a_text_is_refused(
    special: dict[str, str], said: str | None, teacher: Path, asked: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(teacher, tmp_path / "own")
    builders.decoder_tokenizer(ends=True, **special).save_pretrained(tmp_path / "own")
    parameters = {**asked, "teacher": str(tmp_path / "own")}
    if said is None:
        assert preflight.check(parameters).teacher is not None
        assert tokens.given(str(tmp_path / "own")).pad_token == "<unk>"
    else:
        assert any(said in rule for rule in faults(parameters))


def test_a_padding_token_that_was_chosen_is_kept_and_one_that_was_there_moves_no_file(tmp_path: Path) -> None:
    for name, special in (("none", {}), ("own", {"pad_token": "<unk>"})):
        given, kept = tmp_path / name, tmp_path / f"{name} kept"
        builders.decoder_tokenizer(**special).save_pretrained(given)
        tokens.save(tokens.given(str(given)), kept, given=str(given))
        again = AutoTokenizer.from_pretrained(kept)
        assert again.pad_token == special.get("pad_token", "</s>")
        texts = [["a warm sun", "moon"], ["dark ice", "x"]]
        own, other = (tokens.encode(t, texts, max_length=16) for t in (tokens.given(str(given)), again))
        assert own == other
        assert (given / "tokenizer_config.json").read_bytes() == (
            kept / "tokenizer_config.json"
        ).read_bytes() or not special


def test_a_student_reads_as_the_teacher_where_transformers_reads_by_the_kind_of_model(tmp_path: Path) -> None:
    """Beside a Qwen2's config every tokenizer is taken for Qwen2's; without it for what its own files say."""
    given, kept = builders.decoder_folder(tmp_path / "given", "qwen2"), tmp_path / "kept"
    builders.decoder_tokenizer(pad_token="</s>").save_pretrained(given)
    own = tokens.given(str(given))
    tokens.save(own, kept, given=str(given))
    texts = [["a warm sun", "moon"]]
    found = [tokens.encode(t, texts, max_length=16) for t in (own, AutoTokenizer.from_pretrained(kept))]
    assert found[0] == found[1] != tokens.encode(builders.decoder_tokenizer(), texts, max_length=16)


def test_a_tokenizer_whose_class_adds_more_than_there_are_embeddings_is_refused(
    asked: dict[str, Any], tmp_path: Path
) -> None:
    folder = builders.decoder_folder(tmp_path / "qwen2", "qwen2", labels=2, vocabulary=56)
    assert any(
        "its tokenizer knows 57 pieces, its embeddings 56" in rule for rule in faults(asked, teacher=str(folder))
    )


def test_a_pair_of_blank_texts_is_a_token_of_padding() -> None:
    tokenizer = builders.decoder_tokenizer(pad_token="<unk>")
    tokenizer.backend_tokenizer.post_processor = None  # pyright: ignore
    assert tokens.encode(tokenizer, [["", "sun"], ["", ""]], max_length=16)["input_ids"][0] == [0]


def test_an_accepted_classifier_is_told_which_token_is_padding(tmp_path: Path, asked: dict[str, Any]) -> None:
    """Its config names none, as of one that was trained on texts one by one: its answers stay."""
    folder = builders.decoder_folder(tmp_path / "own", labels=2)
    how = {"stage": "teacher", "labels": None, "pad": 0, "seed": 1}
    model = models.given(llama, str(folder), models.content_of(folder), **how).eval()
    part = builders.examples(tmp_path, 12, labels=2)  # of ids from 1
    found = scoring.logits_of(llama, model, part, device=torch.device("cpu"))
    own = LlamaForSequenceClassification.from_pretrained(folder).eval()
    for place in range(len(part)):
        with torch.no_grad():
            expected = own(**part.batch([place]).named(llama.INPUTS)).logits[0]
        assert torch.allclose(torch.from_numpy(found[place]), expected, atol=1e-5)
