"""Every file of a finished run's store, changed, cut and deleted one at a time: found, not served, made again alike."""

import shutil
from pathlib import Path
from typing import Any

import builders
import pytest

from capgap_core import chain, store as stores
from capgap_core.errors import Damaged
from capgap_core.outcome import Outcome
from capgap_core.recipes import Minidisc

HARMS = ("flipped", "cut", "deleted")
PARTLY = frozenset({"record.json", "timing.parquet"})
"""What holds dates and times, so that only their being whole can be compared."""


def run(asked: dict[str, Any]) -> Outcome:
    p = Minidisc.model_validate(asked)
    return chain.minidisc(**{name: getattr(p, name) for name in asked})


def harm(path: Path, how: str) -> None:
    held = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "cut":
        path.write_bytes(held[: len(held) // 2])
    else:
        path.write_bytes(held[: len(held) // 3] + bytes([held[len(held) // 3] ^ 1]) + held[len(held) // 3 + 1 :])


def files_of(store: Path) -> dict[str, bytes]:
    """Return path → bytes of everything that has to be the same again."""
    found = sorted(path for path in store.rglob("*") if path.is_file() and path.name not in PARTLY)
    return {str(path.relative_to(store)): path.read_bytes() for path in found}


@pytest.fixture
def asked(tmp_path: Path) -> dict[str, Any]:
    """Return the parameters of a run of all stages that has finished."""
    parameters: dict[str, Any] = {
        **builders.TINY, "dataset": str(builders.single_csv(tmp_path)), "evaluate": {"length": 16, "latency": True},
        "teacher_recipe": {**builders.TINY["teacher_recipe"], "epochs": 0.5},
        "sandwich": {"grid": [0.3], "epochs": 0.2},
        "student": {"scale": 0.2, "epochs": 0.2}, "run": {"root": str(tmp_path / "art"), "threads": 1},
    }  # fmt: skip
    run(parameters)
    return parameters


def files(asked: dict[str, Any]) -> list[Path]:
    """Return every file of the store; those of ``latency`` last, since a report that is made again reads new times."""
    found = sorted(path for path in Path(asked["run"]["root"], "store").rglob("*") if path.is_file())
    return sorted(found, key=lambda path: "latency" in path.parts)


def found_and_made_again(asked: dict[str, Any], path: Path, how: str) -> None:
    store, trash = Path(asked["run"]["root"], "store"), Path(asked["run"]["root"], "trash")
    before = files_of(store)
    folder = store.joinpath(*path.relative_to(store).parts[:3])
    harm(path, how)
    with pytest.raises(Damaged, match=path.name):
        stores.verified_record(folder)
    again = run(asked)
    made = [s for s in again.result["stages"] if not s["reused"]]
    assert [s["path"] for s in made] == [str(folder)]
    assert path.name in made[0]["why"]
    assert files_of(store) == before
    stores.verified_record(folder)
    (reason,) = trash.glob("*.why")
    assert path.name in reason.read_text()
    shutil.rmtree(trash)


def test_a_changed_input_file_is_another_data_set_and_the_old_one_is_still_there(asked: dict[str, Any]) -> None:
    """One letter of one row; its size stays."""
    file = Path(asked["dataset"])
    held = file.read_bytes()
    first = run(asked).result["stages"][0]
    file.write_bytes(held.replace(b"sun", b"fun", 1))
    changed = run(asked).result["stages"]
    assert changed[0]["identity"] != first["identity"]
    assert not any(stage["reused"] for stage in changed if stage["stage"] != "latency")
    file.write_bytes(held)
    assert all(stage["reused"] for stage in run(asked).result["stages"])


def test_one_file_of_each_kind_and_stage(asked: dict[str, Any]) -> None:
    """Each stage and name of a file once, with one of the three harms by turns."""
    kinds: dict[tuple[str, str], Path] = {}
    for path in files(asked):
        kinds.setdefault((path.relative_to(asked["run"]["root"]).parts[1], path.name), path)
    assert len({stage for stage, _ in kinds}) == 10
    for number, path in enumerate(kinds.values()):
        found_and_made_again(asked, path, HARMS[number % len(HARMS)])


@pytest.mark.slow
def test_every_file_and_every_harm(asked: dict[str, Any]) -> None:
    for path in files(asked):
        for how in HARMS:
            found_and_made_again(asked, path, how)
