"""The flow of the law on real Ray workers: its tasks at once, the same bytes, and an end in the middle."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from going import REPO
from texts import write_text

from flows import servers

if importlib.util.find_spec("ray") is None:  # not imported here: what starts it sets how
    pytest.skip("ray is not installed: pip install 'capgap[ray]'", allow_module_level=True)


def asked(root: Path, **run: Any) -> dict[str, Any]:
    return {
        "dataset": str(write_text(root, documents=300)),
        "ladder": {"teachers": [3e3, 6e3], "students": [3e3], "teacher_tokens": 0.3, "budgets": [0.5], "seeds": [1]},
        "training": {"length": 16, "batch_size": 16, "held_out_rows": 20},
        "run": {"root": str(root / "art"), "threads": 1, "device": "cpu", **run},
    }  # fmt: skip


def stages(result: dict[str, Any]) -> dict[str, str]:
    return {f"{one['stage']} {one['role']}".strip(): one["digest"] for one in result["stages"]}


def test_tasks_on_ray_give_what_tasks_alone_give(prefect_server: str, tmp_path: Path) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    from flows.law import law

    assert prefect_server
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    parameters = asked(tmp_path)
    plain = law(**parameters)
    run = {**parameters["run"], "root": str(tmp_path / "other"), "ray": "local"}
    result = law(**{**parameters, "run": run})
    assert {number: signal.getsignal(number) for number in before} == before
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert stages(result) == stages(plain)
    assert result["scores"] == plain["scores"]
    assert not any(stage["reused"] for stage in result["stages"])
    written = json.loads((tmp_path / "other" / "runs" / result["run_id"] / "stages.json").read_text())
    assert sorted(written["made"]) == sorted(stage["path"] for stage in result["stages"])
    with get_client(sync_client=True) as client:
        whose = FlowRunFilter(id=FlowRunFilterId(any_=[result["run_id"]]))
        runs = client.read_task_runs(flow_run_filter=whose)
    assert {run.name for run in runs} == set(stages(result))
    assert {run.state_name for run in runs} == {"Completed"}


class Command:
    """``capgap run law`` on Ray, in a process of its own, against a server of its own."""

    def __init__(self, root: Path, parameters: dict[str, Any]) -> None:
        self.root, self.said = root, root / "said.txt"
        (root / "asked.json").write_text(json.dumps(parameters), encoding="utf8")
        self.server, url = servers.start_server(root / "art")
        own = {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
        self.environment = {**servers.environment(root / "art", url), **own}
        self.process = self.begin()

    def begin(self) -> "subprocess.Popen[str]":
        words = [sys.executable, "-m", "flows.cli", "run", "law", "--json", "--params", str(self.root / "asked.json")]
        with self.said.open("a") as said:
            return subprocess.Popen(
                words, env=self.environment, cwd=REPO, text=True, stdout=subprocess.PIPE, stderr=said
            )

    def until(self, found: Any, patience: float = 400.0) -> Any:
        deadline = time.monotonic() + patience
        while not (seen := found()):
            assert time.monotonic() < deadline, self.said.read_text()
            assert self.process.poll() is None, self.said.read_text()
            time.sleep(0.1)
        return seen

    def kept(self) -> dict[str, str]:
        """Return identity → the newest checkpoint of each model that is in training."""
        found = sorted(self.root.glob("art/work/pretrain/*/*/checkpoints/step-*"))
        return {path.parents[2].name: path.name for path in found}

    def of_ray(self) -> list[str]:
        """Return the processes that were started with the environment of this command and are Ray's."""
        token = str(self.root / "art").encode()
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if token in (place / "environ").read_bytes() and b"ray" in (place / "cmdline").read_bytes():
                    found.append(place.name)
            except OSError:  # it has just ended, or is somebody else's
                continue
        return [one for one in found if one not in (str(self.process.pid), str(self.server.process.pid))]

    def close(self) -> None:
        self.process.kill()
        self.server.stop()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at /proc for what is left of Ray")
@pytest.mark.parametrize("how", ["signal", "cancel"])
def test_an_end_in_the_middle_ends_the_workers_and_the_run_goes_on_from_there(tmp_path: Path, how: str) -> None:
    parameters = asked(tmp_path, ray="local", checkpoint_seconds=0.5)
    parameters["ladder"] |= {"teachers": [3e3, 3.3e4], "teacher_tokens": 8.0}
    command = Command(tmp_path, parameters)
    try:
        command.until(command.kept)
        assert command.of_ray()
        begun = time.monotonic()
        if how == "signal":
            command.process.send_signal(signal.SIGTERM)
        else:
            (run,) = (path.name for path in (tmp_path / "art" / "runs").iterdir())
            words = [sys.executable, "-m", "prefect", "flow-run", "cancel", run]
            subprocess.run(words, env=command.environment, capture_output=True, check=True)
        command.process.communicate(timeout=120)
        assert command.process.returncode == 128 + (signal.SIGTERM if how == "signal" else signal.SIGINT)
        assert time.monotonic() - begun < 60
        assert command.of_ray() == []
        kept = command.kept()
        assert kept
        (ended,) = (json.loads(path.read_text()) for path in tmp_path.glob("art/runs/*/result.json"))
        assert ended["status"] == "interrupted"
        command.process = command.begin()
        out, _ = command.process.communicate(timeout=600)
        assert command.process.returncode == 0, command.said.read_text()
        assert json.loads(out)["status"] == "completed"
        for identity, step in kept.items():
            (record,) = tmp_path.glob(f"art/store/pretrain/{identity}/*/record.json")
            assert json.loads(record.read_text())["resumed_from_steps"] == [int(step.removeprefix("step-"))]
        assert command.of_ray() == []
    finally:
        command.close()
