"""What MixKD may be given: a pretrained model to begin from, a student of one's own, and texts without labels."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from capgap_core import mixkd, preflight, scoring
from capgap_core.chain import in_this_process
from capgap_core.errors import InputFaults
from capgap_core.families import bert
from capgap_core.loading import Cache
from capgap_core.outcome import Outcome
from capgap_core.progress import Silent
from capgap_core.recipes_mixkd import Mixkd
from capgap_core.unlabelled import read_unlabelled

CALL = in_this_process(Silent())


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Parameters with a teacher that was trained for something and is to be fine-tuned again."""
    folder = tmp_path_factory.mktemp("given")
    base = {
        **builders.TINY, "dataset": str(builders.single_csv(folder, 300)),
        "run": {"root": str(folder / "art"), "threads": 1},
        "student": {"epochs": 1, "learning_rate": 1e-3}, "arms": ["kd", "mixkd"], "matched": ["epochs"],
    }  # fmt: skip
    base = {name: value for name, value in base.items() if name in Mixkd.model_fields}
    m = mixkd.MixKD(preflight.check(base, flow="mixkd"), CALL)
    teacher = m.teacher(m.data())
    shutil.copytree(teacher.folder / "model", folder / "pretrained")
    recipe = {"mode": "finetune", "epochs": 1, "learning_rate": 1e-3}
    return {**base, "teacher": str(folder / "pretrained"), "teacher_recipe": recipe}


def follow(asked: dict[str, Any], **changes: Any) -> Outcome:
    return mixkd.follow(preflight.check({**asked, **changes}, flow="mixkd"), CALL)


def one(outcome: Outcome, stage: str) -> Path:
    (found,) = [ref.folder for _, ref in outcome.stages if ref.stage == stage]
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(bert.load(folder).state_dict())


@pytest.mark.parametrize("begin", ["auto", "pretrained", "teacher"])
def test_a_student_begins_as_the_pretrained_layers_and_knows_nothing_of_the_teachers_rows(
    asked: dict[str, Any], begin: str
) -> None:
    done = follow(asked, student={**asked["student"], "layers": 1, "begin": begin})
    begun, given = weights(one(done, "first_layers") / "model"), weights(Path(asked["teacher"]))
    tuned = weights(one(done, "teacher") / "model")
    name = "bert.encoder.layer.0.output.dense.weight"
    source = tuned if begin == "teacher" else given
    assert torch.equal(begun[name], source[name])
    assert not torch.equal(given[name], tuned[name])
    assert torch.equal(begun["classifier.weight"], tuned["classifier.weight"]) == (begin == "teacher")
    assert not torch.equal(begun["classifier.weight"], given["classifier.weight"]), "the head is drawn anew"


def test_another_draw_takes_other_rows_and_moves_nothing_else(asked: dict[str, Any]) -> None:
    first, second = (follow(asked, fractions=[0.5], draw=draw) for draw in (0, 1))
    rows = [pq.read_table(one(done, "part") / "train.parquet")["row"].to_pylist() for done in (first, second)]
    assert len(rows[0]) == len(rows[1])
    assert set(rows[0]) != set(rows[1])
    assert one(first, "teacher") == one(second, "teacher")
    assert one(first, "first_layers") == one(second, "first_layers")


def test_a_student_of_ones_own_has_the_teachers_tokens_and_may_have_another_width(
    asked: dict[str, Any], tmp_path: Path
) -> None:
    own = tmp_path / "own"
    shutil.copytree(asked["teacher"], own)
    whole = bert.load(own)
    small = type(whole)(type(whole.config)(**{**whole.config.to_dict(), "hidden_size": 16, "intermediate_size": 24}))
    small.save_pretrained(own)
    done = follow(asked, student={**asked["student"], "model": str(own)}, arms=["mixkd"])
    made = bert.load(one(done, "distil") / "model").config
    assert (made.hidden_size, made.num_hidden_layers) == (16, 2)

    words = json.loads((own / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    vocabulary["elsewhere"] = vocabulary.pop(last)
    (own / "tokenizer.json").write_text(json.dumps(words))
    for changes in ({}, {"layers": 3}):
        with pytest.raises(InputFaults) as found:
            preflight.check({**asked, "student": {"model": str(own), **changes}}, flow="mixkd")
        assert {fault.field for fault in found.value.faults} == {"student.model", *(f"student.{n}" for n in changes)}
        assert "tokenizer has other pieces" in str(found.value)


def test_a_tokenizer_that_cuts_in_another_way_is_refused(asked: dict[str, Any], tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(asked["teacher"], own)
    words = json.loads((own / "tokenizer.json").read_text())
    words["post_processor"] = None  # the same pieces, and no [CLS]
    (own / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(InputFaults, match="cuts texts in another way"):
        preflight.check({**asked, "student": {"model": str(own)}}, flow="mixkd")


@pytest.mark.parametrize("name", ["more.csv", "more.txt"])
def test_the_teacher_labels_what_has_no_labels_and_nothing_measured_is_among_it(
    asked: dict[str, Any], tmp_path: Path, name: str
) -> None:
    fresh = pd.read_csv(builders.single_csv(tmp_path, 40, seed=5))["text"].tolist()
    held = pq.read_table(next(iter(Path(asked["run"]["root"]).glob("store/data/*/*/evaluation.parquet"))))["row"]
    seen = pd.read_csv(asked["dataset"])["text"][held[0].as_py()]
    file = tmp_path / name
    if name.endswith("csv"):
        pd.DataFrame({"text": [*fresh, seen]}).to_csv(file, index=False)
    else:
        file.write_text("\n".join([*fresh[:20], "", *fresh[20:], seen]) + "\n", encoding="utf8")
    arms = ["kd", "mixkd", "kd_unlabelled", "mixkd_unlabelled"]
    done = follow(asked, unlabelled=str(file), arms=arms, matched=["epochs", "tokens"])
    ref = next(ref for _, ref in done.stages if ref.stage == "pseudo_labels")
    data = next(ref for _, ref in done.stages if ref.stage == "data")
    assert (ref.summary["pseudo_labelled"], ref.summary["in_other_parts"]) == (40, 1)
    assert ref.summary["rows"]["train"] == data.summary["rows"]["train"] + 40
    teacher = bert.load(one(done, "teacher") / "model")
    part = scoring.examples(ref, "train")
    said = scoring.logits_of(bert, teacher, part, device=torch.device("cpu")).argmax(1)
    first = data.summary["rows"]["train"]
    assert np.array_equal(part.labels[first:], said[first:])
    assert np.array_equal(part.labels[:first], scoring.examples(data, "train").labels)
    rows = {row["role"]: row for row in done.result["arms"]}
    for own, like in (("kd_unlabelled", "kd"), ("kd_unlabelled_tokens", "kd_tokens"), ("mixkd_unlabelled", "mixkd")):
        per_step = rows[own]["examples"] / rows[own]["steps"]
        assert abs(rows[own]["examples"] - rows[like]["examples"]) <= per_step
        assert rows[own]["training_flops"] > rows[like]["training_flops"] * 0.9
    assert {row["n_train"] for row in done.result["arms"]} == {first}


def test_the_same_bytes_read_in_another_way_are_other_texts(asked: dict[str, Any], tmp_path: Path) -> None:
    """A header is a text where each line is one."""
    made = []
    for name in ("more.csv", "more.txt"):
        (tmp_path / name).write_text("text\nwarm sun above\ncold moon below\n", encoding="utf8")
        done = follow(asked, unlabelled=str(tmp_path / name), arms=["kd_unlabelled"])
        made.append(next(ref.summary["pseudo_labelled"] for _, ref in done.stages if ref.stage == "pseudo_labels"))
    assert made == [2, 3]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "marked.txt").write_bytes("\ufeffwarm sun\ncold moon\n".encode())
    found = read_unlabelled(str(tmp_path / "marked.txt"), ("text",), cache=Cache(tmp_path / "cache"))
    assert found.texts == (["warm sun", "cold moon"],)


def test_a_pair_that_is_measured_on_is_left_out_in_either_order_and_scores_are_the_teachers(
    asked: dict[str, Any], tmp_path: Path
) -> None:
    """Regression, on pairs."""
    draw = np.random.default_rng(0)
    texts = {"sentence1": [f"word{i} warm" for i in range(200)], "sentence2": [f"sun{i} above" for i in range(200)]}
    table = pd.DataFrame({**texts, "score": draw.uniform(0, 5, 200).round(2)})
    table.iloc[:160].to_csv(tmp_path / "train.csv", index=False)
    table.iloc[160:].to_csv(tmp_path / "dev.csv", index=False)
    more = pd.DataFrame({"sentence1": texts["sentence2"], "sentence2": texts["sentence1"]}).iloc[150:]
    more.to_parquet(tmp_path / "more.parquet")
    done = follow(
        asked, dataset=str(tmp_path), unlabelled=str(tmp_path / "more.parquet"),
        data={**asked["data"], "splits": {"train": "train.csv", "eval": "dev.csv"}},
        arms=["mixkd_unlabelled", "repeats", "noise"],
    )  # fmt: skip
    ref = next(ref for _, ref in done.stages if ref.stage == "pseudo_labels")
    fresh = ref.summary["pseudo_labelled"]
    assert 0 < fresh <= 10
    teacher = bert.load(one(done, "teacher") / "model")
    part = scoring.examples(ref, "train")
    said = scoring.logits_of(bert, teacher, part, device=torch.device("cpu"))[:, 0]
    assert np.allclose(part.labels[-fresh:], said[-fresh:], atol=1e-5)
    for row in done.result["arms"]:
        assert row["loss_mixed_labels"] > 0.0
        assert row["calibration_error"] is None


def test_faults_of_unlabelled_texts_are_said_before_any_work(asked: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "wrong.csv").write_text("words\nsome\n", encoding="utf8")
    (tmp_path / "empty.txt").write_text("", encoding="utf8")
    (tmp_path / "blank.txt").write_text("\n \n", encoding="utf8")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.txt.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "latin.txt").write_bytes("caf\xe9\n".encode("latin1"))
    (tmp_path / "numbers.pdf").write_text("1\n", encoding="utf8")
    for given, rule in (
        ("wrong.csv", "has no column"), ("empty.txt", "holds no text"), ("blank.txt", "holds no text"),
        ("folder", "is a folder"), ("empty.txt.gz", "holds no text"),
        ("latin.txt", "not UTF-8"), ("numbers.pdf", "is none of"),
        ("none.csv", "no such file"),
    ):  # fmt: skip
        with pytest.raises(InputFaults) as found:
            preflight.check({**asked, "unlabelled": str(tmp_path / given)}, flow="mixkd")
        (fault,) = found.value.faults
        assert rule in str(fault)
        assert fault.field == "unlabelled"
        assert "json lines" in fault.remedy


def test_a_line_is_no_pair(asked: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("some\n", encoding="utf8")
    changes = {"dataset": str(builders.pair_csv(tmp_path)), "unlabelled": str(tmp_path / "lines.txt")}
    with pytest.raises(InputFaults, match="a text a line"):
        preflight.check({**asked, **changes}, flow="mixkd")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"arms": ["kd", "kd_unlabelled"]}, "arms"),
        ({"student": {"model": "somewhere", "scale": 0.5}}, "student.model"),
        ({"student": {"model": "somewhere"}, "teacher": "scratch"}, "student.model"),
        ({"student": {"begin": "pretrained", "scale": 0.5}}, "student.begin"),
        ({"student": {"begin": "pretrained"}, "teacher": "scratch"}, "student.begin"),
    ],
)
def test_what_cannot_be_together_is_one_message(asked: dict[str, Any], changes: dict[str, Any], field: str) -> None:
    given = {**asked, **changes}
    given["teacher_recipe"] = {**asked["teacher_recipe"], "mode": "auto"}
    with pytest.raises(InputFaults) as found:
        preflight.check(given, flow="mixkd")
    assert field in {fault.field for fault in found.value.faults}


def test_each_share_has_its_own_teacher_and_the_report_says_what_it_is_worth(asked: dict[str, Any]) -> None:
    done = follow(asked, fractions=[0.6, 0.3], teacher_rows="same", arms=["kd", "mixkd"])
    teachers = {role: ref for role, ref in done.stages if ref.stage == "teacher"}
    assert set(teachers) == {"teacher 0.6", "teacher 0.3"}, "nobody asked for one of all rows"
    for row in done.result["arms"]:
        role = f"teacher {row['role'].split()[1]}"
        assert row["teacher_value"] == done.result["scores"][role]["accuracy"]
    text = done.report.folder.joinpath("report.md").read_text(encoding="utf8")
    assert text.count("it saw the same rows") == 2


def test_an_accepted_teacher_saw_what_it_saw(asked: dict[str, Any]) -> None:
    given = {**asked, "teacher_recipe": {"mode": "accept"}, "teacher_rows": "same"}
    with pytest.raises(InputFaults) as found:
        preflight.check(given, flow="mixkd")
    assert [fault.field for fault in found.value.faults] == ["teacher_rows"]


def test_where_mixtures_weigh_nothing_no_arm_is_trained_for_longer(asked: dict[str, Any]) -> None:
    done = follow(
        asked, arms=["finetune", "kd", "mixkd"], matched=["epochs", "tokens"],
        mixup={"labels": 0.0, "teacher": 0.0}, student={**asked["student"], "prediction": 0.0},
    )  # fmt: skip
    assert {row["role"] for row in done.result["arms"]} == {"finetune", "kd", "mixkd"}
    assert len({ref.identity for _, ref in done.stages if ref.stage == "distil"}) == 1, "all are fine-tuning"


def test_an_accepted_teacher_was_never_seen_before_it_was_fine_tuned(asked: dict[str, Any]) -> None:
    given = {**asked, "teacher_recipe": {"mode": "accept"}, "student": {"begin": "pretrained"}}
    with pytest.raises(InputFaults, match="fine-tuned already"):
        preflight.check(given, flow="mixkd")


def test_the_columns_of_losses_are_the_terms_of_each_arm(asked: dict[str, Any]) -> None:
    done = follow(asked, mixup={"samples": 2})
    rows = {row["role"]: row for row in done.result["arms"]}
    assert rows["kd"]["loss_labels"] > 0.0
    assert rows["kd"]["loss_mixed_labels"] is None
    assert rows["mixkd"]["loss_mixed_prediction"] > 0.0
    assert 0.3 < rows["mixkd"]["loss_mixed_labels"] < 1.5, "a mean over mixtures, not their sum: two classes"
