"""A disk that is full in the middle of a checkpoint or a commit: a clear error, and completion once there is room."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import builders
import pytest
from cut_off import checkpoints, same, trained

from capgap_core import store as stores
from capgap_core.errors import StageFailed


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here: it takes Linux and root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> Path:
    """Leave no room but a few kilobytes."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(b"\0" * 4096)
            except OSError:
                break
    with ballast.open("r+b") as file:
        file.truncate(ballast.stat().st_size - 8192)
    return ballast


def test_in_a_commit(tmp_path: Path, small: Path) -> None:
    candidates = builders.scored(tmp_path)
    whole = builders.make_tradeoff(tmp_path, candidates)
    ballast = fill(small)
    with pytest.raises(StageFailed, match=r"No space left on device.*Free some space"):
        builders.make_tradeoff(small, candidates)
    assert not list((small / "art").glob("store/*/*/*"))
    ballast.unlink()
    made = builders.make_tradeoff(small, candidates)
    assert made.digest == whole.digest
    assert stores.verified_record(made.folder).attempts >= 1


def test_in_a_checkpoint(tmp_path: Path, small: Path) -> None:
    """What is there stays whole, and the next checkpoint after there is room is good."""
    part = builders.examples(tmp_path)
    whole = trained(tmp_path / "whole", part)
    trained(small, part, until=1)
    ballast = fill(small)
    keeper, _ = checkpoints(small)
    with pytest.raises(Exception, match=r"No space left|os error 28"):
        trained(small, part, keeper=keeper)
    ballast.unlink()
    keeper, _ = checkpoints(small)
    same(whole, trained(small, part, keeper=keeper))
    assert keeper.resumed == (1,)
