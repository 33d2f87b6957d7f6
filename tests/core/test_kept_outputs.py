"""A teacher's outputs on disk: what was said, asked for once, and made again where they are not whole."""

import errno
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import builders
import keeping
import numpy as np
import pytest
import torch
from cut_off import CutOff, Heard
from keeping import HERE, LABELS, LAYERS, WIDTH, Teacher, content, filled, kept, live, nobody, note_of, outputs, right
from safetensors.torch import load_file

from capgap_core import in_use, tables, targets
from capgap_core.batches import Batch, Examples
from capgap_core.kept_outputs import FILE, Kind
from capgap_core.store import Verify
from capgap_core.targets import Target


@pytest.fixture(autouse=True)
def pieces_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    keeping.small(monkeypatch)


@pytest.fixture
def part(tmp_path: Path) -> Examples:
    return builders.examples(tmp_path)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_what_is_kept_is_what_the_teacher_says(tmp_path: Path, part: Examples, kind: Kind) -> None:
    teacher = Teacher()
    right(kept(teacher, tmp_path, part, kind=kind), part, kind)
    assert sorted(teacher.asked) == list(range(len(part)))
    right(kept(nobody, tmp_path, part, kind=kind), part, kind)


def test_pieces_are_of_about_the_size_that_they_should_be(tmp_path: Path, part: Examples) -> None:
    _, pieces = filled(tmp_path, part)
    row = len(LAYERS) * WIDTH * 4
    sizes = [int(part.lengths[piece].sum()) * row for piece in pieces]
    assert len(pieces) >= 4
    assert max(sizes) < 2**14 + 12 * row
    assert [place for piece in pieces for place in piece] == list(range(len(part)))


def test_whoever_asks_again_finds_them_whatever_the_batches(tmp_path: Path, part: Examples, monkeypatch) -> None:
    """Also for other labels, and where another stage made the teacher."""
    filled(tmp_path, part)
    monkeypatch.setattr(targets, "ROOM", 2048)
    right(kept(nobody, tmp_path, part), part)
    right(kept(nobody, tmp_path, part, by="another-e-f", machine={"device": "cpu", "threads": 1}), part)
    rows = list(range(len(part)))
    columns = {
        "row": rows, "label": [0.0] * len(part),
        "input_ids": [part.batch([i]).input_ids[0].tolist() for i in rows],
        "token_type_ids": [[0] * int(n) for n in part.lengths],
    }  # fmt: skip
    tables.write_columns(tmp_path / "others.parquet", "examples", columns)
    right(kept(nobody, tmp_path, Examples(tmp_path / "others.parquet", pad=3, regression=True)), part)


@pytest.mark.parametrize(
    "other",
    [
        {"teacher": "c" * 64}, {"code": "d" * 16}, {"layers": (0, 2)}, {"layers": (0, 1, 1)}, {"width": 16},
        {"labels": 2}, {"computed": "bfloat16"}, {"kind": "bfloat16"},
    ],
    ids=str,
)  # fmt: skip
def test_other_facts_have_another_key(tmp_path: Path, part: Examples, other: dict[str, Any]) -> None:
    assert outputs(tmp_path, part, **other).key != outputs(tmp_path, part).key


def test_the_key_is_a_function_of_the_facts(tmp_path: Path, part: Examples) -> None:
    key = outputs(tmp_path, part).key
    others = [builders.examples(tmp_path, 23), builders.examples(tmp_path, seed=1)]
    assert len({key, *(outputs(tmp_path, other).key for other in others)}) == 3
    elsewhere = outputs(tmp_path / "b", part, machine={"threads": 9}, verify="sizes", by="other-g-h")
    assert elsewhere.key == key
    assert elsewhere.folder == tmp_path / "b" / "targets" / key


def test_outputs_of_two_teachers_lie_side_by_side(tmp_path: Path, part: Examples) -> None:
    teacher = Teacher()
    for other in ({}, {"teacher": "c" * 64}, {"kind": "bfloat16"}):
        teacher.asked.clear()
        kept(teacher, tmp_path, part, **other)
        assert len(teacher.asked) == len(part)
    right(kept(nobody, tmp_path, part), part)
    right(kept(nobody, tmp_path, part, kind="bfloat16"), part, "bfloat16")


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_the_file_is_one_that_others_read(tmp_path: Path, part: Examples, kind: Kind) -> None:
    """Rows of hidden states are the tokens of all examples, one after the other."""
    folder, _ = filled(tmp_path, part, kind=kind)
    found = load_file(folder / FILE)
    assert content(folder / FILE) % 8 == 0, "numbers stand where a processor likes them"
    assert set(found) == {"hidden", "logits"}
    assert found["hidden"].shape == (int(part.lengths.sum()), len(LAYERS), WIDTH)
    assert found["logits"].shape == (len(part), LABELS)
    assert found["hidden"].dtype == getattr(torch, kind)
    assert found["logits"].dtype == torch.float32
    most = {"float32": 1e-5, "bfloat16": 2e-2}[kind]
    for i in range(len(part)):
        said = live()(part.batch([i]))
        rows = found["hidden"][part.starts[i] : part.starts[i + 1]]
        assert torch.allclose(rows.float(), said.hidden, atol=most)
        assert torch.allclose(found["logits"][i], said.logits[0], atol=1e-5)


@pytest.mark.parametrize("verify", ["checksum", "sizes"])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_filling_that_is_cut_off_goes_on_with_the_rest(
    tmp_path: Path, part: Examples, after: int, verify: Verify
) -> None:
    """In the middle of a piece: all of that one is asked for again, and what is there in the end has the same bytes."""
    folder, pieces = filled(tmp_path / "whole", part)
    whole = (folder / FILE).read_bytes()
    middle = sorted(pieces[after], key=lambda i: part.lengths[i])[-1]
    with pytest.raises(CutOff):
        kept(Teacher(until=middle), tmp_path, part)
    there = outputs(tmp_path, part).folder
    assert sorted(int(note.stem[6:]) for note in there.glob("piece-*")) == [piece[0] for piece in pieces[:after]]
    second = Teacher()
    right(kept(second, tmp_path, part, verify=verify), part)
    assert sorted(second.asked) == [i for piece in pieces[after:] for i in piece]
    assert (there / FILE).read_bytes() == whole


def test_outputs_of_another_machine_are_used_and_told_of_once(tmp_path: Path, part: Examples) -> None:
    filled(tmp_path, part, machine={"device": "cpu", "threads": 4})
    heard = Heard()
    right(kept(nobody, tmp_path, part, machine=HERE, progress=heard), part)
    (line,) = heard.lines
    assert "computed with threads 4:" in line
    heard = Heard()
    kept(nobody, tmp_path, part, machine={"device": "cpu", "threads": 4}, progress=heard)
    assert heard.lines == []


@pytest.mark.parametrize("first", [4, 1])
def test_a_part_that_another_machine_has_computed_is_told_of_too(tmp_path: Path, part: Examples, first: int) -> None:
    """Whichever machine began: one filled the first pieces, the other the rest, and both use all of them."""
    _, pieces = filled(tmp_path / "whole", part)
    machines = [{"device": "cpu", "threads": threads} for threads in (first, 5 - first)]
    with pytest.raises(CutOff):
        kept(Teacher(until=pieces[2][0]), tmp_path, part, machine=machines[0])
    kept(Teacher(), tmp_path, part, machine=machines[1])
    for ours, theirs in (machines, machines[::-1]):
        heard = Heard()
        kept(nobody, tmp_path, part, machine=ours, progress=heard)
        assert len(heard.lines) == 1
        assert f"threads {theirs['threads']}" in heard.lines[0]


def test_two_that_want_the_same_ask_the_teacher_once(tmp_path: Path, part: Examples) -> None:
    """Each with objects of its own; the first to come is slow, so that the other comes while it is asked."""
    both, teachers, answers = threading.Barrier(2), [Teacher(), Teacher()], {}
    heard = Heard()

    def want(number: int) -> None:
        def ask(batch: Batch) -> Target:
            time.sleep(0.02)
            return teachers[number](batch)

        both.wait()
        answers[number] = kept(ask, tmp_path, part, progress=heard)

    threads = [threading.Thread(target=want, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(len(teacher.asked) for teacher in teachers) == [0, len(part)]
    assert [line for line in heard.lines if "waiting for" in line] == heard.lines
    for number in range(2):
        right(answers[number], part)


def test_outputs_are_in_use_from_when_they_are_asked_for_and_name_whose_they_are(
    tmp_path: Path, part: Examples
) -> None:
    ours = outputs(tmp_path, part, by="teacher-c-d")
    assert f"targets-{ours.key}" not in in_use.in_use(tmp_path)
    kept(Teacher(), tmp_path, part, by="teacher-c-d")
    kept(nobody, tmp_path, part, by="candidates-e-f")
    assert f"targets-{ours.key}" in in_use.in_use(tmp_path)
    assert {path.name for path in ours.folder.glob("by-*")} == {"by-teacher-c-d", "by-candidates-e-f"}


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_too_small_is_found_out_before_the_teacher_is_asked(
    tmp_path: Path, part: Examples, monkeypatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match="No space left"):
            kept(nobody, tmp_path, part)
    folder = outputs(tmp_path, part).folder
    assert [path.name for path in folder.iterdir() if not path.name.startswith("by-")] == []
    right(kept(Teacher(), tmp_path, part), part)


def test_the_whole_room_is_taken_before_the_teacher_is_asked(tmp_path: Path, part: Examples) -> None:
    with pytest.raises(CutOff):
        kept(Teacher(until=0), tmp_path, part)
    begun = (outputs(tmp_path, part).folder / FILE).stat()
    folder, _ = filled(tmp_path / "whole", part)
    assert begun.st_size == (folder / FILE).stat().st_size
    assert begun.st_blocks * 512 >= begun.st_size, "and not only promised"


@pytest.mark.parametrize("call", ["pwrite", "fsync", "replace"])
def test_a_piece_that_could_not_be_written_is_not_there(tmp_path: Path, part: Examples, monkeypatch, call: str) -> None:
    """The third call of each kind that is about outputs fails, a write after half of its bytes."""
    _, pieces = filled(tmp_path / "whole", part)
    real, left = getattr(os, call), [3]

    def failing(*args: Any, **others: Any) -> Any:
        if call == "pwrite" and len(args[1]) < 1000:  # who holds a lock, logits, the header
            return real(*args, **others)
        left[0] -= 1
        if left[0] == 0:
            if call == "pwrite":
                real(args[0], args[1][: len(args[1]) // 2], args[2])
            full()
        return real(*args, **others)

    with monkeypatch.context() as patched:
        patched.setattr(os, call, failing)
        with pytest.raises(OSError, match="No space left"):
            kept(Teacher(), tmp_path, part)
    folder = outputs(tmp_path, part).folder
    noted = [int(path.stem[6:]) for path in sorted(folder.glob("piece-*.json"))]
    assert 0 < len(noted) < len(pieces)
    assert not list(folder.glob(".*.tmp"))
    second = Teacher()
    right(kept(second, tmp_path, part), part)
    assert sorted(second.asked) == [i for piece in pieces[len(noted) :] for i in piece]


def test_what_the_system_writes_in_parts_is_written_whole(tmp_path: Path, part: Examples, monkeypatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, place: real(descriptor, data[:777], place))
    right(kept(Teacher(), tmp_path, part), part)
    right(kept(nobody, tmp_path, part), part)


def test_a_note_tells_what_computed_its_piece(tmp_path: Path, part: Examples) -> None:
    folder, pieces = filled(tmp_path, part)
    held = json.loads(note_of(folder, pieces[1][0]).read_text())
    assert held["machine"] == HERE
    assert set(held) == {"machine", "sha256", "seal"}


def test_one_example_that_is_longer_than_the_room_is_asked_about_alone(tmp_path: Path) -> None:
    ids = [[5] * 3, [7] * 40, [9] * 2]
    columns = {
        "row": [0, 1, 2], "label": [0.0] * 3, "input_ids": ids, "token_type_ids": [[0] * len(row) for row in ids],
    }  # fmt: skip
    tables.write_columns(tmp_path / "part.parquet", "examples", columns)
    part = Examples(tmp_path / "part.parquet", pad=0, regression=False)
    ask = kept(Teacher(), tmp_path, part)
    batch = part.batch(np.arange(3))
    found, expected = ask(batch), live()(batch)
    assert torch.allclose(found.hidden[batch.keep], expected.hidden[batch.keep], atol=1e-5)
    assert torch.allclose(found.logits, expected.logits, atol=1e-5)
