"""What is wrong with a law is said before it starts, all at once."""

from pathlib import Path
from typing import Any

import pytest
from texts import write_text

from capgap_core import preflight
from capgap_core.errors import Fault, InputFaults
from capgap_core.given_text import GivenText
from capgap_core.lm_tokens import byte_tokenizer

Asked = dict[str, Any]


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    """Return the parameters of a law that would do."""
    return {"dataset": str(write_text(tmp_path)), "run": {"root": str(tmp_path / "art")}}


def faults_of(parameters: Asked) -> tuple[Fault, ...]:
    with pytest.raises(InputFaults) as caught:
        preflight.check(parameters, flow="law")
    assert not (Path(parameters["run"]["root"]) / "store").exists()
    for one in caught.value.faults:
        assert all((one.field, one.value, one.rule, one.remedy)), one
        assert "\n" not in str(one)
    return caught.value.faults


def test_what_is_right_passes_and_leaves_no_stage(asked: Asked) -> None:
    checked = preflight.check(asked, flow="law")
    assert isinstance(checked.text, GivenText)
    assert (checked.text.tokenizer, set(checked.text.sizes)) == ("bytes", {"train", "valid", "test"})
    assert not (Path(asked["run"]["root"]) / "store").exists()


WRONG: list[tuple[Asked, str, str, str]] = [
    ({"ladder": {"teachers": []}}, "ladder", "there is no teacher", "ladder.given"),
    ({"ladder": {"teachers": [5e4, 5.01e4]}}, "ladder.teachers", "50000 and 50100 come to the same shape", "teachers"),
    ({"ladder": {"students": [10]}}, "ladder.students", "no shape has about 10", "students"),
    ({"ladder": {"students": ["many"]}}, "ladder.students.0", "valid number", "students"),
    ({"ladder": {"budgets": [0]}}, "ladder.budgets.0", "greater than 0", "Tokens"),
    ({"ladder": {"seeds": [1, 1]}}, "ladder.seeds", "1 stands there more than once", "first weights"),
    ({"ladder": {"teacher_token": 3}}, "ladder.teacher_token", "no such parameter", "ladder.teacher_tokens?"),
    ({"objective": {"prediction": 0}}, "objective", "nothing would be learned", "objective.prediction"),
    ({"objective": {"prediction": 0, "labels": 1}}, "objective.prediction", "nothing from any teacher", "above 0"),
    ({"objective": {"divergence": "both"}}, "objective.divergence", "'forward' or 'reverse'", "MiniLLM"),
    ({"training": {"learning_rate": 0.6}}, "training.learning_rate", "width 32 would learn at 1.2", "0.5 or less"),
    ({"training": {"length": 4}}, "training.length", "greater than or equal to 8", "row"),
    ({"training": {"length": 8192}}, "training.length", "not two rows", "more text"),
    ({"data": {"text_columns": "body"}}, "dataset (train)", "no such column", "data.text_columns"),
    ({"data": {"tokenizer": "words"}}, "data.tokenizer", "is no folder", "bytes, trained"),
    ({"data": {"vocabulary": 5000}}, "data.vocabulary", "none is trained", "trained"),
    ({"dataset": "/nowhere/at/all"}, "dataset", "", ""),
    ({"seed": 1}, "seed", "no such parameter", "data.seed?"),
]


@pytest.mark.parametrize(("wrong", "field", "rule", "remedy"), WRONG, ids=lambda x: str(x)[:40])
def test_a_parameter_that_is_wrong(asked: Asked, wrong: Asked, field: str, rule: str, remedy: str) -> None:
    found = faults_of({**asked, **wrong})
    assert any(f.field == field and rule in f.rule and remedy in f.remedy for f in found), found


def test_everything_that_is_wrong_is_said_at_once(asked: Asked) -> None:
    wrong = {
        "dataset": "/nowhere/at/all", "data": {"tokenizer": "words", "vocabulary": 5},
        "ladder": {"budgets": [-1], "seeds": [1, 1], "students": [10], "teachers": [5e4, 5.01e4]},
        "objective": {"prediction": 0, "labels": 1}, "training": {"batch_size": 0},
    }  # fmt: skip
    fields = {one.field for one in faults_of({**asked, **wrong})}
    assert fields == {
        "dataset", "data.tokenizer", "data.vocabulary", "ladder.budgets.0", "ladder.seeds", "ladder.students",
        "ladder.teachers", "objective.prediction", "training.batch_size",
    }  # fmt: skip


def test_a_tokenizer_that_is_given_is_known_by_its_files(asked: Asked, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    byte_tokenizer().save_pretrained(folder)
    checked = preflight.check({**asked, "data": {"tokenizer": str(folder)}}, flow="law")
    assert len(checked.text.tokenizer) == 64
    empty = tmp_path / "empty"
    empty.mkdir()
    (one,) = faults_of({**asked, "data": {"tokenizer": str(empty)}})
    assert (one.field, "cannot be read" in one.rule) == ("data.tokenizer", True)
