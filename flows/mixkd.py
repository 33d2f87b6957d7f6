"""The flow of MixKD: what mixtures of examples add to distillation, arm by arm."""

from typing import Annotated, Any, Literal

from prefect import flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from pydantic import Field

from capgap_core.recipes import DataRecipe, EvaluateRecipe, Execution, Task, TeacherRecipe
from capgap_core.recipes_mixkd import ARMS, Arm, Fraction, Mixkd, MixkdMixupRecipe, PupilRecipe
from flows.engine import described, plain, run_chain


def _name() -> str:
    """Return a name that tells runs apart on the page of the flow."""
    asked = flow_run.get_parameters()
    dataset = str(asked.get("dataset")).rstrip("/").rsplit("/", 1)[-1]
    return f"mixkd-{dataset}-seed{asked.get('seed')}"


@flow(
    name="capgap",
    flow_run_name=_name,
    description="MixKD: distil a student that also learns from mixtures of examples, beside its ablations.",
    validate_parameters=False,  # capgap's own check says every fault at once, in the same words as at the command line
    persist_result=False,  # the store is what lasts
)
@described(Mixkd)
def mixkd(
    dataset: str = "pydocs",
    teacher: str = "scratch",
    task: Task = "auto",
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1,
    arms: tuple[Arm, ...] = ARMS,
    matched: tuple[Literal["epochs", "tokens"], ...] = ("epochs", "tokens"),
    unlabelled: str | None = None,
    fractions: tuple[Fraction, ...] = (1.0,),
    draw: Annotated[int, Field(ge=0, lt=2**31)] = 0,
    teacher_rows: Literal["all", "same"] = "all",
    data: DataRecipe = DataRecipe(),
    teacher_recipe: TeacherRecipe = TeacherRecipe(),
    student: PupilRecipe = PupilRecipe(),
    mixup: MixkdMixupRecipe = MixkdMixupRecipe(),
    evaluate: EvaluateRecipe = EvaluateRecipe(),
    run: Execution = Execution(),
) -> dict[str, Any]:
    """Teacher → the student's start → each arm on each share of the rows → evaluate → ablation."""
    asked = {name: plain(value) for name, value in locals().items()}
    return run_chain("mixkd", asked, get_run_logger())
