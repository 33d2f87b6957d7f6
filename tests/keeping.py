"""What the tests of kept outputs share: a small teacher, and its outputs of a part, in several pieces."""

import functools
from pathlib import Path
from typing import Any

import builders
import pytest
import torch
from cut_off import CutOff

from capgap_core import kept_outputs, targets
from capgap_core.batches import Batch, Examples
from capgap_core.kept_outputs import KeptOutputs, Kind, What
from capgap_core.progress import Progress, Silent
from capgap_core.store import Verify
from capgap_core.targets import Ask, Target

CPU = torch.device("cpu")
LAYERS, WIDTH, LABELS = (0, 1, 2), 32, 3
WHAT: dict[str, Any] = {
    "teacher": "a" * 64, "code": "b" * 16, "layers": LAYERS, "width": WIDTH, "labels": LABELS, "computed": "float32",
    "kind": "float32",
}  # fmt: skip
HERE = {"device": "cpu", "threads": 1}


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pieces so small that there are several, and batches so small that each takes several."""
    monkeypatch.setattr(kept_outputs, "PIECE", 2**14)
    monkeypatch.setattr(targets, "ROOM", 24)


@functools.cache
def live() -> Ask:
    return targets.live(builders.way(builders.bert(seed=9)), layers=LAYERS)


class Teacher:
    """A real teacher that remembers which examples it was asked about, and may be cut off before one of them."""

    def __init__(self, *, until: int = 10**9) -> None:
        self.asked: list[int] = []
        self.until = until

    def __call__(self, batch: Batch) -> Target:
        if int(batch.index.max()) >= self.until:
            raise CutOff
        self.asked += batch.index.tolist()
        return live()(batch)


def nobody(batch: Batch) -> Target:
    raise AssertionError(f"the teacher was asked about {batch.index}")


def outputs(
    root: Path, part: Examples, *, verify: Verify = "checksum", machine: dict[str, Any] = HERE,
    progress: Progress | None = None, by: str = "teacher-c-d", **changes: Any,
) -> KeptOutputs:  # fmt: skip
    what = What(**{**WHAT, **changes})
    return KeptOutputs(root, what, part, by=by, machine=machine, verify=verify, progress=progress or Silent())


def kept(ask: Ask, root: Path, part: Examples, **changes: Any) -> Ask:
    return targets.kept(ask, part, outputs(root, part, **changes), device=CPU, progress=Silent())


def filled(root: Path, part: Examples, **changes: Any) -> tuple[Path, list[list[int]]]:
    """Fill the outputs of a part; return their folder, and the examples of each piece as its notes tell them."""
    kept(Teacher(), root, part, **changes)
    folder = outputs(root, part, **changes).folder
    firsts = [int(note.stem.removeprefix("piece-")) for note in sorted(folder.glob("piece-*.json"))]
    pieces = [list(range(a, b)) for a, b in zip(firsts, [*firsts[1:], len(part)], strict=True)]
    return folder, pieces


def right(ask: Ask, part: Examples, kind: Kind = "float32") -> None:
    """Compare with the teacher itself, in batches of other forms than it was asked in."""
    for index, room in (([7, 2, 5], 100), ([0], 0), (range(24), 0), ([23, 22, 1, 0], 64)):
        batch = part.batch(list(index), room=room)
        found, expected = ask(batch), live()(batch)
        ours, theirs = found.hidden[batch.keep].float(), expected.hidden[batch.keep]
        assert found.hidden.shape == (batch.room, len(LAYERS), WIDTH)
        assert found.hidden.dtype == getattr(torch, kind)
        assert bool(((ours - theirs).abs() <= (2**-8 * theirs.abs() if kind == "bfloat16" else 0.0) + 1e-5).all())
        assert found.logits.dtype == torch.float32
        assert torch.allclose(found.logits, expected.logits, atol=1e-5)


def note_of(folder: Path, example: int) -> Path:
    return [path for path in sorted(folder.glob("piece-*.json")) if int(path.stem[6:]) <= example][-1]


def content(path: Path) -> int:
    """Return where the tensors begin in a safetensors file."""
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")
