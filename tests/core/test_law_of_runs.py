"""The law of assistants: runs of minidisc as a grid, which of them go together, and what their students say."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest

from capgap_core import assistant_findings as findings, chain, law, preflight, report_assistants, tables
from capgap_core.chain import in_this_process
from capgap_core.errors import Fault, InputFaults, fault
from capgap_core.markdown import short
from capgap_core.outcome import Outcome
from capgap_core.progress import Silent
from capgap_core.recipes import Minidisc

Asked = dict[str, Any]
GRID = [0.9, 0.75, 0.5]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """Return the parameters of a run whose one control would be trained for nothing."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        **builders.TINY, "dataset": str(builders.single_csv(folder)), "sandwich": {"grid": GRID, "epochs": 0.2},
        "teacher_recipe": {**builders.TINY["teacher_recipe"], "epochs": 2},
        "student": {"scale": 0.2, "epochs": 0.2, "controls": False}, "run": {"root": str(folder / "art"), "threads": 1},
    }  # fmt: skip


def ran(asked: Asked, **changes: Any) -> Outcome:
    """Run minidisc with changed parts, as ``student={"scale": 0.1}``."""
    parts = {name: {**asked.get(name, {}), **v} if isinstance(v, dict) else v for name, v in changes.items()}
    p = Minidisc.model_validate({**asked, **parts})
    return chain.minidisc(**{name: getattr(p, name) for name in {**asked, **parts}})


@pytest.fixture(scope="module")
def runs(asked: Asked) -> list[Outcome]:
    """Return runs of two students with two assistants each; of the first pair one has controls."""
    return [
        ran(asked, student={"scale": scale, "controls": (scale, ta) == (0.2, 0.5)}, tradeoff={"assistant": ta})
        for scale in (0.2, 0.1)
        for ta in (0.5, 0.9)
    ]


def folders(runs: Sequence[Outcome]) -> list[str]:
    return [str(run.report.folder) for run in runs]


def fitted(asked: Asked, references: Sequence[str]) -> Outcome:
    checked = preflight.check({"references": list(references), "run": asked["run"]}, flow="law")
    return law.follow(checked, in_this_process(Silent()))


def faults_of(parameters: Asked) -> tuple[Fault, ...]:
    with pytest.raises(InputFaults) as caught:
        preflight.check(parameters, flow="law")
    for one in caught.value.faults:
        assert all((one.field, one.value, one.rule, one.remedy)), one
        assert "\n" not in str(one)
    return caught.value.faults


def test_each_run_is_a_cell_whose_teacher_is_its_assistant(asked: Asked, runs: list[Outcome]) -> None:
    made = fitted(asked, folders(runs))
    rows = tables.read(made.report.table("cells"))
    taught = [row for row in rows if row["role"] == "student"]
    assert [(row["scale"], row["teacher_scale"]) for row in taught] == [(0.1, 0.5), (0.1, 0.9), (0.2, 0.5), (0.2, 0.9)]
    by_scales = {(run.result["sizes"]["student"]["non_embedding"], run.result["chosen_scale"]): run for run in runs}
    for row in taught:
        run = by_scales[row["parameters"], row["teacher_scale"]]
        student = next(s for s in run.result["stages"] if (s["stage"], s["role"]) == ("distil", "student"))
        assert row["identity"] == student["identity"]
        assert row["value"] == run.result["scores"]["student"]["accuracy"]
        assert row["teacher"] == run.result["sizes"]["assistant"]["non_embedding"]
        assert row["teacher_value"] == run.result["scores"]["assistant"]["accuracy"]
        assert (row["seed"], row["metric"], row["n"]) == (1, "accuracy", run.result["n"])
    (direct,) = (row for row in rows if row["role"] == "direct")
    assert (direct["scale"], direct["teacher_scale"]) == (0.2, 1.0)
    assert direct["value"] == runs[0].result["scores"]["direct"]["accuracy"]
    cells = findings.cells_of(rows)
    assert len(cells) == 4, "students of the teacher itself begin elsewhere, and are in no fit"
    np.testing.assert_allclose(cells.loss, [1 - row["value"] for row in taught])


def test_a_small_grid_says_so_and_names_no_assistant(asked: Asked, runs: list[Outcome]) -> None:
    for references in (folders(runs), folders(runs[:1])):
        made = fitted(asked, references)
        assert {row["found"] for row in made.result["optima"]} == {"too few teachers"}
        assert all(row["teacher"] is None for row in made.result["optima"])
        report = (made.report.folder / "report.md").read_text(encoding="utf8")
        assert "**No law of the best assistant can be estimated" in report
        assert "Apple's law: not estimable" in report
        assert "worth its cost is not asked here" in report
        assert "grows as" not in report
    assert made.result["steps_trained"] == 0
    assert made.result["scores"].keys() == {"0.2 of 0.5", "0.2 of the teacher"}
    assert "direct" in report


def test_a_cell_given_twice_is_taken_once_and_a_second_time_nothing_is_made(asked: Asked, runs: list[Outcome]) -> None:
    chosen = ran(asked, student={"scale": 0.1}, tradeoff={"lam": 0.0})
    same = next(r for r in runs[2:] if r.result["chosen_scale"] == chosen.result["chosen_scale"])
    assert chosen.report.identity != same.report.identity
    made = fitted(asked, folders([*runs, chosen]))
    assert len(tables.read(made.report.table("cells"))) == 5
    assert "5 runs of minidisc, 4 students" in (made.report.folder / "report.md").read_text(encoding="utf8")
    again = fitted(asked, folders([*runs, chosen]))
    assert [stage["reused"] for stage in again.result["stages"]] == [True]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"data": {"max_length": 12}}, "its data is not that of {0}: max_length = 12, not 16"),
        ({"teacher_recipe": {"epochs": 1}}, "its teacher is not that of {0}: training.steps = "),
        ({"student": {"scale": 0.2, "epochs": 0.4}}, "its student is not that of {0}: training.steps = "),
        ({"sandwich": {"epochs": 0.4}}, "its sandwich is not that of {0}: training.steps = "),
        ({"sandwich": {"grid": [0.9, 0.5]}}, "its candidates are 0.9, 0.5, and by the grid of the others 0.9, 0.75"),
    ],
    ids=["data", "teacher", "student", "sandwich", "grid"],
)  # fmt: skip
def test_a_run_that_does_not_go_with_the_others_is_named(
    asked: Asked, runs: list[Outcome], changes: Asked, rule: str
) -> None:
    odd = ran(asked, tradeoff={"assistant": 0.5}, **changes)
    given = folders([odd, *runs])
    (one,) = faults_of({"references": given, "run": asked["run"]})
    assert (one.field, one.value) == ("references", fault("", given[0], "", "").value)
    assert rule.format(given[1])[:100] in one.rule
    assert "leave it out" in one.remedy


def test_another_seed_is_another_column_of_the_grid(asked: Asked, runs: list[Outcome]) -> None:
    other = ran(asked, seed=2, tradeoff={"assistant": 0.5})
    made = fitted(asked, folders([*runs, other]))
    rows = [row for row in tables.read(made.report.table("cells")) if row["scale"] == 0.2]
    assert {(row["teacher_scale"], row["seed"]) for row in rows} >= {(0.5, 1), (0.5, 2), (0.9, 1)}


def test_models_of_other_code_are_taken_where_that_is_asked_for_and_said(
    asked: Asked, runs: list[Outcome], tmp_path: Path
) -> None:
    """The report of a run whose student other code made; its record says so, and is sealed as any."""
    from capgap_core import store

    root = tmp_path / "art"
    shutil.copytree(asked["run"]["root"], root)
    given = [folder.replace(asked["run"]["root"], str(root)) for folder in folders(runs)]
    record = store.read_record(Path(given[0]))
    item = record.inputs["student"]
    place = root.joinpath("store", "distil", item["identity"])
    other = store.read_record(place / item["code"]).model_copy(update={"code": "0" * 16})
    (place / item["code"]).rename(place / ("0" * 16))
    (place / ("0" * 16) / store.RECORD).write_text(store.sealed(other.model_dump(mode="json")), encoding="utf8")
    moved = record.model_copy(update={"inputs": {**record.inputs, "student": {**item, "code": "0" * 16}}})
    (Path(given[0]) / store.RECORD).write_text(store.sealed(moved.model_dump(mode="json")), encoding="utf8")
    here = {"root": str(root), "threads": 1}
    (one,) = faults_of({"references": given, "run": here})
    assert one.rule.startswith("made by other code than")
    assert one.rule.endswith(": student")
    assert "run.reuse=any-code" in one.remedy
    made = fitted({"run": {**here, "reuse": "any-code"}}, given)
    assert "models were made by different code" in (made.report.folder / "report.md").read_text(encoding="utf8")


def as_a_run(root: Path, run_id: str, **held: Any) -> Path:
    """Write the result of a run as a flow does."""
    folder = root / "runs" / run_id
    folder.mkdir(parents=True)
    result = {"flow": "minidisc", "status": "completed", "stages": [], **held}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf8")
    return folder


def test_a_run_is_found_by_its_names_and_every_name_that_is_none_is_told_at_once(
    asked: Asked, runs: list[Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "art"
    shutil.copytree(asked["run"]["root"], root)
    report = runs[0].report
    folder = as_a_run(root, "77a1", stages=runs[0].result["stages"])
    as_a_run(root, "77b2", stages=runs[1].result["stages"])
    as_a_run(root, "c1", flow="mixkd")
    as_a_run(root, "c2", status="failed")
    as_a_run(root, "c3", stages=3)
    (root / "runs" / "c4").mkdir()
    here = {"root": str(root), "threads": 1}
    for name in ("77a1", "77a", str(folder), f"report/{report.identity[:12]}"):
        checked = preflight.check({"references": name, "run": here}, flow="law")
        assert [run.report.digest for run in checked.runs] == [report.digest]
    monkeypatch.chdir(root / "runs")
    checked = preflight.check({"references": "./77a1", "run": here}, flow="law")
    assert checked.runs[0].report.folder.is_absolute()
    data = runs[0].stages[0][1].folder
    wrong = {
        "77": "could be any of runs/77a1, runs/77b2", "nobody": "no run and no report of", "c1": "is a run of mixkd",
        "c2": "the run is failed", "c3": "not what a run writes", "c4": "has not ended",
        "x\0y": "no run and no report of",
        "x" * 300: "cannot be read",
        str(data): "is a stage data", "report/ffff": "no run and no report of",
    }  # fmt: skip
    found = faults_of({"references": list(wrong), "run": here})
    assert len(found) == len(wrong)
    for one, (name, rule) in zip(found, wrong.items(), strict=True):
        assert one.value == fault("", name, "", "").value
        assert rule in one.rule
    missing = root.joinpath("store", "report", report.identity, report.code, "results.parquet")
    missing.write_bytes(missing.read_bytes()[:-1])
    (one,) = faults_of({"references": ["77a1"], "run": here})
    assert "bytes where the record says" in one.rule


def test_beside_runs_nothing_can_be_asked_to_be_trained(asked: Asked, runs: list[Outcome]) -> None:
    wrong = {
        "dataset": "text", "data": {"tokenizer": "trained"}, "ladder": {"seeds": [3], "budgets": [-1]},
        "training": {"length": 16}, "objective": {"labels": 1.0}, "references": ["nobody"],
    }  # fmt: skip
    found = faults_of({**wrong, "run": asked["run"]})
    assert {one.field for one in found} == {
        "dataset", "data.tokenizer", "ladder.seeds", "ladder.budgets.0", "training.length", "objective.labels",
        "references",
    }  # fmt: skip
    (one,) = faults_of({"references": [""], "run": asked["run"]})
    assert one.field == "references.0"
    defaults = {"dataset": "pysource", "ladder": {"seeds": [1, 2]}, "references": folders(runs), "run": asked["run"]}
    assert len(preflight.check(defaults, flow="law").runs) == 4


def test_scales_of_one_size_are_no_two_points_of_a_curve(asked: Asked) -> None:
    grid = {"grid": [0.9, 0.899, 0.5], "epochs": 0.2}
    both = [ran(asked, sandwich=grid, tradeoff={"assistant": ta}) for ta in (0.9, 0.899)]
    (one,) = faults_of({"references": folders(both), "run": asked["run"]})
    assert one.value == "0.899, 0.9"
    assert "come out at the same" in one.rule


SCALES = tuple(float(f"{x:.3g}") for x in np.geomspace(0.02, 0.9, 12))


def drawn(*, students: int = 6, seeds: int = 3, noise: float = 1e-4) -> list[dict[str, Any]]:
    """Return rows of a grid whose best assistant has 3 times the student's parameters; a seed's plans differ a little.

    A share of the parameters is in no scale, so that sizes are not proportional to scales.
    """
    draw = np.random.default_rng(0)

    def size(scale: float, seed: int) -> int:
        return round(1e5 + 1e7 * scale) + 1000 * seed

    return [
        {
            "role": "student", "scale": s, "teacher_scale": t, "parameters": size(s, seed), "teacher": size(t, seed),
            "seed": seed, "metric": "accuracy", "stderr": 0.01, "n": 1000, "teacher_value": 0.8 + 0.1 * t,
            "value": 0.7 - 0.02 * np.log(size(t, 0) / (3 * size(s, 0))) ** 2 + 0.05 * s + draw.normal(0, noise),
            "identity": f"{s} {t} {seed}",
        }
        for s in SCALES[:students] for t in SCALES if t > s
        for seed in range(1, seeds + 1)
    ]  # fmt: skip


def told(rows: list[dict[str, Any]]) -> tuple[report_assistants.Facts, str]:
    """Return the facts of rows, and the report of them."""
    fits = findings.fits_of(rows)
    judged, why_not = findings.judged(fits.cells)
    facts = report_assistants.Facts(
        dataset="set", split="dev", runs=len(rows), other_code=False, command="capgap run law", metric="accuracy",
        rows=rows, sizes=findings.sizes_of(rows), optima=[findings.optimum(one, rows) for one in fits.optima],
        rivals=[vars(one) for one in judged], unlike=findings.unlike_their_size(rows),
        summary=findings.summary(fits, rows, why_not),
    )  # fmt: skip
    return facts, report_assistants.compose(facts, {})


def test_the_law_that_the_rows_were_made_from_is_found() -> None:
    facts, report = told(drawn(students=8))
    (power,) = facts["summary"]["powers"]
    assert power["students"] == facts["summary"]["bracketed"] >= 6
    assert power["exponent"][1] < 1.0 < power["exponent"][2]
    assert power["ratio"][0] == pytest.approx(3.0, rel=0.03)
    assert "**T* grows as S to the power" in report
    assert facts["summary"]["monotone"] is True
    for row in (row for row in facts["optima"] if row["found"] == "bracketed"):
        # By the definition of sizes above, seeds on average: the scale at which an assistant has 3 S parameters.
        true = (3 * (row["student"] - 2000) - 1e5) / 1e7
        assert row["student"] == pytest.approx(1e5 + 1e7 * row["scale"] + 2000, abs=1)
        assert row["teacher_scale"] == pytest.approx(true, rel=0.06)
        assert f"{short(row['teacher'])} (" in report
        assert f"scale {row['teacher_scale']:.2g}" in report
    by_law = {row["law"]: row for row in facts["rivals"]}
    assert by_law["power"]["why_not"] is None
    assert by_law["power"]["regret"] < by_law["largest teacher"]["regret"]
    assert by_law["apple"]["why_not"] is not None


def test_one_seed_or_few_assistants_name_nothing() -> None:
    for rows, found in ((drawn(seeds=1), "one seed"), ([r for r in drawn() if r["teacher_scale"] > 0.4], "too few")):
        facts, report = told(rows)
        assert all(found in row["found"] and row["teacher"] is None for row in facts["optima"])
        assert "No law of the best assistant can be estimated" in report


def test_assistants_that_do_not_grow_better_are_told_and_losses_of_nothing_are_not_predicted() -> None:
    rows = drawn(students=2, seeds=2)
    worse = [{**row, "teacher_value": 0.5 - row["teacher_scale"]} if row["scale"] == SCALES[0] else row for row in rows]
    assert findings.unlike_their_size(worse) == [SCALES[0]]
    assert f"(students at {SCALES[0]:g})" in told(worse)[1]
    perfect = [{**rows[0], "value": 1.0}, *rows[1:]]
    facts, report = told(perfect)
    assert facts["rivals"] == []
    assert "None was asked: a student without any error" in report
