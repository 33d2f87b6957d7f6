"""Outputs on disk that are no longer whole: found, and made again, no more of them than has to be."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import builders
import keeping
import pytest
import torch
from cut_off import Heard
from keeping import LABELS, LAYERS, WIDTH, Teacher, content, filled, kept, nobody, note_of, right

from capgap_core.batches import Examples
from capgap_core.kept_outputs import FILE
from capgap_core.store import Verify


@pytest.fixture(autouse=True)
def pieces_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    keeping.small(monkeypatch)


@pytest.fixture
def part(tmp_path: Path) -> Examples:
    return builders.examples(tmp_path)


def flip(path: Path, place: int) -> None:
    held = path.read_bytes()
    path.write_bytes(held[:place] + bytes([held[place] ^ 4]) + held[place + 1 :])


def harm_hidden(folder: Path, part: Examples, example: int) -> None:
    row = len(LAYERS) * WIDTH * 4
    flip(folder / FILE, content(folder / FILE) + int(part.starts[example]) * row + row // 2 + 2)


def harm_logits(folder: Path, part: Examples, example: int) -> None:
    flip(folder / FILE, (folder / FILE).stat().st_size - (len(part) - example) * LABELS * 4 + 5)


def flip_note(folder: Path, _part: Examples, example: int) -> None:
    flip(note_of(folder, example), 20)


def cut_note(folder: Path, _part: Examples, example: int) -> None:
    note_of(folder, example).write_bytes(note_of(folder, example).read_bytes()[:50])


def empty_note(folder: Path, _part: Examples, example: int) -> None:
    note_of(folder, example).write_bytes(b"")


def delete_note(folder: Path, _part: Examples, example: int) -> None:
    note_of(folder, example).unlink()


def other_note(folder: Path, _part: Examples, example: int) -> None:
    shutil.copyfile(note_of(folder, 0), note_of(folder, example))


Harm = Callable[[Path, Examples, int], None]
NOTES = (flip_note, cut_note, empty_note, delete_note)


@pytest.mark.parametrize("harm", [harm_hidden, harm_logits, other_note, *NOTES])
@pytest.mark.parametrize("example", [9, 23])
def test_a_piece_that_is_not_whole_is_asked_for_again_alone(
    tmp_path: Path, part: Examples, harm: Harm, example: int
) -> None:
    folder, pieces = filled(tmp_path, part)
    (piece,) = [piece for piece in pieces if example in piece]
    assert piece[0] > 0
    whole = (folder / FILE).read_bytes()
    harm(folder, part, example)
    assert ((folder / FILE).read_bytes() == whole) == ("note" in harm.__name__)
    teacher, heard = Teacher(), Heard()
    right(kept(teacher, tmp_path, part, progress=heard), part)
    assert sorted(teacher.asked) == piece
    assert (folder / FILE).read_bytes() == whole
    assert len(heard.lines) == (harm is not delete_note)
    assert all("made again" in line and str(folder) in line for line in heard.lines)
    right(kept(nobody, tmp_path, part), part)


def cut_file(folder: Path) -> None:
    os.truncate(folder / FILE, (folder / FILE).stat().st_size - 3)


def longer_file(folder: Path) -> None:
    with (folder / FILE).open("ab") as stream:
        stream.write(b"\0")


def flip_header(folder: Path) -> None:
    flip(folder / FILE, 30)


def flip_length(folder: Path) -> None:
    flip(folder / FILE, 1)


def delete_file(folder: Path) -> None:
    (folder / FILE).unlink()


def empty_file(folder: Path) -> None:
    (folder / FILE).write_bytes(b"")


@pytest.mark.parametrize("verify", ["checksum", "sizes"])
@pytest.mark.parametrize("harm", [cut_file, longer_file, flip_header, flip_length, delete_file, empty_file])
def test_a_file_that_is_not_whole_is_made_again(
    tmp_path: Path, part: Examples, harm: Callable[[Path], None], verify: Verify
) -> None:
    """What its notes say of another file counts no more, however it is looked at."""
    folder, _ = filled(tmp_path, part)
    whole = (folder / FILE).read_bytes()
    harm(folder)
    teacher = Teacher()
    right(kept(teacher, tmp_path, part, verify=verify), part)
    assert sorted(teacher.asked) == list(range(len(part)))
    assert (folder / FILE).read_bytes() == whole
    right(kept(nobody, tmp_path, part, verify="checksum"), part)


def test_where_sizes_are_enough_the_content_is_not_read(tmp_path: Path, part: Examples) -> None:
    folder, _ = filled(tmp_path, part)
    before = kept(nobody, tmp_path, part, verify="sizes")(part.batch([9]))
    harm_hidden(folder, part, 9)
    harm_logits(folder, part, 9)
    after = kept(nobody, tmp_path, part, verify="sizes")(part.batch([9]))
    assert not torch.equal(after.hidden, before.hidden)
    assert not torch.equal(after.logits, before.logits)


@pytest.mark.parametrize("harm", NOTES)
def test_notes_are_read_also_where_sizes_are_enough(tmp_path: Path, part: Examples, harm: Harm) -> None:
    folder, pieces = filled(tmp_path, part)
    harm(folder, part, pieces[1][0])
    teacher = Teacher()
    right(kept(teacher, tmp_path, part, verify="sizes"), part)
    assert sorted(teacher.asked) == pieces[1]
