"""The flow against a real Prefect server: reuse, repair, faults, and what the UI is given."""

import json
import shutil
from pathlib import Path

import pytest

from capgap_core.errors import InputFaults

KEYS = {
    "schema", "flow", "status", "run_id", "url", "seconds", "steps_trained", "metric", "split", "n", "scores",
    "candidates", "chosen_scale", "margin", "sizes", "stages", "paths", "error",
}  # fmt: skip
STAGE = {"stage", "role", "identity", "code", "digest", "reused", "why", "seconds", "path"}


def again(tiny, root, **execution):
    from flows.minidisc import minidisc

    return minidisc(**tiny, run={"root": str(root), "threads": 1, **execution})


def made(result):
    return [(s["stage"], s["role"]) for s in result["stages"] if not s["reused"]]


def client():
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)


def test_a_run_ends_with_the_result_that_scripts_read(first, root):
    assert set(first) >= KEYS
    assert all(set(stage) == STAGE for stage in first["stages"])
    assert (first["schema"], first["flow"], first["status"], first["error"]) == (
        "capgap.run/1",
        "minidisc",
        "completed",
        None,
    )
    assert set(first["scores"]) >= {"teacher", "assistant", "student", "direct", "direct_flops", "slimmed"}
    assert first["steps_trained"] > 0
    assert json.loads((root / "runs" / first["run_id"] / "result.json").read_text()) == json.loads(json.dumps(first))
    assert Path(first["paths"]["student"], "config.json").is_file()


def test_a_second_run_reuses_every_stage_and_says_so(first, tiny, root):
    second = again(tiny, root)
    assert made(second) == []
    assert second["steps_trained"] == 0
    assert [s["digest"] for s in second["stages"]] == [s["digest"] for s in first["stages"]]
    report = Path(second["paths"]["report"]).read_text()
    assert report.count("| reused |") >= len(second["stages"])
    states = {run.state_name for run in client().read_task_runs() if str(run.flow_run_id) == second["run_id"]}
    assert states <= {"Cached"}  # what the server has heard of by now


def test_without_prefects_own_records_the_store_still_decides(first, tiny, root):
    shutil.rmtree(root / "prefect" / "results")
    assert made(again(tiny, root)) == []


@pytest.mark.parametrize("damage", ["deleted", "flipped"])
def test_a_damaged_file_is_found_rebuilt_and_said(first, tiny, root, damage):
    stage = next(s for s in first["stages"] if s["stage"] == "tradeoff")
    table = Path(stage["path"], "tradeoff.parquet")
    if damage == "deleted":
        table.unlink()
    else:
        held = bytearray(table.read_bytes())
        held[len(held) // 2] ^= 1
        table.write_bytes(bytes(held))
    second = again(tiny, root)
    assert made(second) == [("tradeoff", "assistant")]
    why = next(s["why"] for s in second["stages"] if s["stage"] == "tradeoff")
    assert "tradeoff.parquet" in why
    assert made(again(tiny, root)) == []


def test_sizes_only_is_a_choice_that_reaches_the_check_and_the_report(first, tiny, root):
    report = Path(next(s for s in first["stages"] if s["stage"] == "report")["path"])
    figure = sorted(report.glob("*.png"))[0]
    whole = figure.read_bytes()
    figure.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    result = again(tiny, root, verify="sizes")
    assert made(result) == []
    assert "run.verify=sizes" in Path(result["paths"]["report"]).read_text()
    assert made(again(tiny, root)) == [("report", "")]


def test_bad_input_fails_the_run_with_every_fault_before_any_stage(prefect_server, tiny, tmp_path):
    from flows.minidisc import minidisc

    wrong = {**tiny, "student": {"scale": 1.5}, "tradeoff": {"lamm": 1}, "run": {"root": str(tmp_path)}}
    state = minidisc(**wrong, return_state=True)
    assert state.is_failed()
    with pytest.raises(InputFaults) as raised:
        state.result()
    assert "2 faults" in state.message
    assert {f.field for f in raised.value.faults} == {"student.scale", "tradeoff.lamm"}
    assert "tradeoff.lam?" in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_stage_that_fails_names_itself_and_the_command_that_resumes(first, tiny, root, monkeypatch):
    from capgap_core.errors import StageFailed
    from capgap_core.stages import tradeoff
    from flows.minidisc import minidisc

    def broken(*_, **__):
        raise RuntimeError("no more memory")

    monkeypatch.setattr(tradeoff, "run", broken)
    state = minidisc(**{**tiny, "tradeoff": {"lam": 0.3}}, run={"root": str(root), "threads": 1}, return_state=True)
    with pytest.raises(
        StageFailed, match=r"tradeoff assistant: RuntimeError: no more memory.*capgap run minidisc --params"
    ):
        state.result()
    newest = max((root / "runs").glob("*/result.json"), key=lambda p: p.stat().st_mtime_ns)
    held = json.loads(newest.read_text())
    assert (held["status"], held["error"]["stage"]) == ("failed", "tradeoff assistant")
    assert set(held) >= KEYS
    newest.unlink()


def test_an_error_in_a_key_is_raised_in_the_flow(first, root):
    from prefect import flow

    from capgap_core.recipes import Execution, TradeoffRecipe
    from tasks.tradeoff import tradeoff

    @flow(name="key-error")
    def keyless():
        unhashable = TradeoffRecipe.model_construct(lam=float("nan"), metric_scale="raw")
        return tradeoff(unhashable, {}, role="assistant", execution=Execution(root=str(root)))

    with pytest.raises(TypeError, match="only finite numbers have an identity"):
        keyless()


def test_the_ui_is_given_the_report_the_tables_and_progress(first):
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[first["run_id"]]))
    shown = {artifact.key: artifact for artifact in client().read_artifacts(artifact_filter=mine)}
    assert {"report", "tradeoff-assistant-tradeoff", "teacher-teacher-steps"} <= shown.keys()
    assert "progress-teacher-teacher" in shown
    assert shown["progress-teacher-teacher"].data == 100.0
    assert "data:image/png;base64," in shown["report"].data
    rows = json.loads(shown["tradeoff-assistant-tradeoff"].data)
    assert {"scale", "tradeoff", "chosen"} <= set(rows[0])
