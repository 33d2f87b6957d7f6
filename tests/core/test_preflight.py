"""What is wrong with a run is said before it starts, all at once, each with its place, value, rule and remedy."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import builders
import pytest
from safetensors.torch import load_file, save_file

import capgap_core
from capgap_core import preflight
from capgap_core.errors import Fault, InputFaults

Asked = dict[str, Any]


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    """Return the parameters of a run that would do."""
    return {"dataset": str(builders.single_csv(tmp_path)), "run": {"root": str(tmp_path / "art")}}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a teacher with two labels, day and night."""
    folder = tmp_path_factory.mktemp("teacher")
    model = builders.bert(labels=2)
    model.config.id2label, model.config.label2id = {0: "day", 1: "night"}, {"day": 0, "night": 1}
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nsun\n", encoding="utf8")
    return folder


def faults_of(parameters: Asked) -> tuple[Fault, ...]:
    """Return the faults, after seeing that nothing was begun in the store."""
    with pytest.raises(InputFaults) as caught:
        preflight.check(parameters)
    found = caught.value.faults
    root = Path(parameters.get("run", {}).get("root") or os.devnull)
    if root.is_dir():
        assert not {p.name for p in root.iterdir()} & {"store", "work", "locks", "trash"}
    for one in found:
        assert all((one.field, one.value, one.rule, one.remedy)), one
        assert "\n" not in str(one)
        assert str(one) in str(caught.value)
        assert "Traceback" not in str(one)
    return found


def only(parameters: Asked) -> Fault:
    (one,) = faults_of(parameters)
    return one


def test_what_is_right_passes_and_leaves_no_stage(asked: Asked) -> None:
    checked = preflight.check(asked)
    assert checked.corpus.labels == ("day", "night")
    assert checked.teacher is None
    assert not (Path(asked["run"]["root"]) / "store").exists()


PARAMETERS: list[tuple[Asked, str, str, str, str]] = [
    ({"student": {"scale": 0}}, "student.scale", "0", "greater than 0", "share"),
    ({"student": {"scale": 1.5}}, "student.scale", "1.5", "less than 1", "share"),
    ({"student": {"scale": 1}}, "student.scale", "1", "less than 1", "share"),
    ({"student": {"scale": float("nan")}}, "student.scale", "nan", "number", "share"),
    ({"student": {"scale": 0.5}}, "sandwich.grid", "0.5", "no scale above the target 0.5", "lower student.scale"),
    ({"sandwich": {"grid": [0.05]}}, "sandwich.grid", "0.05", "no scale above the target 0.1", "Add a scale"),
    ({"sandwich": {"grid": []}}, "sandwich.grid", "[]", "at least 1", "candidates"),
    ({"sandwich": {"grid": [0.5, 1.5]}}, "sandwich.grid.1", "1.5", "less than 1", "candidates"),
    ({"sandwich": {"grid": [0.5, 0.5]}}, "sandwich.grid", "0.5", "once", "candidates"),
    ({"tradeoff": {"lam": "much"}}, "tradeoff.lam", "much", "valid number", "λ"),
    ({"tradeoff": {"lam": -0.1}}, "tradeoff.lam", "-0.1", "greater than or equal to 0", "λ"),
    ({"tradeoff": {"lam": float("inf")}}, "tradeoff.lam", "inf", "", "λ"),
    ({"tradeoff": {"assistant": 1.0}}, "tradeoff.assistant", "1.0", "less than 1", "null"),
    ({"tradeoff": {"assistant": 0.35}}, "tradeoff.assistant", "0.35", "are 0.5, 0.4, 0.3, 0.2, 0.15", "sandwich.grid"),
    (
        {"tradeoff": {"assistant": 0.2}, "student": {"scale": 0.2}},
        "tradeoff.assistant",
        "0.2",
        "above the target 0.2 are 0.5, 0.4, 0.3",
        "one of them",
    ),
    ({"tradeoff": {"lamda": 0.3}}, "tradeoff.lamda", "0.3", "no such parameter", "tradeoff.lam?"),
    ({"student": {"sclae": 0.3}}, "student.sclae", "0.3", "no such parameter", "student.scale?"),
    ({"studnet": {"scale": 0.3}}, "studnet", "scale", "no such parameter", "student?"),
    ({"scale": 0.3}, "scale", "0.3", "no such parameter", "student.scale?"),
    ({"qqqqqqqq": 1}, "qqqqqqqq", "1", "no such parameter", "dataset, teacher"),
    ({"protocol": "papers"}, "protocol", "papers", "'capgap' or 'paper'", "paper"),
    ({"seed": 0.5}, "seed", "0.5", "integer", "Draws"),
    ({"student": 3}, "student", "3", "dictionary", ""),
    ({"teacher_recipe": {"hidden": 100, "heads": 6}}, "teacher_recipe.heads", "6", "does not divide", "divisor"),
    ({"data": {"text_columns": ["body"]}}, "data.text_columns", "body", "no such column", "label"),
    ({"data": {"label_column": "lable"}}, "data.label_column", "lable", "no such column", "label"),
    ({"data": {"metric": "f2"}}, "data.metric", "f2", "accuracy", "MRPC"),
    ({"data": {"splits": {"eval": "single.csv"}}}, "data.splits.eval", "single.csv", "of train and of eval", "another"),
    ({"evaluate": {"split": "test"}}, "evaluate.split", "test", "no test part", "dev"),
]


@pytest.mark.parametrize(("wrong", "field", "value", "rule", "remedy"), PARAMETERS, ids=lambda x: str(x)[:40])
def test_a_parameter_that_is_wrong(asked: Asked, wrong: Asked, field: str, value: str, rule: str, remedy: str) -> None:
    one = only({**asked, **wrong})
    assert one.field == field
    assert value in one.value
    assert rule in one.rule
    assert remedy in one.remedy


def written(folder: Path, name: str, content: str | bytes) -> None:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


ROWS = "".join(f"text number {i},{'ab'[i % 2]}\n" for i in range(40))
HEAD = "text,label\n"
SETS: dict[str, tuple[dict[str, str | bytes], str, str]] = {
    "one class": ({"train.csv": HEAD + ROWS.replace(",b", ",a")}, "label", "every row has the label"),
    "empty split": ({"train.csv": HEAD + ROWS, "dev.csv": HEAD}, "dev", "empty"),
    "empty train": ({"train.csv": HEAD}, "train", "empty"),
    "unseen label": ({"train.csv": HEAD + ROWS, "dev.csv": HEAD + ROWS.replace(",b", ",c")}, "", "c"),
    "not utf-8": ({"train.csv": (HEAD + ROWS).encode() + "caf\xe9,a\n".encode("latin-1")}, "train", "UTF-8"),
    "twice": ({"train.csv": "text,text,label\n" + ROWS.replace("text ", "x,text ")}, "train", "more than one column"),
    "numbers": ({"train.csv": HEAD + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(40))}, "text", "number"),
    "no text": ({"train.csv": "body,label\n" + ROWS}, "data.text_columns", "body"),
    "no files": ({"readme.md": "hello"}, "dataset", "train"),
}


@pytest.mark.parametrize("kind", SETS)
def test_a_data_set_that_is_wrong(tmp_path: Path, kind: str) -> None:
    files, field, said = SETS[kind]
    folder = tmp_path / "set"
    folder.mkdir()
    for name, content in files.items():
        written(folder, name, content)
    found = faults_of({"dataset": str(folder), "run": {"root": str(tmp_path / "art")}})
    assert any(field in f"{f.field} {f.value}" and said in f"{f.rule} {f.value}" for f in found), found


@pytest.mark.parametrize(
    "dataset",
    [
        "nowhere.csv",
        "/nowhere/at/all",
        "../nowhere",
        "glue/../etc",
        "a\0b",
        "/tmp/a\0b",
        " ",
        "~nosuchuser/x",
        "a" * 900,
        "b" * 300 + "/c",
    ],
)
def test_a_data_set_that_is_not_there(tmp_path: Path, dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    one = only({"dataset": dataset, "run": {"root": str(tmp_path / "art")}})
    assert one.field == "dataset"
    assert one.value[:20] == seen(dataset)[:20]


def seen(given: str) -> str:
    """Return how a fault shows what was given: in quotes where it is blank, a NUL as an escape."""
    return (given if given.strip() else repr(given)).replace("\0", "\\x00")


@pytest.mark.parametrize(
    "teacher", ["/nowhere/at/all", "./nowhere", "../nowhere", "a\0b", "a/b/c", " ", "~nosuchuser/x", "a" * 900]
)
def test_a_teacher_that_is_not_there(asked: Asked, teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    one = only({**asked, "teacher": teacher})
    assert (one.field, one.value[:20]) == ("teacher", seen(teacher)[:20])


def test_a_teacher_for_this_task_is_accepted_and_any_other_form_is_said(asked: Asked, tuned: Path) -> None:
    accepted = preflight.check({**asked, "teacher": str(tuned)}).teacher
    assert accepted is not None
    assert (accepted.mode, accepted.family, accepted.hidden) == ("accept", "bert", 32)
    again = preflight.check({**asked, "teacher": str(tuned), "teacher_recipe": {"mode": "finetune"}}).teacher
    assert again is not None
    assert again.mode == "finetune"


def changed(tuned: Path, tmp_path: Path, **config: object) -> Path:
    folder = tmp_path / "changed"
    shutil.copytree(tuned, folder)
    held = json.loads((folder / "config.json").read_text(encoding="utf8"))
    (folder / "config.json").write_text(json.dumps({**held, **config}), encoding="utf8")
    return folder


def test_a_teacher_folder_without_weights(asked: Asked, tuned: Path, tmp_path: Path) -> None:
    folder = changed(tuned, tmp_path)
    (folder / "model.safetensors").unlink()
    one = only({**asked, "teacher": str(folder)})
    assert one.field == "teacher"
    assert "holds no weights" in one.rule
    assert "model.safetensors" in one.remedy
    (folder / "vocab.txt").unlink()
    rules = {fault.rule for fault in faults_of({**asked, "teacher": str(folder)})}
    assert rules == {"the folder holds no weights", "the folder holds no tokenizer"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", b"{", "cannot be read"),
        ("config.json", b"[]", "not a model's"),
        ("config.json", b"\xff", "cannot be read"),
        ("config.json", b'{"model_type": "t5", "hidden_size": 32}', "t5"),
        ("config.json", None, "no config.json"),
        ("model.safetensors", b"\x00" * 20, "cannot be read"),
        ("model.safetensors", b"", "cannot be read"),
    ],
)
def test_a_teacher_whose_files_are_broken(
    asked: Asked, tuned: Path, tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    folder = changed(tuned, tmp_path)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    one = only({**asked, "teacher": str(folder)})
    assert one.field == "teacher"
    assert said in one.rule


def test_a_teacher_of_another_number_of_labels(asked: Asked, tmp_path: Path) -> None:
    builders.bert(labels=3).save_pretrained(tmp_path / "three")
    (tmp_path / "three" / "vocab.txt").write_text("[PAD]\n", encoding="utf8")
    one = only({**asked, "teacher": str(tmp_path / "three")})
    assert one.field == "teacher"
    assert "3 labels, the data set has 2" in one.rule
    assert "teacher_recipe.mode=finetune" in one.remedy
    finetuned = preflight.check({**asked, "teacher": str(tmp_path / "three"), "teacher_recipe": {"mode": "finetune"}})
    assert finetuned.teacher is not None


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"hidden_size": None}, "hidden_size = None"),
        ({"hidden_size": True}, "hidden_size = True"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"id2label": {"yes": "day", "no": "night"}}, "id2label"),
        ({"id2label": ["day", "night"]}, "id2label"),
        ({"num_hidden_layers": 3}, "encoder.layer.2.output.dense.weight is missing"),
        ({"hidden_size": 64}, "(60, 64)"),
        ({"vocab_size": 5}, "word_embeddings"),
    ],
)
def test_a_teacher_whose_config_is_wrong(
    asked: Asked, tuned: Path, tmp_path: Path, config: dict[str, Any], said: str
) -> None:
    found = faults_of({**asked, "teacher": str(changed(tuned, tmp_path, **config))})
    assert {one.field for one in found} == {"teacher"}
    assert any(said in one.rule for one in found)


def test_a_config_that_leaves_sizes_out_means_the_usual_ones(asked: Asked, tuned: Path, tmp_path: Path) -> None:
    folder = changed(tuned, tmp_path)
    held = json.loads((folder / "config.json").read_text(encoding="utf8"))
    del held["hidden_size"]
    (folder / "config.json").write_text(json.dumps(held), encoding="utf8")
    assert any("(60, 768)" in one.rule for one in faults_of({**asked, "teacher": str(folder)}))


def test_a_tokenizer_of_another_model(asked: Asked, tuned: Path, tmp_path: Path) -> None:
    folder = changed(tuned, tmp_path)
    (folder / "vocab.txt").write_text("\n".join(f"piece{i}" for i in range(61)), encoding="utf8")
    assert "61 pieces, its embeddings 60" in only({**asked, "teacher": str(folder)}).rule


def test_lengths_that_the_teacher_has_no_positions_for(asked: Asked, tuned: Path) -> None:
    parameters = {**asked, "teacher": str(tuned), "data": {"max_length": 129}, "evaluate": {"length": 200}}
    found = faults_of(parameters)
    assert {(one.field, one.value) for one in found} == {("data.max_length", "129"), ("evaluate.length", "200")}
    assert all("128 positions" in one.rule for one in found)


@pytest.mark.parametrize("lacking", ["pooler", "architecture"])
def test_a_head_that_was_not_trained_for_sequences_is_not_accepted(
    asked: Asked, tuned: Path, tmp_path: Path, lacking: str
) -> None:
    other = {"architectures": ["BertForTokenClassification"]} if lacking == "architecture" else {}
    folder = changed(tuned, tmp_path, **other)
    if lacking == "pooler":
        state = load_file(folder / "model.safetensors")
        save_file({k: v for k, v in state.items() if "pooler" not in k}, folder / "model.safetensors")
    checked = preflight.check({**asked, "teacher": str(folder)}).teacher
    assert checked is not None
    assert checked.mode == "finetune"


def test_what_is_meant_is_taken(asked: Asked, tmp_path: Path) -> None:
    """One text column without brackets, and names that JSON takes for numbers."""
    (tmp_path / "numbered.csv").write_text(
        "1,2\n" + "".join(f"some text {i},{i % 2}\n" for i in range(40)), encoding="utf8"
    )
    parameters = {**asked, "dataset": str(tmp_path / "numbered.csv"), "data": {"text_columns": "1", "label_column": 2}}
    checked = preflight.check(parameters).parameters
    assert (checked.data.text_columns, checked.data.label_column) == (("1",), "2")


def test_a_part_that_is_given_whole_is_told_its_fields(asked: Asked) -> None:
    one = only({**asked, "student": 0.05})
    assert one.field == "student"
    assert "student.scale" in one.remedy


def test_a_fault_of_one_field_hides_no_other(asked: Asked, tmp_path: Path) -> None:
    parameters = {
        "dataset": str(tmp_path / "nowhere"), "teacher": "/nowhere/either", "data": {"max_length": 4},
        "teacher_recipe": {"epochs": -1}, "student": {"scale": 0.6}, "sandwich": {"epochs": -1},
        "run": {"root": asked["run"]["root"], "device": "cuda:77"},
    }  # fmt: skip
    assert {one.field for one in faults_of(parameters)} == {
        "dataset", "teacher", "data.max_length", "teacher_recipe.epochs", "sandwich.grid", "sandwich.epochs",
        "run.device",
    }  # fmt: skip


def test_what_follows_from_a_fault_is_not_another(asked: Asked) -> None:
    assert only({**asked, "sandwich": {"grid": [2.0]}}).field == "sandwich.grid.0"
    assert only({**asked, "student": {"scale": 1.5}, "sandwich": {"grid": [0.05]}}).field == "student.scale"
    assert only({**asked, "data": {"label_column": ["a"]}}).field == "data.label_column"


@pytest.mark.parametrize("rows", [["the same words again and again"] * 60, [f"text {i}" for i in range(60)]])
def test_rows_of_which_no_part_can_be_cut(asked: Asked, tmp_path: Path, rows: list[str]) -> None:
    """All of one text, or each of a class of its own."""
    labels = [i if len(set(rows)) > 1 else i % 2 for i in range(len(rows))]
    lines = [f"{text},{label}" for text, label in zip(rows, labels, strict=True)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *lines]), encoding="utf8")
    one = only({**asked, "dataset": str(tmp_path / "rows.csv")})
    assert (one.field, one.value) == ("dataset", "60 rows in train")
    assert "nothing is left" in one.rule


def test_a_teacher_with_its_labels_in_another_order(asked: Asked, tuned: Path, tmp_path: Path) -> None:
    folder = changed(tuned, tmp_path, id2label={"0": "night", "1": "day"})
    one = only({**asked, "teacher": str(folder)})
    assert "another order" in one.rule


@pytest.mark.parametrize("place", ["below a file", "a file", "NUL", "none", "no name"])
def test_a_store_that_cannot_be_written(asked: Asked, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("here first", encoding="utf8")
    roots = {
        "below a file": f"{tmp_path}/file/art",
        "a file": f"{tmp_path}/file",
        "NUL": f"{tmp_path}/a\0b",
        "none": None,
        "no name": "",
    }
    one = only({**asked, "run": {"root": roots[place]}})
    assert one.field == "run.root"
    assert "Give a folder" in one.remedy
    assert (tmp_path / "file").read_text(encoding="utf8") == "here first"


def test_a_device_that_is_not_there(asked: Asked) -> None:
    one = only({**asked, "run": {**asked["run"], "device": "tpu"}})
    assert one.field == "run.device"


def test_all_faults_are_said_at_once(tmp_path: Path, tuned: Path) -> None:
    folder = changed(tuned, tmp_path)
    (folder / "model.safetensors").unlink()
    found = faults_of(
        {
            "dataset": str(builders.single_csv(tmp_path, one_class=True)), "teacher": str(folder), "seeed": 3,
            "student": {"scale": 1.5, "epoch": 2}, "tradeoff": {"lam": "much"}, "sandwich": {"grid": [2.0, 0.5]},
            "run": {"root": str(tmp_path / "changed" / "config.json" / "art")},
        }
    )  # fmt: skip
    fields = [fault.field for fault in found]
    expected = ["seeed", "student.scale", "student.epoch", "tradeoff.lam", "sandwich.grid.0", "run.root", "teacher"]
    assert set(expected) <= set(fields)
    assert len(fields) == len(set(fields)) == len(expected) + 1
    assert any("every row has the label" in fault.rule for fault in found)


def test_the_check_takes_seconds_and_no_torch(asked: Asked) -> None:
    code = (
        "import json, sys\nfrom capgap_core import preflight\nfrom capgap_core.errors import InputFaults\n"
        "try:\n    preflight.check(json.load(sys.stdin))\nexcept InputFaults as error:\n    print(error)\n"
        "assert 'torch' not in sys.modules and 'prefect' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps({**asked, "student": {"scale": 0}}),
        cwd=Path(capgap_core.__file__).parents[1], capture_output=True, text=True, check=False, timeout=10,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 fault in the input:\n  - student.scale = 0:")


def test_splits_may_name_the_selection_alone(tmp_path: Path) -> None:
    """What the report advises for a teacher that came fine-tuned: the other parts are still found by name."""
    folder = tmp_path / "set"
    folder.mkdir()
    for name, rows in (("train", 60), ("dev", 20), ("clean", 20)):
        lines = [f"{name} text number {i} is {'good' if i % 2 else 'bad'},{i % 2}" for i in range(rows)]
        (folder / f"{name}.csv").write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf8")
    asked = {
        "dataset": str(folder),
        "data": {"splits": {"selection": "clean.csv"}},
        "run": {"root": str(tmp_path / "art")},
    }
    parts = preflight.check(asked).corpus.parts
    assert {name: len(part.labels) for name, part in parts.items()} == {"train": 60, "eval": 20, "selection": 20}


def test_a_refused_run_leaves_what_another_keeps_meanwhile(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run reads its data set while this one looks at its teacher."""
    kept = Path(asked["run"]["root"]) / "cache" / "of-another"

    def slow(*_: object, **__: object) -> None:
        kept.mkdir(parents=True)
        raise InputFaults([Fault(field="teacher", value="x", rule="no", remedy="yes")])

    monkeypatch.setattr(preflight, "inspect", slow)
    only({**asked, "teacher": "x"})
    assert kept.is_dir()
    assert [path.name for path in kept.parent.iterdir()] == ["of-another"]


def test_what_was_read_is_kept_where_the_input_is_good(asked: Asked) -> None:
    preflight.check(asked)
    cache = Path(asked["run"]["root"]) / "cache"
    (kept,) = cache.iterdir()
    before = sorted((path, path.stat().st_mtime_ns) for path in kept.rglob("*.arrow"))
    assert before
    preflight.check(asked)
    assert sorted((path, path.stat().st_mtime_ns) for path in kept.rglob("*.arrow")) == before
    assert [path.name for path in cache.iterdir()] == [kept.name]
