"""What every flow does around its chain: check first, run stages as tasks, publish, and say what went wrong."""

import logging
from collections.abc import Callable, Mapping
from contextvars import copy_context
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from httpx import HTTPError
from prefect.exceptions import PrefectException
from prefect.runtime import deployment, flow_run
from prefect.utilities.urls import url_for
from pydantic import BaseModel

from capgap_core import methods, preflight
from capgap_core.errors import InputFaults
from capgap_core.recipes import Execution
from capgap_core.records import Input, Reference
from flows import alive, cancel, publish
from flows.page import page
from flows.places import rooted
from flows.runs import RunFolder, siblings
from tasks.ablation import ablation
from tasks.assistants import assistants
from tasks.candidates import candidates
from tasks.data import data
from tasks.distil import distil
from tasks.evaluate import evaluate
from tasks.first_layers import first_layers
from tasks.given_lm import given_lm
from tasks.importance import importance
from tasks.latency import latency
from tasks.law import law
from tasks.lm_evaluate import lm_evaluate
from tasks.lm_importance import lm_importance
from tasks.part import part
from tasks.pretrain import pretrain
from tasks.pseudo_labels import pseudo_labels
from tasks.report import report
from tasks.sandwich import sandwich
from tasks.stage_task import StageTask
from tasks.teacher import teacher
from tasks.text import text
from tasks.tradeoff import tradeoff

Function = TypeVar("Function", bound=Callable[..., Any])
Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]

STAGES: dict[str, StageTask] = {
    "data": data,
    "teacher": teacher,
    "importance": importance,
    "sandwich": sandwich,
    "candidates": candidates,
    "tradeoff": tradeoff,
    "distil": distil,
    "evaluate": evaluate,
    "latency": latency,
    "report": report,
    "part": part,
    "first_layers": first_layers,
    "pseudo_labels": pseudo_labels,
    "ablation": ablation,
    "text": text,
    "given_lm": given_lm,
    "lm_importance": lm_importance,
    "pretrain": pretrain,
    "lm_evaluate": lm_evaluate,
    "law": law,
    "assistants": assistants,
}


def described(recipe: type[BaseModel]) -> Callable[[Function], Function]:
    """Return a decorator that tells the form in the UI what the recipe says of each parameter.

    Prefect reads the descriptions of parameters from the docstring only, and only in this form.
    """

    def decorate(function: Function) -> Function:
        lines = []
        for name, field in recipe.model_fields.items():
            part = field.annotation
            own = part.__doc__ if isinstance(part, type) and issubclass(part, BaseModel) else ""
            lines.append(f"    {name}: {field.description or own or ''}")
        function.__doc__ = "\n".join([function.__doc__ or "", "", "Args:", *lines])
        return function

    return decorate


def plain(value: Any) -> Any:
    """Return a parameter as JSON holds it."""
    if isinstance(value, tuple):
        return list(value)
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def run_chain(name: str, asked: Mapping[str, Any], logger: Logger) -> dict[str, Any]:
    """Run the chain of this name with its stages as tasks; return its result.

    Raises
    ------
    InputFaults
        Before any stage, with every fault.
    StageFailed
        Names the stage, the reason and the command that resumes the run.
    """
    parameters = rooted(dict(asked))
    run_id = str(flow_run.get_id())
    attempt = flow_run.get_run_count()
    checked = preflight.check(parameters, flow=name, within=lambda root: alive.holding(root, run_id, attempt))
    folder = RunFolder(name, Path(parameters["run"]["root"]), run_id, url_for("flow-run", obj_id=run_id))
    try:
        if deployment.get_id() is None:  # of one that was deployed, whoever serves it sees to that
            cancel.heed(run_id)
        # In a thread: a server that is slow to answer must not keep the run from its stages.
        Thread(target=copy_context().run, args=(alive.mark_dead, logger.warning), daemon=True).start()
        folder.begin(parameters)
        return _conclude(
            folder, checked.parameters.run, methods.follow_of(name)(checked, _caller(folder, logger)), logger
        )
    except InputFaults:
        raise
    except Exception as error:
        named = folder.named(error)
        _note(folder, named, logger)
        raise named from error
    except BaseException as error:
        _note(folder, error, logger)
        raise


def _note(folder: RunFolder, error: BaseException, logger: Logger) -> None:
    """Write how the run ended; where even that cannot be written, what ended it is still what is told."""
    try:
        folder.fail(error)
    except OSError as unwritten:
        logger.warning("the result of the run could not be written: %s", unwritten)


def _caller(folder: RunFolder, logger: Logger) -> Any:
    def call(
        stage: str, recipe: BaseModel, inputs: Mapping[str, Input], *, role: str, execution: Execution
    ) -> Reference:
        label = f"{stage} {role}".strip()
        with folder.running(label):
            made = STAGES[stage](recipe, inputs, role=role, execution=execution)
        logger.info("%s: %s (%s)", label, "reused" if made.reused else "made", made.why)
        folder.add(role, made)
        return made

    return call


def _conclude(folder: RunFolder, execution: Execution, outcome: Any, logger: Logger) -> dict[str, Any]:
    """Write what the run found into its folder, and show it in the UI, where a server answers."""
    seeds = siblings(folder, outcome.result)
    report = outcome.report.folder.joinpath("report.md").read_text(encoding="utf8")
    run = f"[{folder.run_id}]({folder.url})" if folder.url else folder.run_id
    whole = page(report, outcome.result, seeds, run, execution)
    result = folder.finish(outcome.result, whole)
    try:
        publish.publish_report(whole)
        publish.publish_tables(outcome.stages)
    except (HTTPError, PrefectException) as error:
        logger.warning("the UI could not be given the report (%s): it is %s", error, result["paths"]["report"])
    return result
