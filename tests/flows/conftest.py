"""A real Prefect server for the tests of this folder, and a run that takes seconds."""

import csv
import os
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

WORDS = {
    "day": "sun light warm bright gold fire glow dawn".split(),
    "night": "moon dark cold dim blue ice shade dusk".split(),
}
FILLER = "the a of and on with from into near over".split()


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of the API of a server that ends with the session."""
    home = tmp_path_factory.mktemp("prefect")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(home))
        patch.setenv("DO_NOT_TRACK", "1")
        patch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        for name in ("PREFECT_API_URL", "PREFECT_PROFILE"):
            patch.delenv(name, raising=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
            from prefect.testing.utilities import prefect_test_harness

        with prefect_test_harness(server_startup_timeout=120):
            # The thread that sends heartbeats costs a second at the end of every run.
            with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
                yield str(PREFECT_API_URL.value())


@pytest.fixture(scope="session")
def tiny_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of 200 rows in two classes."""
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("data") / "tiny.csv"
    with path.open("w", newline="", encoding="utf8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["text", "label"])
        for i in range(200):
            label = ("day", "night")[i % 2]
            words = [*draw.choices(WORDS[label], k=3), *draw.choices(FILLER, k=5), str(draw.randrange(10**6))]
            rows.writerow([" ".join(draw.sample(words, len(words))), label])
    return path


@pytest.fixture(scope="session")
def tiny(tiny_csv: Path) -> dict[str, Any]:
    """Return the parameters of a run of a few steps."""
    return {
        "dataset": str(tiny_csv),
        "data": {"selection_rows": 20, "calibration_rows": 16, "max_length": 16},
        "teacher_recipe": {"layers": 2, "hidden": 32, "heads": 2, "neurons": 64, "vocabulary": 300, "epochs": 0.5},
        "sandwich": {"grid": [0.5, 0.3], "epochs": 0.2},
        "student": {"scale": 0.2, "epochs": 0.2},
        "evaluate": {"length": 16, "latency": False},
    }


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store that the tests of this session share, so that the tiny run is made once."""
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="session")
def first(prefect_server: str, tiny: dict[str, Any], root: Path) -> dict[str, Any]:
    """Return the result of the tiny run, made by the flow."""
    from flows.minidisc import minidisc

    assert prefect_server
    return minidisc(**tiny, run={"root": str(root), "threads": 1})


@pytest.fixture(scope="session")
def environment(prefect_server: str) -> dict[str, str]:
    """Return the variables of a command that talks to the tests' server."""
    return {**os.environ, "PREFECT_API_URL": prefect_server, "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false"}
