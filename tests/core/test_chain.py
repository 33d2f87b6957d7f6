"""The whole chain without Prefect: what runs again when something changes, and what does not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import builders
import pytest

import capgap_core

RUNNER = """
import json, sys
hide("prefect", "matplotlib")
from pathlib import Path
import capgap_core
from capgap_core import chain
from capgap_core.recipes import Minidisc

package, *asked = json.load(sys.stdin)
assert Path(capgap_core.__file__).parent == Path(package), capgap_core.__file__
for parameters in asked:
    p = Minidisc.model_validate(parameters)
    done = chain.minidisc(**{name: getattr(p, name) for name in parameters})
    print(json.dumps(done.result))
assert not {"prefect", "matplotlib"} & set(sys.modules)
"""
TRAINED = {"teacher teacher", "sandwich candidate", "distil student", "distil direct", "distil direct_flops"}


def run(package: Path, *asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the results of runs in a process of its own, with the package that lies at a place."""
    done = subprocess.run(
        [sys.executable, "-c", builders.HIDE + RUNNER],
        input=json.dumps([str(package), *asked]), capture_output=True, text=True, check=False, cwd=package.parent,
        env={**os.environ, "PYTHONPATH": str(package.parent), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def made(result: dict[str, Any]) -> set[str]:
    """Return the stages that ran, each with its role."""
    return {f"{s['stage']} {s['role']}".strip() for s in result["stages"] if not s["reused"]}


def every(result: dict[str, Any]) -> set[str]:
    return {f"{s['stage']} {s['role']}".strip() for s in result["stages"]}


def copied(target: Path, *edits: tuple[str, str, str]) -> Path:
    """Copy the package and edit it: (module, old text, new text)."""
    package = target / "capgap_core"
    shutil.copytree(Path(capgap_core.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for module, old, new in edits:
        path = package / module
        text = path.read_text(encoding="utf8")
        assert text.count(old) == 1, (module, old)
        path.write_text(text.replace(old, new), encoding="utf8")
    return package


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the parameters of a run; at so large a λ the smaller of the two candidates is always chosen."""
    folder = tmp_path_factory.mktemp("chain")
    return {
        **builders.TINY, "dataset": str(builders.single_csv(folder)), "tradeoff": {"lam": 100.0},
        "run": {"root": str(folder / "art"), "threads": 1},
    }  # fmt: skip


@pytest.fixture(scope="module")
def results(asked: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the results of a run, the same again, another λ with the same pick, another pick, and that asked for."""
    variants = [{"lam": 100.0}, {"lam": 100.0}, {"lam": 50.0}, {"lam": 0.0}, {"lam": 100.0, "assistant": 0.75}]
    package = copied(tmp_path_factory.mktemp("pristine"))
    return run(package, *({**asked, "tradeoff": variant} for variant in variants))


def test_the_whole_chain_runs_without_prefect_and_matplotlib(results: list[dict[str, Any]]) -> None:
    first = results[0]
    assert made(first) == every(first)
    assert every(first) == TRAINED | {
        "data", "importance", "candidates candidate", "tradeoff assistant", "report",
        *(f"evaluate {role}" for role in ("teacher", "candidate", "slimmed", "student", "direct", "direct_flops")),
    }  # fmt: skip
    assert first["steps_trained"] > 0
    assert first["chosen_scale"] == 0.3
    assert {"teacher", "assistant", "student", "direct", "direct_flops", "slimmed"} == set(first["scores"])
    assert first["scores"]["teacher"]["accuracy"] > first["constant"]
    assert Path(first["paths"]["report"]).is_file()
    assert (Path(first["paths"]["student"]) / "model.safetensors").is_file()


def test_a_second_run_makes_nothing(results: list[dict[str, Any]]) -> None:
    first, second, *_ = results
    assert made(second) == set()
    assert second["steps_trained"] == 0
    assert [s["digest"] for s in second["stages"]] == [s["digest"] for s in first["stages"]]
    assert second["scores"] == first["scores"]
    assert {s["why"] for s in second["stages"]} == {"finished before"}


def test_another_lambda_with_the_same_pick_only_chooses_and_reports(results: list[dict[str, Any]]) -> None:
    same = results[2]
    assert same["chosen_scale"] == 0.3
    assert made(same) == {"tradeoff assistant", "report"}
    assert same["steps_trained"] == 0


def test_another_pick_trains_another_student(results: list[dict[str, Any]]) -> None:
    other = results[3]
    assert other["chosen_scale"] == 0.75
    assert {"tradeoff assistant", "distil student", "evaluate student", "report"} <= made(other)
    assert not made(other) & {"data", "teacher teacher", "importance", "sandwich candidate", "candidates candidate"}
    assert not made(other) & {"distil direct", "evaluate direct", "evaluate teacher", "evaluate slimmed"}


def test_another_pick_trains_nothing_but_the_student(results: list[dict[str, Any]]) -> None:
    assert made(results[3]) == {"tradeoff assistant", "distil student", "evaluate student", "report"}


def test_an_assistant_that_is_asked_for_gives_the_student_of_one_that_was_chosen(results: list[dict[str, Any]]) -> None:
    chosen, asked_for = results[3:]
    assert made(asked_for) == {"tradeoff assistant", "report"}
    assert (asked_for["chosen_scale"], asked_for["best_scale"], asked_for["margin"]) == (0.75, 0.3, None)
    assert chosen["best_scale"] is None
    assert asked_for["scores"] == chosen["scores"]
    report = Path(asked_for["paths"]["report"]).read_text(encoding="utf8")
    assert "the assistant, 0.75, was asked for (`tradeoff.assistant`) and not chosen: by t it would be 0.3" in report
    assert "| **asked for** |" in report
    assert "| best t |" in report
    assert "chosen**" not in report


def test_words_in_the_code_move_nothing_and_all_bytes_come_again(
    asked: dict[str, Any], results: list[dict[str, Any]], tmp_path: Path
) -> None:
    package = copied(
        tmp_path,
        ("losses.py", "import torch\n", "import torch  # tensors\n"),
        ("plan.py", '"""Decide how many', '"""Say how many'),
        ("training.py", '"Lower the learning rate, or train with', '"Take a lower learning rate, or train with'),
        ("errors.py", "a recipe, a data set", "recipe, data set"),
    )
    (again, elsewhere) = run(package, asked, {**asked, "run": {**asked["run"], "root": str(tmp_path / "art")}})
    assert made(again) == set()
    assert [s["code"] for s in again["stages"]] == [s["code"] for s in results[0]["stages"]]
    # And what another process makes anew in another place is the same to the byte.
    assert made(elsewhere) == every(elsewhere)
    assert [s["digest"] for s in elsewhere["stages"]] == [s["digest"] for s in results[0]["stages"]]


def test_a_constant_runs_the_stages_whose_code_holds_it(
    asked: dict[str, Any], results: list[dict[str, Any]], tmp_path: Path
) -> None:
    """This one is of other code and of the same bytes: a model of two layers has all of them compared either way."""
    package = copied(tmp_path, ("losses.py", "layers // 6))", "layers // 7))"))
    anything = {**asked, "run": {**asked["run"], "reuse": "any-code"}}
    accepted, strict = run(package, anything, asked)
    assert made(accepted) == set()
    old = results[0]
    changed = {
        f"{a['stage']} {a['role']}".strip()
        for a, b in zip(old["stages"], strict["stages"], strict=True)
        if a["code"] != b["code"]
    }
    assert changed == made(strict) == TRAINED | {"importance"}
    assert {s["why"] for s in strict["stages"] if not s["reused"]} == {"the code has changed since it was made"}
    others = {
        f"{s['stage']} {s['role']}".strip() for s in accepted["stages"] if s["why"].startswith("made by other code")
    }
    assert others == changed
    # The bytes are the same in another process and by other code, so nothing that follows ran.
    assert [s["digest"] for s in strict["stages"]] == [s["digest"] for s in old["stages"]]


def test_another_metric_or_other_label_words_reach_every_stage_that_reads_them(
    asked: dict[str, Any], results: list[dict[str, Any]], tmp_path: Path
) -> None:
    renamed = Path(asked["dataset"]).with_name("renamed.csv")
    text = Path(asked["dataset"]).read_text(encoding="utf8")
    renamed.write_text(text.replace("day", "hot").replace("night", "warm"), encoding="utf8")
    package = copied(tmp_path)
    matthews = {**asked, "data": {**asked["data"], "metric": "matthews"}}
    other, words = run(package, matthews, {**asked, "dataset": str(renamed)})
    assert other["metric"] == "matthews"
    assert set(other["scores"]["student"]) == {"matthews"}
    assert "teacher teacher" in made(other)
    config = json.loads((Path(words["paths"]["student"]) / "config.json").read_text(encoding="utf8"))
    assert sorted(config["id2label"].values()) == ["hot", "warm"]


EDITED = """
import json, sys
from pathlib import Path
from capgap_core import fingerprint
from capgap_core.errors import StageFailed
from capgap_core.recipes import Minidisc

package, parameters, when = json.load(sys.stdin)
p = Minidisc.model_validate(parameters)
given = {name: getattr(p, name) for name in parameters}
code = Path(package) / "losses.py"

def edit():
    text = code.read_text(encoding="utf8")
    code.write_text(text.replace("layers // 6))", "layers // 7))"), encoding="utf8")

if when == "before it is loaded":
    edit()
from capgap_core import chain
if when == "after it is loaded":
    chain.minidisc(**given)
    edit()
    given = {**given, "seed": 2}
try:
    print(json.dumps(chain.minidisc(**given).result))
except StageFailed as error:
    print(json.dumps(str(error)))
"""


@pytest.mark.parametrize("when", ["before it is loaded", "after it is loaded"])
def test_code_that_is_edited_under_a_running_process_is_never_another_codes_result(
    asked: dict[str, Any], results: list[dict[str, Any]], tmp_path: Path, when: str
) -> None:
    package = copied(tmp_path)
    parameters = {**asked, "run": {**asked["run"], "root": str(tmp_path / "art")}}
    done = subprocess.run(
        [sys.executable, "-c", EDITED], input=json.dumps([str(package), parameters, when]), capture_output=True,
        text=True, check=False, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    if when == "before it is loaded":
        assert "losses.py changed while this process was running" in said
        assert "Start the run again" in said
    else:  # what runs is in memory, and is stored as what it is
        assert [s["code"] for s in said["stages"]] == [s["code"] for s in results[0]["stages"]]
