"""What may go from the store: nothing that a report rests on, and nothing that a living process uses."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from capgap_core import garbage, in_use, store as stores
from capgap_core.errors import Damaged
from capgap_core.records import Record
from capgap_core.store import Address, Store

REPO = Path(__file__).resolve().parents[2]


def address(stage: str, letter: str = "a") -> Address:
    return Address(stage=stage, identity=letter * 64, code="c" * 16)


def finished(store: Store, here: Address, *inputs: Address) -> Path:
    """Put a stage of one file into the store."""
    out, _ = store.begin(here)
    (out / "results.parquet").write_bytes(b"0123456789")
    record = Record(
        stage=here.stage, identity=here.identity, code=here.code, code_modules={}, digest="d", recipe={},
        inputs={f"{i}": {"stage": a.stage, "identity": a.identity, "code": a.code} for i, a in enumerate(inputs)},
        data_digest=None, provenance={}, seed=None, started="", ended="", seconds=0, steps_trained=0, tokens=0,
        peak_memory_bytes=0, attempts=1, resumptions=0, summary={}, files=stores.list_files(out),
    )  # fmt: skip
    return store.commit(here, record)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A report that rests on a teacher and the data, and two stages beside it."""
    made = Store(tmp_path)
    finished(made, address("data"))
    finished(made, address("teacher"), address("data"))
    finished(made, address("report"), address("teacher"))
    finished(made, address("data", "b"))
    finished(made, address("teacher", "b"), address("data", "b"))
    return made


def test_what_no_report_rests_on_may_go(store: Store) -> None:
    waste = garbage.find(store.root)
    assert {(item.kind, *item.path.parts[-3:-1]) for item in waste} == {
        ("stage", "data", "b" * 64), ("stage", "teacher", "b" * 64),
    }  # fmt: skip
    assert all(item.bytes > 10 for item in waste)
    assert len(garbage.remove(store.root, waste)) == 2
    assert garbage.find(store.root) == []
    assert store.find(address("teacher")) is not None
    assert store.find(address("data")) is not None


@pytest.mark.parametrize("end", ["ablation", "law", "assistants"])
def test_what_the_report_of_another_flow_rests_on_stays(store: Store, end: str) -> None:
    finished(store, address(end), address("teacher", "b"))
    assert garbage.find(store.root) == []


def test_what_a_living_process_uses_stays(store: Store) -> None:
    code = f"""
import sys
from pathlib import Path
from capgap_core.in_use import use
use(Path({str(store.root)!r}), "-".join({address("teacher", "b").parts!r}))
print("ready", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, cwd=REPO) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        gone = garbage.remove(store.root, garbage.find(store.root))
        assert [item.path for item in gone] == [store.folder(address("data", "b"))]
        other.kill()
    gone = garbage.remove(store.root, garbage.find(store.root))
    assert [item.path for item in gone] == [store.folder(address("teacher", "b"))]
    assert not list((store.root / "locks").glob("using-*")), "the file of a process that has ended goes, too"


def test_this_process_counts_as_living(store: Store) -> None:
    name = "-".join(address("data", "b").parts)
    in_use.use(store.root, name)
    in_use.use(store.root, name)
    assert name in in_use.in_use(store.root)
    gone = garbage.remove(store.root, garbage.find(store.root))
    assert store.folder(address("data", "b")) not in {item.path for item in gone}


def test_a_stage_that_is_being_made_stays(store: Store) -> None:
    waste = garbage.find(store.root)
    (store.root / "locks").mkdir()
    with store.lock(address("data", "b")).open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert [item.path for item in garbage.remove(store.root, waste)] == [store.folder(address("teacher", "b"))]


def outputs(store: Store, letter: str, *makers: Address) -> Path:
    """Put a teacher's outputs into the store."""
    folder = store.root / "targets" / (letter * 64)
    folder.mkdir(parents=True)
    (folder / "outputs.safetensors").write_bytes(b"0123456789")
    for maker in makers:
        (folder / f"by-{'-'.join(maker.parts)}").touch()
    return folder


def test_outputs_stay_as_long_as_one_of_their_teachers(store: Store) -> None:
    kept = outputs(store, "1", address("teacher", "b"), address("teacher"))
    odd = outputs(store, "2")
    of_waste = outputs(store, "3", address("teacher", "b"))
    found = [item for item in garbage.find(store.root) if item.kind == "outputs"]
    assert [item.path for item in found] == [odd, of_waste]
    assert {item.bytes for item in found} == {10}
    garbage.remove(store.root, found)
    assert kept.is_dir()
    assert not odd.exists()
    assert not of_waste.exists()


def test_outputs_that_a_living_process_reads_or_makes_stay(store: Store) -> None:
    read, made = outputs(store, "1"), outputs(store, "2")
    in_use.use(store.root, f"targets-{read.name}")
    lock = store.root / "locks" / f"targets-{made.name}.lock"
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waste = [item for item in garbage.find(store.root) if item.kind == "outputs"]
        assert len(waste) == 2
        assert garbage.remove(store.root, waste) == []
    assert read.is_dir()
    assert made.is_dir()


def test_outputs_that_a_report_has_come_to_rest_on_since_stay(store: Store) -> None:
    folder = outputs(store, "1", address("teacher", "b"))
    waste = [item for item in garbage.find(store.root) if item.kind == "outputs"]
    finished(store, address("report", "b"), address("teacher", "b"))
    assert garbage.remove(store.root, waste) == []
    assert folder.is_dir()


def test_unfinished_work_goes_only_where_asked(store: Store) -> None:
    store.begin(address("distil"))
    store.begin(address("teacher"))  # of a stage that is finished
    (store.root / "trash" / "old").mkdir(parents=True)
    kinds = lambda waste: sorted(item.kind for item in waste)  # noqa: E731
    assert kinds(garbage.find(store.root)) == ["leftover", "stage", "stage", "trash"]
    waste = garbage.find(store.root, unfinished=True)
    assert kinds(waste) == ["leftover", "stage", "stage", "trash", "unfinished"]
    assert len(garbage.remove(store.root, waste)) == 5
    assert os.listdir(store.root / "trash") == []


def test_where_a_report_cannot_be_read_nothing_may_go(store: Store) -> None:
    record = store.folder(address("report")) / stores.RECORD
    record.write_text(record.read_text()[:-20])
    with pytest.raises(Damaged):
        garbage.find(store.root)


def test_what_a_report_has_come_to_rest_on_since_stays(store: Store) -> None:
    waste = garbage.find(store.root)
    finished(store, address("report", "b"), address("teacher", "b"))
    assert garbage.remove(store.root, waste) == []


def test_a_name_that_is_cut_short_by_a_full_disk_is_no_use(tmp_path: Path) -> None:
    """A limit on the size of files does what a full disk does: the last write is short."""
    code = """
import resource, signal, sys
from pathlib import Path
from capgap_core import in_use
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
root = Path(sys.argv[1])
in_use.use(root, "first")
resource.setrlimit(resource.RLIMIT_FSIZE, (12, 12))
try:
    in_use.use(root, "second-and-long")
except OSError as error:
    print(error.strerror)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "No space left on device", done.stderr


def test_what_could_not_be_removed_is_not_said_to_be_gone(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waste = garbage.find(tmp_path)
    assert waste
    monkeypatch.setattr(stores, "remove", lambda _: None)
    assert garbage.remove(tmp_path, waste) == []
