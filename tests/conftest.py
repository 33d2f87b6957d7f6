"""What every test shares: where the real data lies, if it is there."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder with real data and weights; skip where it is not named."""
    given = os.environ.get("CAPGAP_SHARED")
    if not given:
        pytest.skip("CAPGAP_SHARED is not set: no real data to test on")
    return Path(given)
