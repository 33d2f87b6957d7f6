"""MixKD without Prefect: its arms on shares of the rows, what is made again when something changes, and its faults."""

from pathlib import Path
from typing import Any

import builders
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification

from capgap_core import metrics, mixkd, preflight, tables
from capgap_core.chain import in_this_process, minidisc
from capgap_core.errors import InputFaults
from capgap_core.families import bert
from capgap_core.outcome import Outcome
from capgap_core.progress import Silent
from capgap_core.recipes import Minidisc

PARTS = ("data", "teacher_recipe", "evaluate")
TERMS = {
    "finetune": {"cross_entropy"}, "kd": {"cross_entropy", "prediction"},
    "kd_sm": {"cross_entropy", "prediction", "mixed_cross_entropy"},
    "kd_tmkd": {"cross_entropy", "prediction", "mixed_prediction"},
    "mixkd": {"cross_entropy", "prediction", "mixed_cross_entropy", "mixed_prediction"},
}  # fmt: skip


def run(asked: dict[str, Any], **changes: Any) -> Outcome:
    checked = preflight.check({**asked, **changes}, flow="mixkd")
    return mixkd.follow(checked, in_this_process(Silent()))


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("mixkd")
    return {
        **{name: builders.TINY[name] for name in PARTS}, "dataset": str(builders.single_csv(folder, 400)),
        "student": {"epochs": 2, "learning_rate": 1e-3}, "fractions": [1.0, 0.25],
        "run": {"root": str(folder / "art"), "threads": 1},
    }  # fmt: skip


@pytest.fixture(scope="module")
def done(asked: dict[str, Any]) -> Outcome:
    return run(asked)


def stages(outcome: Outcome, stage: str) -> dict[str, Path]:
    return {role: made.folder for role, made in outcome.stages if made.stage == stage}


def made(outcome: Outcome) -> set[str]:
    return {f"{ref.stage} {role}".strip() for role, ref in outcome.stages if not ref.reused}


def test_every_arm_is_trained_on_every_share_and_measured(done: Outcome) -> None:
    names = [*TERMS, "repeats", "noise", "finetune_tokens", "kd_tokens"]
    roles = {*names, *(f"{name} 0.25" for name in names)}
    assert set(done.result["scores"]) == {"teacher", *roles}
    assert {row["role"] for row in done.result["arms"]} == roles
    for row in done.result["arms"]:
        assert row["gap"] == pytest.approx(row["seen"] - row["value"])
        assert row["value"] == done.result["scores"][row["role"]]["accuracy"]
        assert 0.0 <= row["calibration_error"] <= 1.0
        whole = "mixkd" if row["n_train"] > 100 else "mixkd 0.25"
        if row["role"] != whole:
            assert row["difference"] == pytest.approx(done.result["scores"][whole]["accuracy"] - row["value"])
            assert row["low"] <= row["difference"] <= row["high"]


def test_arms_without_mixtures_get_as_many_passes_too(done: Outcome) -> None:
    rows = {row["role"]: row for row in done.result["arms"]}
    for suffix in ("", " 0.25"):
        assert (
            rows[f"kd_tokens{suffix}"]["passes"]
            == rows[f"mixkd{suffix}"]["passes"]
            == 2 * rows[f"kd{suffix}"]["passes"]
        )
        assert rows[f"kd_tokens{suffix}"]["training_flops"] == pytest.approx(rows[f"mixkd{suffix}"]["training_flops"])
        assert rows[f"mixkd{suffix}"]["steps"] == rows[f"kd{suffix}"]["steps"]


def test_each_arm_learns_from_its_own_terms(done: Outcome) -> None:
    for arm, terms in TERMS.items():
        table = tables.read(stages(done, "distil")[arm] / "steps.parquet")
        assert {row["term"] for row in table} == terms


def test_a_smaller_share_is_part_of_a_larger_and_all_else_is_the_same(done: Outcome) -> None:
    (whole,), (part,) = stages(done, "data").values(), stages(done, "part").values()
    rows = [pq.read_table(folder / "train.parquet")["row"].to_pylist() for folder in (whole, part)]
    assert set(rows[1]) < set(rows[0])
    assert len(rows[1]) == round(0.25 * len(rows[0]))
    for name in ("evaluation", "selection", "calibration"):
        assert (whole / f"{name}.parquet").read_bytes() == (part / f"{name}.parquet").read_bytes()


def test_the_teacher_is_asked_about_examples_once_and_only_logits_are_kept(
    asked: dict[str, Any], done: Outcome
) -> None:
    files = sorted(Path(asked["run"]["root"]).glob("targets/*/outputs.safetensors"))
    assert len(files) == 2  # all rows, and the share
    for path in files:
        with safe_open(path, "pt") as held:
            assert held.get_tensor("hidden").numel() == 0
            assert held.get_tensor("logits").numel() > 0


def test_again_nothing_is_made_and_another_alpha_makes_mixing_arms_alone(asked: dict[str, Any], done: Outcome) -> None:
    assert made(run(asked)) == set()
    other = run(asked, mixup={"alpha": 1.0}, fractions=[1.0])
    mixing = {"kd_sm", "kd_tmkd", "mixkd", "noise"}
    assert {name for name in made(other) if name.startswith("distil")} == {f"distil {arm}" for arm in mixing}


def test_the_student_is_the_first_layers_and_loads_without_capgap(done: Outcome) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(done.result["paths"]["student"])
    assert model.config.num_hidden_layers == 1
    (begun,) = stages(done, "first_layers").values()
    teacher = bert.load(stages(done, "teacher")["teacher"] / "model").eval()
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        ours, theirs = (m(ids, output_hidden_states=True) for m in (bert.load(begun / "model").eval(), teacher))
    assert torch.allclose(ours.hidden_states[1], theirs.hidden_states[1], atol=1e-6)
    assert torch.equal(bert.load(begun / "model").classifier.weight, teacher.classifier.weight)


def test_a_student_may_be_slimmed_and_its_teacher_have_seen_as_little(asked: dict[str, Any]) -> None:
    changes = {"fractions": [0.5], "teacher_rows": "same", "arms": ["kd", "mixkd"], "matched": ["epochs"]}
    outcome = run(asked, student={**asked["student"], "scale": 0.3, "distance": "kl", "temperature": 2.0}, **changes)
    assert set(outcome.result["scores"]) == {"teacher 0.5", "kd 0.5", "mixkd 0.5"}
    assert [role for role, made in outcome.stages if made.stage == "teacher"] == ["teacher 0.5"]
    assert (
        outcome.result["sizes"]["mixkd 0.5"]["non_embedding"] < outcome.result["sizes"]["teacher 0.5"]["non_embedding"]
    )


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"mixup": {"alpha": 0.0}}, "mixup.alpha"),
        ({"mixup": {"alpha": -1}}, "mixup.alpha"),
        ({"mixup": {"labels": -0.5}}, "mixup.labels"),
        ({"mixup": {"teacher": -0.5}}, "mixup.teacher"),
        ({"mixup": {"mix": 1.5}}, "mixup.mix"),
        ({"mixup": {"samples": 0}}, "mixup.samples"),
        ({"student": {"batch_size": 1}}, "student.batch_size"),
        ({"student": {"micro_batch": 1}}, "student.micro_batch"),
        ({"arms": "mixkd", "student": {"micro_batch": 1}}, "student.micro_batch"),
        ({"arms": "kd", "fractions": 0.5, "student": {"micro_batch": 1}, "draw": -1}, "draw"),
        ({"student": {"prediction": -1}}, "student.prediction"),
        ({"student": {"layers": 3}}, "student.layers"),
        ({"student": {"layers": 1, "scale": 0.5}}, "student.layers"),
        ({"arms": []}, "arms"),
        ({"arms": ["kd", "kd"]}, "arms"),
        ({"fractions": [0.0]}, "fractions.0"),
        ({"fractions": [0.25, 0.2500001]}, "fractions"),
        ({"fractions": [0.99999999]}, "fractions"),
    ],
)
def test_each_fault_is_one_message_before_any_work(
    asked: dict[str, Any], tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    root = tmp_path / "art"
    with pytest.raises(InputFaults) as found:
        preflight.check({**asked, **changes, "run": {"root": str(root)}}, flow="mixkd")
    assert [fault.field for fault in found.value.faults] == [field]
    assert not root.exists()


def test_minidisc_refuses_a_batch_that_has_no_partner_only_where_it_mixes(
    asked: dict[str, Any], tmp_path: Path
) -> None:
    given = {"dataset": asked["dataset"], "student": {"batch_size": 1}, "run": {"root": str(tmp_path / "art")}}
    assert preflight.check(given).parameters.student.batch_size == 1
    with pytest.raises(InputFaults) as found:
        preflight.check({**given, "mixup": {"samples": 1}})
    assert [fault.field for fault in found.value.faults] == ["student.batch_size"]


def test_minidisc_learns_from_mixtures_on_what_comes_with_it(tmp_path: Path) -> None:
    """On pydocs; the control for equal FLOPs takes mixtures into account."""
    tiny = {name: held for name, held in builders.TINY.items() if name != "data"}
    given = {
        **tiny, "data": {"train_rows": 300, "selection_rows": 24, "calibration_rows": 16, "max_length": 16},
        "teacher_recipe": {**builders.TINY["teacher_recipe"], "epochs": 1}, "mixup": {"samples": 2},
        "run": {"root": str(tmp_path / "art"), "threads": 1},
    }  # fmt: skip
    p = Minidisc.model_validate(given)
    done = minidisc(**{name: getattr(p, name) for name in given})
    for role in ("student", "direct", "direct_flops"):
        (made,) = [ref for name, ref in done.stages if ref.stage == "distil" and name == role]
        terms = {row["term"] for row in tables.read(made.table("steps"))}
        assert terms == {"hidden", "prediction", "mixed_cross_entropy", "mixed_prediction"}
    assert "mixup.samples=2" in done.report.folder.joinpath("report.md").read_text(encoding="utf8")


def test_the_calibration_error_is_the_mean_distance_of_confidence_and_accuracy() -> None:
    draw = np.random.default_rng(0)
    logits, labels = draw.normal(size=(500, 3)) * 2, draw.integers(0, 3, 500)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    sure, right, total = p.max(1), p.argmax(1) == labels, 0.0
    for low in range(10):
        inside = (sure > low / 10) & (sure <= (low + 1) / 10)
        total += abs(right[inside].mean() - sure[inside].mean()) * inside.mean() if inside.any() else 0.0
    assert metrics.calibration_error(logits, labels, bins=10) == pytest.approx(total)
    certain = np.eye(3)[labels] * 50
    assert metrics.calibration_error(certain, labels) == pytest.approx(0.0, abs=1e-9)
    assert metrics.calibration_error(-certain[:, ::-1], labels) <= 1.0
