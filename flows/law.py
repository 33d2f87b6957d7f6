"""The flow of the law: a grid of teachers and students, and which teacher a student wants."""

from typing import Any

from prefect import flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from capgap_core.ladder import Ladder
from capgap_core.lm_recipes import LmObjective
from capgap_core.recipes import Execution
from capgap_core.recipes_law import Law, LmTraining, TextRecipe
from flows.engine import described, plain, run_chain


def _name() -> str:
    """Return a name that tells runs apart on the page of the flow."""
    asked = flow_run.get_parameters()
    if references := asked.get("references"):
        return f"law-of-{len(references) if isinstance(references, list | tuple) else 1}-runs"
    dataset = str(asked.get("dataset")).rstrip("/").rsplit("/", 1)[-1]
    return f"law-{dataset}"


@flow(
    name="capgap",
    flow_run_name=_name,
    description="Law: distil students of several sizes from teachers of several sizes; fit which teacher one wants.",
    validate_parameters=False,  # capgap's own check says every fault at once, in the same words as at the command line
    persist_result=False,  # the store is what lasts
)
@described(Law)
def law(
    dataset: str = "pysource",
    data: TextRecipe = TextRecipe(),
    ladder: Ladder = Ladder(),
    training: LmTraining = LmTraining(),
    objective: LmObjective = LmObjective(),
    references: tuple[str, ...] = (),
    run: Execution = Execution(),
) -> dict[str, Any]:
    """Text → teachers → every student, alone and of each teacher → law; of runs that are given, the law alone."""
    asked = {name: plain(value) for name, value in locals().items()}
    return run_chain("law", asked, get_run_logger())
