"""What is wrong with the Ray that a run is to use is said before any work, and all at once."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from texts import write_text

from capgap_core import given_ray, law, preflight
from capgap_core.chain import in_this_process
from capgap_core.errors import Fault, InputFaults
from capgap_core.fingerprint import code_of
from capgap_core.progress import Silent
from capgap_core.recipes import Execution
from capgap_core.store import read_record

LADDER = {"teachers": [3e3], "students": [3e3], "teacher_tokens": 0.3, "budgets": [0.3], "seeds": [1]}

there = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'capgap[ray]'"
)


@pytest.fixture
def asked(tmp_path: Path) -> dict[str, Any]:
    return {
        "dataset": str(write_text(tmp_path)), "ladder": LADDER, "training": {"length": 16, "batch_size": 16},
        "run": {"root": str(tmp_path / "art"), "threads": 1, "device": "cpu"},
    }  # fmt: skip


def faults_of(parameters: dict[str, Any], flow: str = "law", **run: Any) -> dict[str, Fault]:
    with pytest.raises(InputFaults) as caught:
        preflight.check({**parameters, "run": {**parameters["run"], **run}}, flow=flow)
    return {one.field: one for one in caught.value.faults}


def unanswered() -> str:
    """Return an address at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_a_flow_whose_stages_follow_one_another_takes_no_ray(asked: dict[str, Any]) -> None:
    found = faults_of({"run": asked["run"], "dataset": "/nowhere"}, flow="minidisc", ray="local")
    assert set(found) == {"run.ray", "dataset"}, "with every other fault"
    assert "only law has some to make at once" in found["run.ray"].rule


def test_ray_that_is_not_installed_is_named_with_what_installs_it(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for where in ("local", unanswered()):
        found = faults_of(asked, ray=where)
        assert set(found) == {"run.ray"}
        assert found["run.ray"].remedy.startswith("pip install 'capgap[ray]'")


@pytest.mark.parametrize("where", ["here", "ray://127.0.0.1:10001", "127.0.0.1", "", "two words:80"])
def test_an_address_of_another_form_is_refused(asked: dict[str, Any], where: str) -> None:
    found = faults_of(asked, ray=where)
    assert set(found) == {"run.ray"}
    assert "host:port" in found["run.ray"].remedy


@there
def test_a_gpu_by_number_and_an_address_that_nobody_answers_are_said_at_once(asked: dict[str, Any]) -> None:
    assert "GPU of its own" in faults_of(asked, ray="local", device="cuda:1")["run.device"].rule
    found = faults_of({**asked, "data": {"tokenizer": "/nowhere"}}, ray=unanswered())
    assert set(found) == {"run.ray", "data.tokenizer"}
    assert "no Ray answers there (Connection refused)" in found["run.ray"].rule
    found = faults_of(asked, ray="127.0.0.1:99999")
    assert "no Ray answers there" in found["run.ray"].rule


def test_a_machine_says_whether_it_sees_the_store_and_which_code_it_has(tmp_path: Path) -> None:
    with given_ray._probe(tmp_path) as (path, words):
        code, _ = code_of("pretrain")
        assert json.loads(given_ray.seen(str(path), words)) == {"sees": True, "code": code}
        assert not json.loads(given_ray.seen(str(path), "other"))["sees"], "another folder of the same name"
        assert not json.loads(given_ray.seen(str(path) + "x", words))["sees"]
    assert list(tmp_path.iterdir()) == []


HOLD = """
import sys
from capgap_core.ray_start import connected
from capgap_core.recipes import Execution
with connected(Execution(ray="local", device="cpu")) as ray:
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Return the address of a Ray that another process holds, with a token that both know."""
    token = "f" * 64
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", token)
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        begun = f"import capgap_core.ray_start as w\nw._token = lambda: {token!r}\n{HOLD}"
        held = subprocess.Popen(
            [sys.executable, "-c", begun], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).resolve().parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert held.stdout is not None
        yield held.stdout.readline().strip()
        held.communicate(timeout=120)


@there
@pytest.mark.slow
def test_a_cluster_is_asked_for_what_it_has_and_makes_a_grid(asked: dict[str, Any], cluster: str) -> None:
    found = faults_of(asked, ray=cluster, device="cuda")
    assert found["run.device"].rule == "the cluster of run.ray has no GPU"
    checked = preflight.check({**asked, "run": {**asked["run"], "ray": cluster}}, flow="law")
    call = in_this_process(Silent())
    made = law.fill(law.grid_of(checked), call)
    plain = preflight.check({**asked, "run": {**asked["run"], "root": asked["run"]["root"] + "-plain"}}, flow="law")
    assert law.fill(law.grid_of(plain), call).digest == made.digest
    assert not list(Path(asked["run"]["root"]).glob(".seen-*"))
    assert read_record(made.folder).provenance["threads"] == 1
    assert Execution(ray=cluster).ray == cluster
