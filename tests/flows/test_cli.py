"""The command line as a user meets it: exit statuses, stdout, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows import servers
from flows.places import named_api

ROOT = Path(__file__).resolve().parents[2]


def capgap(*words, environment=None):
    command = [sys.executable, "-m", "flows.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False, timeout=240)


def test_bad_input_is_refused_at_once_with_every_fault(tmp_path):
    start = time.monotonic()
    pairs = [
        "student.scale=1.5",
        "stundent.scale=3",
        "student.scal=1",
        "tradeoff.lam=no",
        "seed=1",
        "seed=2",
        "dataset=/no/such",
    ]
    words = [w for pair in pairs for w in ("-p", pair)]
    done = capgap("run", "minidisc", *words, "-p", f"run.root={tmp_path}", "--json")
    assert done.returncode == 2
    assert time.monotonic() - start < 10
    assert "Traceback" not in done.stderr
    assert "student.scale?" in done.stderr
    held = json.loads(done.stdout)
    fields = {f["field"] for f in held["error"]["faults"]}
    assert fields == {"student.scale", "stundent", "student.scal", "tradeoff.lam", "seed", "dataset"}
    assert all(f["value"] and f["rule"] and f["remedy"] for f in held["error"]["faults"])
    assert (held["schema"], held["status"]) == ("capgap.run/1", "failed")
    assert not {p.name for p in tmp_path.iterdir()} & {"store", "work", "runs", "prefect"}


def test_a_run_prints_one_line_of_json_and_nothing_else(first, tiny, root, environment, tmp_path):
    file = tmp_path / "params.json"
    file.write_text(json.dumps(tiny))
    words = ["-p", f"run.root={root}", "-p", "run.threads=1"]
    done = capgap("run", "minidisc", "--params", str(file), *words, "--json", environment=environment)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    held = json.loads(done.stdout)
    assert held["steps_trained"] == 0
    assert held["scores"] == first["scores"]
    assert environment["PREFECT_API_URL"] in done.stderr.splitlines()[0]


def test_a_preview_prints_a_table_or_one_line_of_json(tiny, tmp_path):
    file = tmp_path / "params.json"
    file.write_text(json.dumps({**tiny, "run": {"root": str(tmp_path / "art"), "threads": 1}}))
    done = capgap("preview", "minidisc", "--params", str(file))
    assert done.returncode == 0, done.stderr
    assert "sandwich candidate" in done.stdout
    assert "ms a step" in done.stdout
    done = capgap("preview", "minidisc", "--params", str(file), "--json")
    (line,) = done.stdout.splitlines()
    held = json.loads(line)
    assert held["schema"] == "capgap.preview/1"
    assert held["seconds"] == pytest.approx(sum(stage["seconds"] for stage in held["stages"]))


def test_a_preview_of_bad_input_is_refused_as_a_run_is(tmp_path):
    done = capgap("preview", "minidisc", "-p", "student.scale=1.5", "-p", f"run.root={tmp_path}", "--json")
    assert done.returncode == 2
    assert "student.scale" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["error"]["faults"]


def test_show_lists_runs_and_prints_a_run_and_a_record(first, root):
    environment = {**os.environ, "CAPGAP_ARTIFACTS": str(root)}
    assert first["run_id"] in capgap("show", environment=environment).stdout
    assert "student" in capgap("show", first["run_id"][:13], environment=environment).stdout
    assert json.loads(capgap("show", "last", "--json", environment=environment).stdout)["flow"] == "minidisc"
    stage = first["stages"][0]
    for what in (f"data/{stage['identity'][:10]}", stage["path"]):
        assert json.loads(capgap("show", what, environment=environment).stdout)["identity"] == stage["identity"]
    assert capgap("show", "nothing/like", environment=environment).returncode == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_its_server(tiny, tmp_path, number):
    """Its own server is up when the signal comes, and gone when the command is."""
    file = tmp_path / "params.json"
    file.write_text(json.dumps({**tiny, "run": {"root": str(tmp_path / "artifacts")}}))
    environment = {n: v for n, v in os.environ.items() if not n.startswith("PREFECT_")} | {"HOME": str(tmp_path)}
    command = [sys.executable, "-m", "flows.cli", "run", "minidisc", "--params", str(file)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if "Beginning flow run" in line:
                break
        running.send_signal(number)
        said = running.stderr.read()
        assert running.wait(timeout=60) == 128 + number
    assert f"interrupted by {number.name}" in said
    log = (tmp_path / "artifacts" / "prefect" / "server.log").read_text()
    port = log.split("http://127.0.0.1:")[1].split("/")[0].split()[0]
    assert not servers.healthy(f"http://127.0.0.1:{port}/api")


def test_the_server_that_the_user_named_is_found_without_prefect(monkeypatch, tmp_path):
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    assert named_api() is None
    (tmp_path / "profiles.toml").write_text(
        'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "http://a/api"\n[profiles.x]\n'
    )
    assert named_api() == ("http://a/api", "the Prefect profile 'mine'")
    monkeypatch.setenv("PREFECT_PROFILE", "x")
    assert named_api() is None
    monkeypatch.setenv("PREFECT_API_URL", "http://b/api")
    assert named_api() == ("http://b/api", "PREFECT_API_URL")


@pytest.mark.parametrize("words", [("run", "minidisc", "--json"), ("up", "--run", "minidisc", "--no-keep")])
def test_a_named_server_that_does_not_answer_is_said(words, environment, tmp_path):
    named = {**environment, "PREFECT_API_URL": "http://127.0.0.1:9/api", "CAPGAP_ARTIFACTS": str(tmp_path / "art")}
    done = capgap(*words, environment=named)
    assert done.returncode == 1
    assert "does not answer. Start it, or unset it" in done.stderr
    assert "from PREFECT_API_URL" in done.stderr
    assert "Traceback" not in done.stderr
    if "--json" in words:
        assert json.loads(done.stdout)["status"] == "failed"


STARTS = """
import sys
from pathlib import Path
from flows import servers
ports = iter([int(sys.argv[2])])
free = servers.free_port
servers.free_port = lambda: next(ports, None) or free()
child, url = servers.start_server(Path(sys.argv[1]))
print(url, flush=True)
sys.stdin.readline()
child.stop()
"""


def test_two_servers_that_find_one_port_free_both_start(tmp_path):
    """What answers at a port is not always one's own: they are asked for their folder."""
    port = str(servers.free_port())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", STARTS, str(tmp_path / name), port],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for name in ("one", "other")
    ]  # fmt: skip
    urls = [process.stdout.readline().strip() for process in both]
    assert len(set(urls)) == 2
    assert f":{port}/" in "".join(urls)
    for url, name in zip(urls, ("one", "other"), strict=True):
        assert servers._home_of(url) == str(servers.home(tmp_path / name))
    for process in both:
        process.communicate("\n", timeout=60)
        assert process.returncode == 0
