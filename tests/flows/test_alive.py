"""Which runs are marked as Crashed: those whose process has died, and never one that goes on."""

import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from capgap_core.errors import InputFaults
from flows import alive, runs

REPO = Path(__file__).resolve().parents[2]
HOLDS = """
import sys, time
from pathlib import Path
from flows import alive
alive.hold(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
print("held", flush=True)
time.sleep(600)
"""


def running(root, *, held_by=None):
    """Return the id of a run that Prefect calls Running, and the process that makes it."""
    from prefect.client.orchestration import get_client
    from prefect.states import Running

    from flows.minidisc import minidisc

    with get_client(sync_client=True) as client:
        run = client.create_flow_run(
            minidisc, parameters={"run": {"root": str(root)}}, name="minidisc-x", state=Running()
        )
        attempt = client.read_flow_run(run.id).run_count
    if held_by is None:
        return str(run.id), None
    words = [sys.executable, "-c", HOLDS, str(root), str(run.id), str(attempt + held_by)]
    process = subprocess.Popen(words, cwd=REPO, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return str(run.id), process


def state_of(run):
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return client.read_flow_run(run).state


def end(process):
    process.kill()
    process.communicate()


def test_a_run_whose_process_lives_is_left_alone_and_one_whose_process_died_is_not(prefect_server, tmp_path):
    run, process = running(tmp_path, held_by=0)
    runs.RunFolder("minidisc", tmp_path, run, None).begin({})
    said = []
    try:
        alive.mark_dead(said.append)
        assert state_of(run).is_running()
        assert not any(run in line for line in said)
    finally:
        end(process)
    alive.mark_dead(said.append)
    state = state_of(run)
    assert state.is_crashed()
    assert f"capgap run minidisc --params {tmp_path / 'runs' / run / 'params.json'}" in state.message
    assert any(run in line for line in said)


def test_a_run_that_had_ended_while_the_server_was_away_is_completed(prefect_server, tmp_path):
    run, process = running(tmp_path, held_by=0)
    folder = runs.RunFolder("minidisc", tmp_path, run, None)
    folder.begin({})
    folder.finish({**runs.failure("minidisc", RuntimeError()), "paths": {}}, "report")
    end(process)
    alive.mark_dead(lambda _: None)
    assert state_of(run).is_completed()


def test_a_run_that_ended_because_it_was_cancelled_is_cancelled(prefect_server, tmp_path):
    """Its process is gone, and who serves it has not told the server yet."""
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelling

    run, process = running(tmp_path, held_by=0)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, Cancelling(), force=True)
    end(process)
    alive.mark_dead(lambda _: None)
    assert state_of(run).is_cancelled()


def test_a_lock_of_an_earlier_attempt_says_nothing_of_this_one(prefect_server, tmp_path):
    """A run that was just retried: its process is up and has not taken the lock yet."""
    run, process = running(tmp_path, held_by=-1)
    end(process)
    alive.mark_dead(lambda _: None)
    assert state_of(run).is_running()


def test_a_run_that_has_no_lock_here_may_be_of_another_host(prefect_server, tmp_path):
    run, _ = running(tmp_path)
    alive.mark_dead(lambda _: None)
    assert state_of(run).is_running()


def test_a_run_that_cannot_be_looked_at_keeps_no_other_from_it(prefect_server, tmp_path):
    odd, process = running(tmp_path / "odd", held_by=0)
    end(process)
    lock = tmp_path / "odd" / "locks" / f"run-{odd}.lock"
    lock.write_bytes(b"\xff\xfe")
    run, process = running(tmp_path, held_by=0)
    end(process)
    said = []
    alive.mark_dead(said.append)
    assert state_of(run).is_crashed()
    assert any(odd in line and "could not be seen" in line for line in said)


def test_no_lock_is_left_of_input_that_is_refused(tmp_path):
    run = str(uuid4())

    def refuse():
        with alive.holding(tmp_path, run, 1):
            assert [path.name for path in (tmp_path / "locks").iterdir()] == [f"run-{run}.lock"]
            raise InputFaults([])

    with pytest.raises(InputFaults):
        refuse()
    assert list(tmp_path.iterdir()) == []
    alive.hold(tmp_path, run, 2)  # and it can be held again
