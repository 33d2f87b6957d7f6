"""The flow of MiniDisc: a student through a teacher assistant that is chosen in one trial."""

from collections.abc import Mapping
from typing import Annotated, Any

from prefect import flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from pydantic import Field

from capgap_core.recipes import (
    DataRecipe,
    EvaluateRecipe,
    Execution,
    ImportanceRecipe,
    Minidisc,
    MixupRecipe,
    Protocol,
    SandwichRecipe,
    StudentRecipe,
    Task,
    TeacherRecipe,
    TradeoffRecipe,
)
from flows.engine import described, plain, run_chain


def _name() -> str:
    """Return a name that tells runs apart on the page of the flow."""
    asked = flow_run.get_parameters()
    student = asked.get("student") or {}
    scale = student.get("scale") if isinstance(student, Mapping) else getattr(student, "scale", None)
    dataset = str(asked.get("dataset")).rstrip("/").rsplit("/", 1)[-1]
    return f"minidisc-{dataset}-{scale or StudentRecipe().scale}-seed{asked.get('seed')}"


@flow(
    name="capgap",
    flow_run_name=_name,
    description="MiniDisc: distil a small student through a teacher assistant chosen in one trial.",
    validate_parameters=False,  # capgap's own check says every fault at once, in the same words as at the command line
    persist_result=False,  # the store is what lasts
)
@described(Minidisc)
def minidisc(
    dataset: str = "pydocs",
    teacher: str = "scratch",
    task: Task = "auto",
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1,
    protocol: Protocol = "capgap",
    data: DataRecipe = DataRecipe(),
    teacher_recipe: TeacherRecipe = TeacherRecipe(),
    importance: ImportanceRecipe = ImportanceRecipe(),
    sandwich: SandwichRecipe = SandwichRecipe(),
    tradeoff: TradeoffRecipe = TradeoffRecipe(),
    student: StudentRecipe = StudentRecipe(),
    mixup: MixupRecipe = MixupRecipe(),
    evaluate: EvaluateRecipe = EvaluateRecipe(),
    run: Execution = Execution(),
) -> dict[str, Any]:
    """Teacher → importance and plan → sandwich → tradeoff → student and controls → evaluate → report."""
    asked = {name: plain(value) for name, value in locals().items()}
    return run_chain("minidisc", asked, get_run_logger())
