"""A student loads, with its tokenizer, where capgap is not installed, and answers as it was measured."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import builders
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from capgap_core import chain, flops, outcome, plan, tables
from capgap_core.errors import StageFailed
from capgap_core.families import bert
from capgap_core.recipes import Minidisc
from capgap_core.records import Reference
from capgap_core.shapes import Shape

KINDS = {"single": builders.single_csv, "pair": builders.pair_csv, "score": builders.score_csv}
LOADER = """
import json, sys
hide("capgap_core", "tasks", "flows")
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

for path, columns in json.load(sys.stdin):
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
    model = AutoModelForSequenceClassification.from_pretrained(path, trust_remote_code=True, dtype="float32").eval()
    logits = []
    for texts in zip(*columns):
        encoded = tokenizer(*texts, truncation=True, return_tensors="pt")
        with torch.no_grad():
            logits.append(model(**encoded).logits[0].tolist())
    parameters = sum(p.numel() for p in model.parameters())
    print(json.dumps({"logits": logits, "labels": model.config.id2label, "parameters": parameters}))
assert not [name for name in sys.modules if name.partition(".")[0] == "capgap_core"]
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Reference]]]:
    """Return kind → the data set and the stages of a tiny run on it."""
    made = {}
    for kind, write in KINDS.items():
        folder = tmp_path_factory.mktemp(kind)
        asked = {**builders.TINY, "dataset": str(write(folder)), "run": {"root": str(folder / "art"), "threads": 1}}
        if kind == "score":  # scores take longer to learn, and a model that learnt nothing answers one number
            asked["teacher_recipe"] = {**asked["teacher_recipe"], "learning_rate": 1e-3, "epochs": 15, "batch_size": 8}
        parameters = Minidisc.model_validate(asked)
        done = chain.minidisc(**{name: getattr(parameters, name) for name in asked})
        made[kind] = (Path(asked["dataset"]), outcome.named(done.stages))
    return made


def texts_of(dataset: Path, stages: dict[str, Reference], rows: list[int]) -> list[list[str]]:
    with dataset.open(newline="", encoding="utf8") as stream:
        held = list(csv.DictReader(stream))
    *columns, _label = stages["data"].summary["columns"]
    return [[held[row][column] for row in rows] for column in columns]


@pytest.fixture(scope="module")
def loaded(runs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return kind → what a process without capgap says of the student."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    asked = []
    for dataset, stages in runs.values():
        rows = [p["row"] for p in tables.read(stages["evaluate_student"].table("predictions"))]
        asked.append((str(stages["student"].folder / "model"), texts_of(dataset, stages, rows)))
    alone = {"HF_MODULES_CACHE": str(elsewhere / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", builders.HIDE + LOADER],
        input=json.dumps(asked), capture_output=True, text=True, check=False, cwd=elsewhere,
        env={**os.environ, **alone},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(runs, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_answers_where_capgap_is_not_installed(kind: str, runs, loaded) -> None:
    _, stages = runs[kind]
    stored = [p["logits"] for p in tables.read(stages["evaluate_student"].table("predictions"))]
    found = loaded[kind]["logits"]
    assert len(found) == len(stored) >= 16
    assert max(abs(a - b) for x, y in zip(found, stored, strict=True) for a, b in zip(x, y, strict=True)) < 1e-5
    assert max(row[0] for row in stored) - min(row[0] for row in stored) > 0.01
    names = {"single": {"0": "day", "1": "night"}, "pair": {"0": "0", "1": "1"}, "score": {"0": "score"}}
    assert loaded[kind]["labels"] == names[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_is_smaller_by_what_its_plan_says(kind: str, runs, loaded) -> None:
    _, stages = runs[kind]
    sizes = {role: tables.read(stages[f"evaluate_{role}"].table("sizes"))[0] for role in ("teacher", "student")}
    assert loaded[kind]["parameters"] == sizes["student"]["parameters"]
    rows = tables.read(stages["student"].table("plan"))
    gone = {"heads": 4 * 32 * 8 + 3 * 8, "neurons": 2 * 32 + 1}
    smaller = sum(gone[row["axis"]] * (row["of"] - row["kept"]) for row in rows)
    assert sizes["teacher"]["parameters"] - sizes["student"]["parameters"] == smaller > 0
    with safe_open(stages["student"].folder / "model" / "model.safetensors", framework="numpy") as held:
        for row in rows:
            module = "attention.self.query" if row["axis"] == "heads" else "intermediate.dense"
            weight = held.get_slice(f"bert.encoder.layer.{row['layer']}.{module}.weight")
            assert weight.get_shape()[0] == row["kept"] * (8 if row["axis"] == "heads" else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_arms_of_equal_flops_spend_the_same_up_to_half_a_step(kind: str, runs) -> None:
    """Added up by hand; the control is charged for a mean candidate, so that it does not hang on the choice."""
    _, stages = runs[kind]
    facts, steps = stages["data"].summary, {name: stage.steps_trained for name, stage in stages.items()}
    plans = plan.from_rows(tables.read(stages["importance"].table("plan")))
    shape = Shape(layers=2, heads=4, head_size=8, neurons=64, hidden=32, labels=max(1, len(facts["labels"])))
    length = facts["tokens"]["train"] / facts["rows"]["train"]
    cost = {scale: flops.forward_flops(bert, shape, keep, length) for scale, keep in plans.items()}
    teacher, student = flops.forward_flops(bert, shape, shape.full(), length), cost[0.2]

    rows = facts["rows"]["train"]
    batch = rows / -(-rows // 32)  # the last batch of an epoch is short
    sandwich = batch * steps["sandwich"] * (teacher + 3 * (cost[0.75] + cost[0.3] + cost[0.2]))
    chosen, mean = cost[stages["tradeoff"].summary["chosen_scale"]], (cost[0.75] + cost[0.3]) / 2
    one = batch * (3 * student + teacher)
    total = sandwich + batch * steps["student"] * (3 * student + mean)
    assert abs(steps["direct_flops"] * one - total) <= one / 2
    assert steps["student"] == steps["direct"] < steps["direct_flops"]

    spent = {row["role"]: row["training_flops"] for row in tables.read(stages["report"].table("results"))}
    assert spent["direct"] == pytest.approx(steps["direct"] * one)
    assert spent["direct_flops"] == pytest.approx(steps["direct_flops"] * one)
    assert spent["student"] == pytest.approx(sandwich + batch * steps["student"] * (3 * student + chosen))


def test_the_reordered_teacher_has_its_units_in_descending_importance(runs) -> None:
    _, stages = runs["single"]
    assert set(stages["importance"].summary["shape"]) == {"layers", "heads", "head_size", "neurons", "hidden", "labels"}
    rows = tables.read(stages["importance"].table("importance"))
    for layer in (0, 1):
        for axis in ("heads", "neurons"):
            units = sorted((r for r in rows if (r["layer"], r["axis"]) == (layer, axis)), key=lambda r: r["rank"])
            assert [r["rank"] for r in units] == list(range({"heads": 4, "neurons": 64}[axis]))
            assert [r["score"] for r in units] == sorted((r["score"] for r in units), reverse=True)
            module = "attention.self.query" if axis == "heads" else "intermediate.dense"
            with (
                safe_open(stages["teacher"].folder / "model" / "model.safetensors", framework="numpy") as before,
                safe_open(stages["importance"].folder / "model" / "model.safetensors", framework="numpy") as after,
            ):
                name = f"bert.encoder.layer.{layer}.{module}.bias"
                width = 8 if axis == "heads" else 1
                moved = before.get_tensor(name).reshape(-1, width)[[r["unit"] for r in units]]
                assert (after.get_tensor(name).reshape(-1, width) == moved).all()


def test_weights_that_a_checkpoint_lacks_are_not_drawn_at_random(tmp_path) -> None:
    builders.bert(labels=2).save_pretrained(tmp_path)
    assert bert.load_given(tmp_path, new_head=True, num_labels=3).config.num_labels == 3
    state = load_file(tmp_path / "model.safetensors")
    save_file({f"other.{name}": tensor for name, tensor in state.items()}, tmp_path / "model.safetensors")
    with pytest.raises(StageFailed, match="weights are missing"):
        bert.load_given(tmp_path, new_head=True, num_labels=2)
