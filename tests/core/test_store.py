"""The store: what is there is whole, what is damaged is found and rebuilt, what has other code is made again."""

import os
from pathlib import Path

import builders
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from capgap_core import build as building, store as stores
from capgap_core.errors import Damaged, StoreError
from capgap_core.records import Reference
from capgap_core.store import Address, Store

make, RECIPE = builders.make_tradeoff, builders.TRADEOFF


@pytest.fixture
def candidates(tmp_path: Path) -> Reference:
    """A finished stage that the tradeoff can read."""
    return builders.scored(tmp_path)


def test_a_second_build_reuses_the_first(tmp_path: Path, candidates: Reference) -> None:
    first, second = make(tmp_path, candidates), make(tmp_path, candidates)
    assert (first.reused, second.reused) == (False, True)
    assert first.digest == second.digest
    assert first.summary == second.summary
    assert not list((tmp_path / "art" / "work").rglob("out"))


def test_another_recipe_is_another_result(tmp_path: Path, candidates: Reference) -> None:
    first = make(tmp_path, candidates)
    other = make(tmp_path, candidates, RECIPE.model_copy(update={"lam": 0.0}))
    assert other.identity != first.identity
    assert not other.reused


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_byte_of_any_file_is_found_and_rebuilt(tmp_path: Path, candidates: Reference, data: st.DataObject) -> None:
    made = make(tmp_path, candidates)
    files = sorted(p for p in made.folder.rglob("*") if p.is_file())
    assert stores.RECORD in {p.name for p in files}
    path = data.draw(st.sampled_from(files))
    held = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, 2**32)) % len(held)  # the record's times make its length vary
    held[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(held)
    again = make(tmp_path, candidates)
    assert not again.reused
    assert "made again" in again.why
    assert path.name in again.why
    assert again.digest == made.digest
    assert make(tmp_path, candidates).reused


def test_a_flip_that_keeps_size_and_time_is_found_by_another_process(tmp_path: Path, candidates: Reference) -> None:
    made = make(tmp_path, candidates)
    path = made.table("tradeoff")
    before = path.stat()
    held = bytearray(path.read_bytes())
    held[40] ^= 1
    path.write_bytes(held)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    stores._verified.clear()
    with pytest.raises(Damaged, match="not what the record says"):
        stores.verified_record(made.folder)
    assert stores.verified_record(made.folder, verify="sizes").digest == made.digest


def test_truncated_and_deleted_files_are_found(tmp_path: Path, candidates: Reference) -> None:
    made = make(tmp_path, candidates)
    made.table("tradeoff").write_bytes(made.table("tradeoff").read_bytes()[:-1])
    assert "bytes where the record says" in make(tmp_path, candidates).why
    made.table("tradeoff").unlink()
    assert "missing" in make(tmp_path, candidates).why
    trash = list((tmp_path / "art" / "trash").glob("*.why"))
    assert len(trash) == 2


def test_other_code_is_made_again_or_taken_where_asked(
    tmp_path: Path, candidates: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(tmp_path, candidates)
    monkeypatch.setattr(building, "code_of", lambda stage, extra=(): ("f" * 16, {}))
    taken = make(tmp_path, candidates, reuse="any-code")
    assert taken.reused
    assert taken.why == f"made by other code ({first.code})"
    again = make(tmp_path, candidates)
    assert not again.reused
    assert "code has changed" in again.why
    assert again.digest == first.digest


def test_a_failed_stage_leaves_nothing_in_the_store(tmp_path: Path, candidates: Reference) -> None:
    with pytest.raises(KeyError):
        make(tmp_path, candidates, RECIPE.model_copy(update={"metric": "accuracy", "achieved": {}}))
    assert not (tmp_path / "art" / "store").exists()


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b", "", "a" * 65, "ä", "a\0", "A", "."])
def test_no_name_leaves_the_store(name: str) -> None:
    with pytest.raises(StoreError, match="cannot name a folder"):
        Address(stage=name, identity="a", code="b")


def test_a_record_of_a_newer_version_is_refused(tmp_path: Path, candidates: Reference) -> None:
    made = make(tmp_path, candidates)
    path = made.folder / stores.RECORD
    held = stores.verified_record(made.folder).model_dump(mode="json") | {"schema_": "capgap.record/2"}
    seal = stores.sha256_text(stores._render(held))
    path.write_text(stores._render({**held, "seal": seal}))
    with pytest.raises(StoreError, match="another version"):
        Store(tmp_path / "art").find(Address(stage="tradeoff", identity=made.identity, code=made.code))


@pytest.mark.parametrize("odd", ["", "many", "\x00"])
def test_a_damaged_count_of_attempts_stops_nobody(tmp_path: Path, candidates: Reference, odd: str) -> None:
    made = make(tmp_path, candidates)
    address = Address(stage="tradeoff", identity=made.identity, code=made.code)
    work = Store(tmp_path / "art").work(address)
    (work / "out").parent.mkdir(parents=True)
    (work / "attempts").write_text(odd)
    (work / "out").write_text("a file where a folder should be")
    Store(tmp_path / "art").set_aside(address, "for the test")
    assert make(tmp_path, candidates).digest == made.digest


def test_a_record_that_breaks_a_parser_is_damaged(tmp_path: Path, candidates: Reference) -> None:
    made = make(tmp_path, candidates)
    (made.folder / stores.RECORD).write_text("[" * 100_000)
    assert make(tmp_path, candidates).digest == made.digest
    (made.folder / stores.RECORD).unlink()
    (made.folder / stores.RECORD).symlink_to(stores.RECORD)
    assert make(tmp_path, candidates).digest == made.digest


def test_what_was_killed_just_after_its_commit_leaves_nothing(tmp_path: Path, candidates: Reference) -> None:
    made = make(tmp_path, candidates)
    address = Address(stage="tradeoff", identity=made.identity, code=made.code)
    work = Store(tmp_path / "art").work(address)
    (work / "checkpoints").mkdir(parents=True)
    assert make(tmp_path, candidates).reused
    assert not work.exists()
