"""``capgap recommend``: what the published laws say, in words and in JSON, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from capgap_core.laws import recommend as laws, simulate
from capgap_core.laws.apple import PUBLISHED_DISTILLED, PUBLISHED_SUPERVISED
from capgap_core.laws.grid import Alone, Cells
from flows import cli, grids, recommend


@pytest.mark.parametrize(
    ("text", "value"),
    [("300M", 3e8), ("5B", 5e9), ("0.5 b", 5e8), ("1.5e9", 1.5e9), ("20", 20.0), ("2T", 2e12), (".5k", 500.0)],
)
def test_amounts(text: str, value: float) -> None:
    assert recommend.amount(text) == value


@pytest.mark.parametrize("text", ["", "0", "-3M", "many", "3X", "nan", "inf", "1e99", "3MM", "1e18T"])
def test_what_is_no_amount(text: str) -> None:
    assert recommend.amount(text) is None


def test_both_laws_answer_and_say_whose_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recommend", "--student", "198M", "--tokens", "512B", "--json"]) == 0
    line, apple = json.loads(capsys.readouterr().out)["answers"]
    assert line["teacher"] == pytest.approx(2.498 * 198e6 - 11.498e6)
    assert line["loss"] is None
    assert apple["loss"] == pytest.approx(2.4198, abs=5e-5)
    assert apple["alone"] == pytest.approx(2.4376, abs=5e-5)
    assert apple["teacher"] / 198e6 == pytest.approx(10, abs=1)
    assert apple["flops"] == pytest.approx((6 * 198e6 + 2 * apple["teacher"]) * 512e9)
    assert cli.main(["recommend", "--student", "198M", "--tokens", "512B", "--throughput", "200T"]) == 0
    said = capsys.readouterr().out
    for words in ("2311.07052", "2502.08606", "They disagree by a factor of 4.3", "Neither was measured on your text"):
        assert words in said
    assert f"({apple['flops'] / 200e12 / 3600:,.1f} h)" in said


def test_where_a_teacher_no_longer_helps_students_do_as_well_alone() -> None:
    theirs = float(PUBLISHED_SUPERVISED.loss(5e8, 20 * 5e8)[0])
    point = laws.break_even(3e8, theirs)
    assert point
    for tokens, helps in ((point / 1.1, True), (point * 1.1, False)):
        with_it = PUBLISHED_DISTILLED.loss(3e8, tokens, theirs, PUBLISHED_SUPERVISED)[0]
        assert (with_it < PUBLISHED_SUPERVISED.loss(3e8, tokens)[0]) == helps


def test_where_no_teacher_helps_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recommend", "--student", "7B", "--tokens", "1T"]) == 0
    assert "the student loses no less with it than alone" in capsys.readouterr().out
    assert cli.main(["recommend", "--student", "300M", "--tokens", "5B"]) == 0
    assert "no less with it than alone" not in capsys.readouterr().out


def test_far_from_what_was_measured_there_is_no_point(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recommend", "--student", "100k", "--tokens", "1B"]) == 0
    said = capsys.readouterr().out
    assert said.count("beyond 3 times what was measured: no point") == 2
    assert "disagree" not in said


def test_teachers_on_tokens_that_nobody_measured_are_not_named() -> None:
    for per_parameter in (1e-6, 1e6):
        _, apple = laws.recommend(3e8, 5e9, teacher_tokens=per_parameter)
        assert apple.teacher is None
        assert "no point" in apple.says
    assert laws.break_even(3e8, 9.0) == 0.0, "a teacher that knows nothing helps nowhere"


def test_an_end_of_what_was_measured_is_told_as_one() -> None:
    _, apple = laws.recommend(300e6, 5e9)
    assert apple.teacher == pytest.approx(12.6e9)
    assert "largest teacher near what was measured" in apple.says


def test_every_wrong_amount_is_named_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recommend", "--student", "big", "--tokens", "-1", "--teacher-tokens", "x"]) == 2
    said = capsys.readouterr().err
    for name in ("--student = big", "--tokens = -1", "--teacher-tokens = x"):
        assert name in said


def published(folder: Path, cells: Any, alone: Any) -> Path:
    """Write the models of a simulated grid as published rows."""
    taught = [
        {"role": "student", "parameters": s, "tokens": d, "teacher": t, "seed": r, "nats": x, "teacher_nats": y}
        for s, d, t, r, x, y in zip(
            cells.student, cells.tokens, cells.teacher, cells.seed, cells.loss, cells.teacher_loss, strict=True
        )
    ]
    free = [
        {"role": "teacher" if teaches else "student", "parameters": n, "tokens": d, "nats": x, "seconds": d / 1e6}
        for n, d, x, teaches in zip(alone.parameters, alone.tokens, alone.loss, alone.teaches, strict=True)
    ]
    path = folder / "grid.parquet"
    pd.DataFrame([{"data_limited": False, **row} for row in [*taught, *free]]).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return published rows of a grid in which T* is about 2.5 S at 100 tokens for each parameter."""
    draw = np.random.default_rng(0)
    students, teachers = np.geomspace(1e6, 16e6, 7), np.geomspace(1e6, 256e6, 9)
    s, t, r = (x.ravel() for x in np.meshgrid(students, teachers, [1, 2, 3], indexing="ij"))
    loss = 2 + 0.01 * np.log(t / (2.5 * s)) ** 2 - 0.05 * np.log(s / 1e6) + draw.normal(0, 1e-4, s.shape)
    own = 3 - 0.1 * np.log(teachers / 1e6)
    cells = Cells(student=s, tokens=100 * s, teacher=t, teacher_loss=np.interp(t, teachers, own), loss=loss,
                  seed=r.astype(np.int64))  # fmt: skip
    alone = Alone(parameters=teachers, tokens=20 * teachers, loss=own, teaches=np.ones(len(teachers), dtype=bool))
    return published(tmp_path_factory.mktemp("grid"), cells, alone)


def asked_of(grid: Path | str, capsys: pytest.CaptureFixture[str], student: str, tokens: str) -> dict[str, Any]:
    assert cli.main(["recommend", "--student", student, "--tokens", tokens, "--from", str(grid), "--json"]) == 0
    held = json.loads(capsys.readouterr().out)
    return {**held, "answers": {answer["law"]: answer for answer in held["answers"]}}


def test_a_grid_of_ones_own_answers_with_intervals(simulated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = asked_of(simulated, capsys, "5M", "500M")
    for law in ("power", "constant ratio"):
        answer = held["answers"][law]
        assert answer["low"] < 12.5e6 < answer["high"]
        assert answer["teacher"] == pytest.approx(12.5e6, rel=0.05)
        assert answer["flops"] == pytest.approx((6 * 5e6 + 2 * answer["teacher"]) * 500e6)
    assert held["teacher_tokens"] == pytest.approx(20.0)
    assert held["throughput"] == pytest.approx(6 * 256e6 * 1e6), "of the largest teacher"
    apple = held["answers"]["distillation scaling law"]
    assert apple["teacher"] is None
    assert "not estimable: 1 of 2 token budgets of one student" in apple["says"]
    assert cli.main(["recommend", "--student", "5M", "--tokens", "500M", "--from", str(simulated)]) == 0
    said = capsys.readouterr().out
    assert "students on 100 tokens a parameter" in said
    assert "Neither was measured on your text" not in said


def test_far_from_a_grid_there_is_an_interval_and_no_point(simulated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    power = asked_of(simulated, capsys, "100M", "10B")["answers"]["power"]
    assert power["teacher"] is None
    assert power["low"] < 250e6 < power["high"]
    assert "beyond 3 times what was measured (1M to 16M)" in power["says"]
    power = asked_of(simulated, capsys, "5M", "100M")["answers"]["power"]
    assert (power["teacher"], power["low"]) == (None, None)
    assert "no students on about 20 tokens a parameter were measured, but on 100" in power["says"]


def test_apples_law_of_a_grid_says_losses_and_up_to_where_a_teacher_helps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = grids.fits_of
    monkeypatch.setattr(grids, "fits_of", lambda *given, **more: real(*given, **more, bootstraps=10))
    grid = published(tmp_path, *simulate.apple_grid(simulate.SMALL, np.random.default_rng(1)))
    apple = asked_of(grid, capsys, "300M", "256B")["answers"]["distillation scaling law"]
    assert apple["low"] < apple["teacher"] < apple["high"]
    truth = PUBLISHED_SUPERVISED.loss(300e6, 256e9)[0]
    assert apple["alone"] == pytest.approx(truth, rel=0.02)
    assert apple["loss_low"] < apple["loss"] < apple["loss_high"]
    assert apple["break_even"] is None or apple["break_even"] > 0


def test_a_grid_with_a_teacher_that_was_given_names_a_measured_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = grids.fits_of
    monkeypatch.setattr(grids, "fits_of", lambda *given, **more: real(*given, **more, bootstraps=10))
    path = published(tmp_path, *simulate.apple_grid(simulate.SMALL, np.random.default_rng(1)))
    frame = pd.read_parquet(path)
    theirs = frame[frame["role"] == "teacher"]["parameters"]
    given = (frame["role"] == "teacher") & (frame["parameters"] == theirs.max())
    frame.loc[given, ["tokens", "seconds"]] = None
    frame.to_parquet(path)
    held = asked_of(path, capsys, "300M", "256B")
    apple = held["answers"]["distillation scaling law"]
    assert held["teacher_tokens"] is None
    assert {apple["teacher"], apple["low"], apple["high"]} <= set(theirs)
    assert "one of its teachers, by what it loses" in apple["whose"]
    assert apple["flops"] is not None
    assert apple["teacher_flops"] is None
    second = sorted(set(theirs))[-2]
    assert held["throughput"] == pytest.approx(6 * second * 1e6), "of the largest that was trained there"


def test_a_grid_that_says_nothing_names_no_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells, alone = simulate.apple_grid(simulate.SMALL, np.random.default_rng(1))
    two = cells.where(np.isin(cells.teacher, np.unique(cells.teacher)[:2]) & (cells.seed == cells.seed[0]))
    grid = published(tmp_path, two, alone)
    assert cli.main(["recommend", "--student", "300M", "--tokens", "256B", "--from", str(grid)]) == 0
    assert "The grid names no teacher for this student." in capsys.readouterr().out


def test_a_grid_that_is_not_there_is_named_with_every_other_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPGAP_ARTIFACTS", str(tmp_path))
    words = ["recommend", "--student", "big", "--tokens", "1B", "--teacher-tokens", "20"]
    assert cli.main([*words, "--from", "law/123"]) == 2
    said = capsys.readouterr().err
    for name in ("--student = big", "--teacher-tokens = 20", "--from = law/123"):
        assert name in said
    other = tmp_path / "other.parquet"
    pd.DataFrame({"a": [1]}).to_parquet(other)
    assert cli.main(["recommend", "--student", "1M", "--tokens", "1B", "--from", str(other)]) == 2
    assert "other.parquet has no column data_limited" in capsys.readouterr().err


DEGENERATE = {
    "two points": (lambda s, t, noise: 2 + 0.1 * np.log(t / s) ** 2 + noise, [1e6, 4e6], [1, 2], "too few teachers"),
    "all equal": (lambda s, t, noise: np.full_like(s, 2.0), [1e6, 2e6, 4e6, 8e6], [1, 2], "too close to call"),
    "monotone": (
        lambda s, t, noise: 9 - 0.1 * np.log(t) + noise, [1e6, 2e6, 4e6, 8e6], [1, 2], "the largest teacher is best",
    ),
    "one seed": (lambda s, t, noise: 2 + 0.1 * np.log(t / s) ** 2 + noise, [5e5, 1e6, 2e6, 4e6, 8e6], [1], "one seed"),
}  # fmt: skip


def of_losses(loss: Any, teachers: list[float], seeds: list[int]) -> tuple[Cells, Alone]:
    """Return a grid of five students on 100 tokens a parameter whose losses are a function of student and teacher."""
    sizes = np.array(teachers)
    s, t, r = (x.ravel() for x in np.meshgrid(np.geomspace(5e5, 8e6, 5), sizes, seeds, indexing="ij"))
    own = 3 - 0.1 * np.log(sizes / 1e6)
    noise = np.random.default_rng(0).normal(0, 1e-4, s.shape)
    theirs = np.interp(t, sizes, own)
    cells = Cells(
        student=s, tokens=100 * s, teacher=t, teacher_loss=theirs, loss=loss(s, t, noise), seed=r.astype(np.int64)
    )
    free = Alone(parameters=sizes, tokens=20 * sizes, loss=own, teaches=np.ones(len(sizes), dtype=bool))
    return cells, free


@pytest.mark.parametrize("kind", DEGENERATE)
def test_a_degenerate_grid_says_why_and_recommends_nothing(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loss, teachers, seeds, why = DEGENERATE[kind]
    grid = published(tmp_path, *of_losses(loss, teachers, seeds))
    answers = asked_of(grid, capsys, "2M", "200M")["answers"]
    assert all(answer["teacher"] is None for answer in answers.values())
    assert (
        f"not estimable: 0 of 5 best teachers are bracketed, and a law takes 5 ({why}: 5)" in answers["power"]["says"]
    )


def test_rows_that_no_law_can_be_fitted_to_are_refused_all_at_once(
    simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.read_parquet(simulated)
    twice = tmp_path / "twice.parquet"
    pd.concat([frame, frame.iloc[:2]]).to_parquet(twice)
    assert cli.main(["recommend", "--student", "1M", "--tokens", "1B", "--from", str(twice)]) == 2
    assert (
        "2 students of one teacher, one seed and as many tokens stand there more than once" in capsys.readouterr().err
    )
    frame.loc[0, "nats"], frame.loc[1, "nats"], frame.loc[2, "teacher_nats"] = np.nan, -1.0, np.inf
    frame.loc[3, "role"], frame.loc[4, "seed"] = "assistant", np.nan
    wrong = tmp_path / "wrong.parquet"
    frame.to_parquet(wrong)
    assert cli.main(["recommend", "--student", "1M", "--tokens", "1B", "--from", str(wrong)]) == 2
    said = capsys.readouterr().err
    for rule in (
        "nats is no finite number above 0 in 2 of",
        "teacher_nats is no finite",
        "role is assistant",
        "seed is no number in 1",
    ):
        assert rule in said
