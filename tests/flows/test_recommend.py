"""``capgap recommend``: what the published laws say, in words and in JSON, and what is refused."""

import json

import pytest

from capgap_core.laws import recommend as laws
from capgap_core.laws.apple import PUBLISHED_DISTILLED, PUBLISHED_SUPERVISED
from flows import cli, recommend


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
