"""Parameters of the command line: dots, JSON, files, and every fault at once."""

import pytest

from capgap_core.recipes import Minidisc
from flows.params import gather, listing
from flows.places import rooted


def test_dots_expand_and_values_are_json_or_text():
    pairs = [
        "student.scale=0.05",
        "sandwich.grid=[0.5,0.2]",
        "dataset=glue/sst2",
        "data.label_column=null",
        "teacher=a=b",
    ]
    parameters, faults = gather(pairs, None)
    assert faults == []
    assert parameters == {
        "student": {"scale": 0.05}, "sandwich": {"grid": [0.5, 0.2]}, "dataset": "glue/sst2",
        "data": {"label_column": None}, "teacher": "a=b",
    }  # fmt: skip


def test_a_part_may_be_given_whole_and_by_dots():
    parameters, faults = gather(['student={"scale":0.05}', "student.epochs=2"], None)
    assert (parameters, faults) == ({"student": {"scale": 0.05, "epochs": 2}}, [])


@pytest.mark.parametrize(
    "pairs", [["seed=1", "seed=2"], ["student=3", "student.scale=0.1"], ["student.scale=0.1", "student=3"]]
)
def test_values_that_conflict_are_a_fault(pairs):
    _, faults = gather(pairs, None)
    assert ["twice" in f.rule for f in faults] == [True]


def test_the_pairs_go_over_the_file(tmp_path):
    file = tmp_path / "p.json"
    file.write_text('{"student": {"scale": 0.05, "epochs": 1}, "seed": 3}')
    parameters, faults = gather(["student.scale=0.2"], str(file))
    assert (parameters, faults) == ({"student": {"scale": 0.2, "epochs": 1}, "seed": 3}, [])


@pytest.mark.parametrize("text", ["{", "[1]", b"\xff\xfe"])
def test_a_file_that_is_no_json_object_is_a_fault(tmp_path, text):
    file = tmp_path / "p.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    parameters, faults = gather(["scale", ".=1"], str(file))
    assert parameters == {}
    assert [f.field for f in faults] == ["--params", "-p", "-p"]


def test_a_missing_file_is_a_fault(tmp_path):
    assert [f.field for f in gather([], str(tmp_path / "none.json"))[1]] == ["--params"]


def test_the_store_is_absolute_and_what_is_no_object_is_left_to_the_check(monkeypatch, tmp_path):
    monkeypatch.setenv("CAPGAP_ARTIFACTS", str(tmp_path))
    assert rooted({}) == {"run": {"root": str(tmp_path)}}
    monkeypatch.chdir(tmp_path)
    assert rooted({"run": {"root": "here"}})["run"]["root"] == str(tmp_path / "here")
    assert rooted({"run": 3}) == {"run": 3}
    assert rooted({"run": {"root": 3}}) == {"run": {"root": 3}}


def test_the_help_lists_every_parameter_with_its_default():
    text = listing(Minidisc)
    for name in ("seed = 1", "student.scale = 0.1", "sandwich.grid = [0.5, 0.4, 0.3, 0.2, 0.15]", "run.root = null"):
        assert f"\n  {name}\n" in text
    leaves = sum(len(getattr(f.annotation, "model_fields", {"": 0})) for f in Minidisc.model_fields.values())
    assert text.count(" = ") == leaves
