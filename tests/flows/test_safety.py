"""What a stranger could try: results that run code, names that lead out of the store, secrets that leak, open ports."""

import base64
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import builders
import pytest
from hypothesis import given, strategies as st

from capgap_core import preflight, store as stores
from capgap_core.errors import InputFaults, StoreError
from capgap_core.store import Address, Store
from flows import cli, servers

REPO = Path(__file__).resolve().parents[2]
SECRETS = {
    "HF_TOKEN": "hf_uXq7secretsecret", "AWS_SECRET_ACCESS_KEY": "wJalrsecretsecret", "MY_PASSWORD": "swordfish-secret",
}  # fmt: skip


class Trap:
    """What, unpickled, makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self):
        return open, (str(self._path), "w")


@pytest.mark.parametrize("form", ["now", "older"])
def test_a_record_of_prefects_that_names_pickle_is_never_read(first, tiny, root, tmp_path, form):
    """The second half shows that Prefect itself would have run it."""
    from prefect._internal.result_records import ResultRecord

    from flows.minidisc import minidisc

    sprung = tmp_path / "sprung"
    stage = next(s for s in first["stages"] if s["stage"] == "tradeoff")
    (path,) = (root / "prefect" / "results").glob(f"tradeoff-{stage['identity']}-*")
    whole = path.read_bytes()
    held = json.loads(whole)
    (held["metadata"] if form == "now" else held)["serializer"] = {"type": "pickle"}
    held["result"] = base64.encodebytes(pickle.dumps(Trap(sprung))).decode()
    path.write_text(json.dumps(held))
    again = minidisc(**tiny, run={"root": str(root), "threads": 1})
    assert all(s["reused"] for s in again["stages"])
    assert not sprung.exists()
    ResultRecord.deserialize(json.dumps(held).encode())
    assert sprung.exists()


@given(
    st.lists(
        st.text(max_size=70) | st.sampled_from(["..", ".", "/", "a/b", "a\0", "ａ", "é", "A"]), min_size=3, max_size=3
    )
)
def test_no_address_leads_out_of_the_store(parts: list[str]) -> None:
    store = Store("/store")
    try:
        address = Address(stage=parts[0], identity=parts[1], code=parts[2])
    except StoreError:
        return
    for folder in (store.folder(address), store.work(address), store.lock(address)):
        assert Path(os.path.normpath(folder)) == folder
        assert folder.is_relative_to("/store")


ODD = [
    "../../outside",
    "/etc/passwd",
    "a/../../outside",
    "a\0b",
    "x" * 300,
    "ｇｌｕｅ/ｓｓｔ２",
    "..",
    "~root",
    "a/b@../../c",
]


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("field", ["dataset", "teacher"])
def test_an_odd_name_is_refused_and_nothing_is_written_for_it(tmp_path, monkeypatch, field, name):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    dataset = builders.single_csv(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputFaults) as refused:
        preflight.check({"dataset": str(dataset), field: name, "run": {"root": str(inside / "art")}})
    assert [one.field.split(" ")[0] for one in refused.value.faults] == [field]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("what", [*ODD, "", "*", "**/*", "store/..", "last/.."])
def test_show_finds_nothing_by_an_odd_name(tmp_path, monkeypatch, what):
    monkeypatch.setenv("CAPGAP_ARTIFACTS", str(tmp_path / "art"))
    (tmp_path / "outside").mkdir()
    assert cli.main(["show", what]) == 2


def test_gc_removes_a_link_and_not_what_it_leads_to(tmp_path, monkeypatch):
    monkeypatch.setenv("CAPGAP_ARTIFACTS", str(tmp_path / "art"))
    outside = tmp_path / "outside"
    (outside / "c").mkdir(parents=True)
    (outside / "c" / "kept.txt").write_text("kept")
    for place in ("store/teacher", "work/teacher", "trash"):
        folder = tmp_path / "art" / place
        folder.mkdir(parents=True)
        (folder / "b").symlink_to(outside)
    assert cli.main(["gc", "--apply", "--unfinished"]) == 0
    assert (outside / "c" / "kept.txt").read_text() == "kept"
    assert outside.is_dir()
    assert not (tmp_path / "art" / "trash" / "b").exists()


def test_no_secret_reaches_what_a_run_leaves(tiny, tmp_path):
    """A whole run, its server's data base and logs among what is searched."""
    file = tmp_path / "asked.json"
    root = tmp_path / "art"
    file.write_text(json.dumps({**tiny, "run": {"root": str(root), "threads": 1}}))
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = {**own, **SECRETS, "PREFECT_LOGGING_LEVEL": "DEBUG"}
    words = [sys.executable, "-m", "flows.cli", "run", "minidisc", "--params", str(file), "--json"]
    done = subprocess.run(words, cwd=REPO, env=environment, capture_output=True, check=True)
    files = [path for path in root.rglob("*") if path.is_file()]
    assert {"prefect.db", "server.log", "record.json", "result.json"} <= {path.name for path in files}
    for held in (done.stdout, done.stderr, *(path.read_bytes() for path in files)):
        assert not [value for value in SECRETS.values() if value.encode() in held]


@pytest.mark.skipif(not Path("/proc/net/tcp").is_file(), reason="looks at Linux's table of sockets")
def test_the_server_listens_on_this_machine_only(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_SERVER_API_HOST", "0.0.0.0")
    server, url = servers.start_server(tmp_path)
    try:
        port = f"{int(url.split(':')[2].split('/')[0]):04X}"
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        rows += [line.split() for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]]
        listening = {row[1].split(":")[0] for row in rows if row[1].endswith(f":{port}") and row[3] == "0A"}
        assert listening == {"0100007F"}
    finally:
        server.stop()


def test_a_folder_of_somebody_else_in_the_store_is_left_alone(first, tiny, root):
    from flows.minidisc import minidisc

    stage = first["stages"][0]
    odd = Path(stage["path"]).parent / "@eaDir"
    odd.mkdir()
    (root / "store" / "Thumbs" / "x" / "y").mkdir(parents=True)
    try:
        again = minidisc(**tiny, run={"root": str(root), "threads": 1})
        assert all(s["reused"] for s in again["stages"])
        assert not any(folder.name == "@eaDir" for folder in map(Store(root).folder, stores.addresses(root / "store")))
    finally:
        odd.rmdir()
        shutil.rmtree(root / "store" / "Thumbs")
