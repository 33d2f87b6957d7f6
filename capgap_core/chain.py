"""MiniDisc from the data set to the report, in the order of the method and without any orchestrator."""

from collections.abc import Mapping

from pydantic import BaseModel

from capgap_core import preflight
from capgap_core.build import build
from capgap_core.method import Caller
from capgap_core.minidisc import MiniDisc
from capgap_core.outcome import Outcome, outcome_of
from capgap_core.preflight import Checked
from capgap_core.progress import Labelled, Progress, Silent
from capgap_core.recipes import (
    DataRecipe,
    EvaluateRecipe,
    Execution,
    ImportanceRecipe,
    MixupRecipe,
    Protocol as Way,
    SandwichRecipe,
    StudentRecipe,
    Task,
    TeacherRecipe,
    TradeoffRecipe,
)
from capgap_core.records import Input, ModelInput, Reference


def in_this_process(progress: Progress) -> Caller:
    """Return a caller that makes each stage here and now."""

    def call(
        stage: str, recipe: BaseModel, inputs: Mapping[str, Input], *, role: str, execution: Execution
    ) -> Reference:
        label = f"{stage} {role}".strip()
        return build(stage, recipe, inputs, execution=execution, progress=Labelled(progress, label))

    return call


def minidisc(
    *,
    dataset: str = "pydocs",
    teacher: str = "scratch",
    task: Task = "auto",
    seed: int = 1,
    protocol: Way = "capgap",
    data: DataRecipe | None = None,
    teacher_recipe: TeacherRecipe | None = None,
    importance: ImportanceRecipe | None = None,
    sandwich: SandwichRecipe | None = None,
    tradeoff: TradeoffRecipe | None = None,
    student: StudentRecipe | None = None,
    mixup: MixupRecipe | None = None,
    evaluate: EvaluateRecipe | None = None,
    run: Execution | None = None,
    call: Caller | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Compress a model with MiniDisc (arXiv 2205.14570) and hold the result against its controls.

    Parameters
    ----------
    call
        Makes a stage; without one each is made in this process.
    progress
        Told what happens, where stages are made in this process.
    others
        See ``capgap_core.recipes.Minidisc``; ``run.root`` has to be set.

    Raises
    ------
    InputFaults
        Before any stage, with everything that is wrong.
    """
    given = {
        "dataset": dataset, "teacher": teacher, "task": task, "seed": seed, "protocol": protocol, "data": data,
        "teacher_recipe": teacher_recipe, "importance": importance, "sandwich": sandwich, "tradeoff": tradeoff,
        "student": student, "mixup": mixup, "evaluate": evaluate, "run": run,
    }  # fmt: skip
    checked = preflight.check({name: value for name, value in given.items() if value is not None})
    return follow(checked, call or in_this_process(progress or Silent()))


def follow(checked: Checked, call: Caller) -> Outcome:
    """Run the chain on checked parameters: the method, in its order."""
    m = MiniDisc(checked, call)
    data = m.data()
    teacher = m.teacher(data)
    importance = m.importance(data, teacher)
    sandwich = m.sandwich(data, teacher, importance)
    candidates = m.candidates(data, teacher, sandwich)
    tradeoff = m.tradeoff(data, candidates, importance)
    scale = tradeoff.summary["chosen_scale"]
    students = {"student": m.student(data, sandwich, scale)}
    if m.p.student.controls:
        students["direct"] = m.direct(data, teacher, importance)
        students["direct_flops"] = m.direct_flops(data, teacher, importance)
    evaluations = {
        "teacher": m.evaluate("teacher", data, ModelInput(reference=teacher)),
        "candidate": m.evaluate("candidate", data, sandwich, m.scales),
        "slimmed": m.evaluate("slimmed", data, ModelInput(reference=importance, scale=m.p.student.scale)),
        **{role: m.evaluate(role, data, ModelInput(reference=made)) for role, made in students.items()},
    }
    latency = m.latency(importance) if m.p.evaluate.latency else None
    m.report(data, teacher, importance, candidates, tradeoff, students, evaluations, latency)
    return outcome_of(m.p, m.made)
