"""Every deployment: its name, and where its flow is. A later method is one entry more."""

import importlib
from typing import Any

FLOWS = {"minidisc": "flows.minidisc", "mixkd": "flows.mixkd", "law": "flows.law"}
"""Name of a deployment, and of its flow function → the module that holds the function."""


def flow_of(name: str) -> Any:
    """Return the flow of a deployment; imports Prefect."""
    return getattr(importlib.import_module(FLOWS[name]), name)
