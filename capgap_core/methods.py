"""Every method by the name of its flow: what may be asked of it, and the chain that does it. A new one is an entry."""

import importlib
from typing import Any

from pydantic import BaseModel

from capgap_core.recipes import Minidisc
from capgap_core.recipes_law import Law
from capgap_core.recipes_mixkd import Mixkd

RECIPES: dict[str, type[BaseModel]] = {"minidisc": Minidisc, "mixkd": Mixkd, "law": Law}
CHAINS = {"minidisc": "capgap_core.chain", "mixkd": "capgap_core.mixkd", "law": "capgap_core.law"}
"""Name of a flow → the module whose ``follow`` runs its stages."""


def follow_of(name: str) -> Any:
    """Return the chain of a flow; imports torch."""
    return importlib.import_module(CHAINS[name]).follow
