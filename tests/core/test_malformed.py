"""Malformed parameters and data files: refused with every fault in one message, and nothing is left behind."""

import json
import random
from pathlib import Path
from typing import Any

import builders
import malformed
import pytest
from hypothesis import given, strategies as st

from capgap_core import preflight
from capgap_core.errors import Fault, InputFaults
from flows import cli
from flows.params import gather

MAKERS = malformed.makers()
THROUGH_THE_COMMAND = 20


def faults_of(parameters: dict[str, Any]) -> tuple[Fault, ...]:
    """Return the faults of parameters, after a look at how they are said; none where they suit."""
    try:
        preflight.check(parameters)
    except InputFaults as error:
        for one in error.faults:
            assert str(one).isprintable()
            assert all((one.field, one.value, one.rule, one.remedy)), one
            assert len(str(one)) < 1100
        return error.faults
    return ()


def refused_parameters(folder: Path, count: int) -> list[tuple[dict[str, Any], Path]]:
    """Return so many parameters that are refused, each with its store, having checked each."""
    dataset = str(builders.single_csv(folder))
    found: list[tuple[dict[str, Any], Path]] = []
    for number in range(count + 20):
        root = folder / f"store {number}"
        asked = malformed.parameters(random.Random(number), {"dataset": dataset, "run": {"root": str(root)}})
        if faults_of(asked):
            assert not root.exists()
            found.append((asked, root))
        if len(found) == count:
            return found
    raise AssertionError("too many of them suit")


def test_two_hundred_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Each by the check that every door makes, and some through the command, which answers with status 2."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for asked, root in refused_parameters(tmp_path, 200)[:THROUGH_THE_COMMAND]:
        file = tmp_path / "asked.json"
        file.write_text(json.dumps(asked), encoding="utf8")
        assert cli.main(["run", "minidisc", "--params", str(file), "--json"]) == cli.BAD_INPUT
        said = capsys.readouterr()
        assert json.loads(said.out)["error"]["faults"]
        assert "Traceback" not in said.err
        assert not root.exists()
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("number", range(len(MAKERS)))
def test_a_data_file(tmp_path: Path, number: int) -> None:
    name, held = MAKERS[number](random.Random(number))
    (tmp_path / name).write_bytes(held)
    faults = faults_of({"dataset": str(tmp_path / name), "run": {"root": str(tmp_path / "art")}})
    assert faults
    assert all(fault.field.startswith(("dataset", "data.")) for fault in faults)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_there_are_sixty_of_them() -> None:
    assert len(MAKERS) >= 60


@given(st.lists(st.text(max_size=12) | st.from_regex(r"[a-z_.]{0,9}=[\[{\"0-9a-z,.]{0,9}", fullmatch=True), max_size=4))
def test_no_pair_of_the_command_line_is_too_odd(pairs: list[str]) -> None:
    parameters, faults = gather(pairs, None)
    assert all(str(one).isprintable() for one in faults)
    assert parameters or faults or not pairs


@pytest.mark.parametrize("held", ["[" * 100_000, '{"seed": ' + "9" * 5000 + "}", "\ufeff{}", '{"seed": 1'])
def test_a_parameter_file_that_breaks_a_parser(tmp_path: Path, held: str) -> None:
    file = tmp_path / "p.json"
    file.write_text(held, encoding="utf8")
    parameters, (one,) = gather([], str(file))
    assert parameters == {}
    assert one.field == "--params"
    assert gather(["seed=" + held], None)[1] == []
