"""What runs have written of themselves: found by its parameters, and passed over where it cannot be read."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event, Thread

import builders
import pytest

from capgap_core import garbage
from capgap_core.errors import NonFinite
from capgap_core.recipes import Minidisc
from capgap_core.records import Reference
from flows import cli, runs


def test_what_this_process_began_last_is_known(tmp_path):
    one, other = (runs.RunFolder("minidisc", tmp_path, name, None) for name in "ab")
    one.begin({"seed": 1})
    other.begin({"seed": 1})
    one.fail(RuntimeError("no"))
    assert runs.ended_here() is None
    other.fail(RuntimeError("yes"))
    assert runs.ended_here()["run_id"] == "b"


def test_of_stages_that_run_at_once_the_one_that_fails_is_named(tmp_path):
    folder, begun, failed = runs.RunFolder("law", tmp_path, "a", None), Barrier(2), Event()
    folder.begin({})
    errors: list[Exception] = []

    def fails() -> None:
        try:
            with folder.running("pretrain one"):
                begun.wait(10)
                failed.wait(10)
                raise NonFinite("pretrain", "step 3: not finite", "Lower it.")
        except NonFinite as error:
            errors.append(error)

    other = Thread(target=fails)
    other.start()
    begun.wait(10)
    with folder.running("pretrain two"):  # it has begun later, and goes well
        failed.set()
        other.join()
    named = folder.named(errors[0])
    folder.fail(named)
    ended = json.loads((folder.path / "result.json").read_text())
    assert ended["error"]["stage"] == "pretrain one"
    assert str(named).startswith("pretrain: step 3: not finite (pretrain one). Lower it. Resume with: ")


def test_stages_that_finish_at_once_are_all_kept(tmp_path):
    folder = runs.RunFolder("law", tmp_path, "a", None)
    folder.begin({})
    made = [Reference(stage="pretrain", identity=f"{i}", code="c", digest="d", path=f"/{i}") for i in range(40)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda one: folder.add("", one), made))
    held = json.loads((folder.path / "stages.json").read_text())
    assert sorted(held["made"]) == sorted(one.path for one in made)
    assert runs.unreadable(tmp_path) == []


def test_any_byte_of_what_a_run_has_written_of_itself_is_found(first, root):
    folder = root / "runs" / first["run_id"]
    for name in ("result.json", "params.json"):
        whole = (folder / name).read_bytes()
        for place in range(0, len(whole), 97):
            (folder / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert runs.unreadable(root) == [folder / name]
            assert first["run_id"] not in {held["run_id"] for held in runs.results(root)} or name == "params.json"
            assert runs._parameters("minidisc", folder) is None or name == "result.json"
        (folder / name).write_bytes(whole)
    assert runs.unreadable(root) == []


@pytest.mark.parametrize("held", [b"", b"{", b"[]", b"\xff", b"null", b'{"schema": "another"}', b"[" * 100_000])
def test_what_cannot_be_read_stops_nobody_and_is_named(tmp_path, monkeypatch, capsys, held):
    monkeypatch.setenv("CAPGAP_ARTIFACTS", str(tmp_path))
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / "result.json").write_bytes(held)
    assert runs.results(tmp_path) == []
    assert cli.main(["show"]) == 0
    assert cli.main(["show", "--verify"]) == 1
    assert f"{folder / 'result.json'}: cannot be read" in capsys.readouterr().err


def test_verify_counts_what_is_whole_and_names_what_is_not(first, tiny, root, monkeypatch, capsys):
    from flows.minidisc import minidisc

    monkeypatch.setenv("CAPGAP_ARTIFACTS", str(root))
    assert cli.main(["show", "--verify"]) == 0
    count = int(capsys.readouterr().out.split()[0])
    assert count >= len(first["stages"])
    table = Path(first["stages"][2]["path"], "record.json")
    whole = table.read_bytes()
    table.write_bytes(whole[:-2])
    assert cli.main(["show", "--verify"]) == 1
    said = capsys.readouterr()
    assert f"{count} finished stages, {count - 1} whole, 1 not" in said.out
    assert str(table) in said.err
    table.write_bytes(whole)
    assert minidisc(**tiny, run={"root": str(root), "threads": 1})["steps_trained"] == 0


def test_gc_lists_and_removes_what_no_report_rests_on(first, root, monkeypatch, capsys):
    """In a copy, so that no stage of it is in use: all goes that the one report does not need."""
    copy = root.parent / "copied for gc"
    shutil.copytree(root / "store", copy / "store")
    report = Path(next(s["path"] for s in first["stages"] if s["stage"] == "report"))
    monkeypatch.setenv("CAPGAP_ARTIFACTS", str(copy))
    ends = [path for stage in garbage.ENDS for path in (copy / "store" / stage).glob("*/*")]
    others = [path for path in ends if path.parent.name != report.parent.name]
    for path in others:
        shutil.rmtree(path)
    assert cli.main(["gc"]) == 0
    before = sorted((copy / "store").glob("*/*/*"))
    shutil.rmtree(copy / "store" / "report")
    assert cli.main(["gc"]) == 0
    assert "would be freed" in capsys.readouterr().out
    assert sorted((copy / "store").glob("*/*/*")) == [p for p in before if "report" not in p.parts]
    assert cli.main(["gc", "--apply"]) == 0
    assert "freed" in capsys.readouterr().out
    assert list((copy / "store").glob("*/*/*")) == []
    assert list((copy / "trash").iterdir()) == []


def test_gc_keeps_what_a_run_that_did_not_complete_has_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CAPGAP_ARTIFACTS", str(tmp_path))
    made = builders.make_tradeoff(tmp_path, builders.scored(tmp_path))
    shutil.move(tmp_path / "art" / "store", tmp_path / "store")
    folder = runs.RunFolder("minidisc", tmp_path, "a", None)
    folder.begin({})
    folder.add("assistant", made)
    assert cli.main(["gc", "--apply"]) == 0
    assert capsys.readouterr().out == "0 B freed\n"
    folder.fail(RuntimeError("no"))
    assert cli.main(["gc", "--apply"]) == 0
    assert len(list((tmp_path / "store").glob("*/*/*/record.json"))) == 1
    assert cli.main(["gc", "--apply", "--unfinished"]) == 0
    assert not list((tmp_path / "store").glob("*/*/*/record.json"))


def test_doctor_finds_what_will_do_and_what_will_not(prefect_server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CAPGAP_ARTIFACTS", str(tmp_path / "art"))
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    cli.main(["doctor"])
    said = capsys.readouterr().out
    for name in ("Python", "torch", "prefect", "fastapi", "store", "locks", "space", "server", "worker", "slots"):
        assert f" {name}: " in said
    assert "NOT  worker: nobody serves: capgap up" in said
    assert "Traceback" not in said
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert cli.main(["doctor"]) == 1
    assert "does not answer" in capsys.readouterr().out
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CAPGAP_ARTIFACTS", str(tmp_path / "file" / "below"))
    assert cli.main(["doctor"]) == 1


def test_parameters_of_another_version_are_no_siblings(tmp_path):
    (tmp_path / "params.json").write_text(json.dumps({"no": "such"}))
    assert runs._parameters("minidisc", tmp_path) is None
    (tmp_path / "params.json").write_text(Minidisc().model_dump_json())
    assert runs._parameters("minidisc", tmp_path) == Minidisc()
