"""What every method needs: from what the user asked for and what earlier stages found, the recipe of each stage."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from pydantic import BaseModel

from capgap_core import budget, losses, machine
from capgap_core.batches import lengths_of
from capgap_core.errors import OutOfMemory
from capgap_core.given_forms import SCRATCH
from capgap_core.kept_outputs import Kind
from capgap_core.machine import device_of, precision
from capgap_core.mixup import Mixup
from capgap_core.preflight import Checked
from capgap_core.recipes import DistilRecipe, Execution, TrainRecipe
from capgap_core.records import Input, ModelInput, Reference
from capgap_core.shapes import Shape
from capgap_core.stages import (
    data as data_stage,
    evaluate as evaluate_stage,
    importance as importance_stage,
    teacher as teacher_stage,
)  # fmt: skip
from capgap_core.training import Training


@runtime_checkable
class Caller(Protocol):
    """Makes one stage: in this process, or as a task of an orchestrator."""

    def __call__(
        self, stage: str, recipe: BaseModel, inputs: Mapping[str, Input], *, role: str, execution: Execution
    ) -> Reference:
        """Return the reference of the finished stage."""
        ...


def within_memory(
    call: Caller, stage: str, recipe: BaseModel, inputs: Mapping[str, Input], *, role: str, execution: Execution
) -> Reference:
    """Return a stage, made with half the micro-batch as often as memory lacks, where ``run.auto_batch`` allows it."""
    while True:
        try:
            return call(stage, recipe, inputs, role=role, execution=execution)
        except OutOfMemory:
            smaller = _halved(recipe) if execution.auto_batch else None
            if smaller is None:
                raise
        recipe = smaller
        machine.free_memory()  # out of the handler, which would keep what filled it


class Method:
    """Turns what the user asked for into the recipe of each stage, and remembers what was made.

    What every method needs is here; each has its own stages in a module of its name.
    """

    def __init__(self, checked: Checked, call: Caller) -> None:
        self.p: Any = checked.parameters
        self.made: list[tuple[str, Reference]] = []
        self.scales: tuple[float, ...] = ()
        """What the importance plans, from large to small, the student's last."""
        self._corpus, self._given, self._call = checked.corpus, checked.teacher, call
        self._family = self._given.family if self._given else SCRATCH
        self.device = device_of(self.p.run)
        self._rows, self._length, self._lengths = 0, 0.0, np.zeros(0, dtype=np.int64)
        self._shape: Shape | None = None
        self._training: dict[str, Training] = {}

    def _stage(self, stage: str, role: str, recipe: BaseModel, **inputs: Input) -> Reference:
        made = within_memory(self._call, stage, recipe, inputs, role=role, execution=self.p.run)
        self.made.append((role, made))
        return made

    def _train(self, asked: TrainRecipe, arm: budget.Arm, hidden: int) -> Training:
        dtype = precision(asked.dtype, self.device, hidden=hidden)
        return budget.resolve(
            asked, arm, lengths=self._lengths, hidden=hidden, scratch=self._given is None, protocol=self.p.protocol,
            dtype=dtype, seed=self.p.seed,
        )  # fmt: skip

    def _keep(self, asked: DistilRecipe, training: Training, *, again: bool, hidden: bool = True) -> Kind | None:
        """Return in which type the teacher's hidden states are kept for a stage, or nothing where it is asked live.

        Parameters
        ----------
        again
            Whether they are of use to other stages, too; otherwise they are kept for more than one epoch only.
        hidden
            Whether hidden states are learned from; the logits alone take next to no room.
        """
        assert self._shape is not None
        if asked.outputs != "auto":
            return None if asked.outputs == "live" else asked.outputs
        numbers = len(losses.matched_layers(self._shape.layers)) * self._shape.hidden if hidden else 0
        size = int(self._lengths.sum()) * numbers * machine.KINDS[training.dtype].itemsize
        wanted = self.device.type == "cpu" and (again or training.steps > training.per_epoch)
        return training.dtype if wanted and size <= asked.outputs_gb * 1e9 else None

    def data(self, train_rows: int | None = None) -> Reference:
        """Cut and tokenise the data set, with fewer training rows than were asked for where so many are given."""
        p, corpus = self.p, self._corpus
        source = data_stage.Source(
            dataset=p.dataset, task=p.task, data=p.data, split=p.evaluate.split,
            cache=str(Path(p.run.root or ".") / "cache"),
            tokenizer=str(self._given.folder) if self._given else None,
        )  # fmt: skip
        recipe = data_stage.Recipe(
            content=corpus.digest, tokenizer=self._given.tokenizer if self._given else "trained",
            vocabulary=None if self._given else p.teacher_recipe.vocabulary, task=corpus.task, metric=corpus.metric,
            columns=(*corpus.text_columns, corpus.label_column), split=corpus.eval_name, max_length=p.data.max_length,
            train_rows=train_rows or p.data.train_rows, selection_rows=p.data.selection_rows,
            calibration_rows=p.data.calibration_rows, seed=p.data.seed, protocol=p.protocol, source=source,
        )  # fmt: skip
        made = self._stage("data", "", recipe)
        self._see(made)
        return made

    def _see(self, made: Reference) -> None:
        """Take the training part that stages are resolved for from here on."""
        self._lengths = lengths_of(made.table("train"))
        self._rows = made.summary["rows"]["train"]
        self._length = made.summary["tokens"]["train"] / self._rows

    def teacher(self, data: Reference, role: str = "teacher") -> Reference:
        """Fine-tune, accept or train the teacher."""
        p, given = self.p, self._given
        sizes = p.teacher_recipe
        scratch = None
        if given is None:
            scratch = teacher_stage.Scratch(
                layers=sizes.layers, hidden=sizes.hidden, heads=sizes.heads, neurons=sizes.neurons
            )
        training = None
        if given is None or given.mode == "finetune":
            hidden = given.hidden if given else sizes.hidden
            training = self._train(sizes, "teacher", hidden)
        recipe = teacher_stage.Recipe(
            family=self._family, mode=given.mode if given else "scratch", content=given.content if given else None,
            scratch=scratch, training=training, seed=p.seed, source=str(given.folder) if given else None,
        )  # fmt: skip
        return self._stage("teacher", role, recipe, data=data)

    def importance(self, data: Reference, teacher: Reference) -> Reference:
        """Score heads and neurons, reorder them, and plan every scale."""
        paper = self.p.protocol == "paper"
        recipe = importance_stage.Recipe(
            family=self._family, scales=self.scales, batch_means=paper,
            batch_size=self.p.importance.batch_size if paper else None,
        )  # fmt: skip
        made = self._stage("importance", "", recipe, data=data, teacher=ModelInput(reference=teacher))
        self._shape = Shape(**made.summary["shape"])
        return made

    def evaluate(
        self, role: str, data: Reference, model: Input, scales: tuple[float, ...] = (), *, split: str = "evaluation"
    ) -> Reference:
        """Measure one model on a part: without more said, on the one nobody tuned on."""
        recipe = evaluate_stage.Recipe(family=self._family, split=split, scales=scales, length=self.p.evaluate.length)
        return self._stage("evaluate", role, recipe, data=data, model=model)

    def _mixup(self) -> Mixup | None:
        asked = self.p.mixup
        learned = asked.samples and (asked.labels or asked.teacher)
        if not learned:
            return None
        how = {**asked.model_dump(), "alpha": asked.alpha if asked.mix is None else None}
        return Mixup(**how, seed=self.p.seed)


def _halved(recipe: BaseModel) -> BaseModel | None:
    """Return the recipe with half the micro-batch, which is another identity; nothing where that cannot be halved."""
    training = getattr(recipe, "training", None)
    least = 2 if getattr(recipe, "mixup", None) else 1  # a mixture takes two
    if not isinstance(training, Training) or training.micro_batch <= least:
        return None
    half = training.model_copy(update={"micro_batch": -(-training.micro_batch // 2)})
    return recipe.model_copy(update={"training": half})


def command_of(flow: str, p: BaseModel) -> str:
    """Return the shell command that asks a flow for the same result."""
    asked = p.model_dump(mode="json", exclude={"run"}, exclude_defaults=True)
    words = ["capgap", "run", flow]
    for name, value in asked.items():
        parts = {f"{name}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {name: value}
        for key, held in parts.items():
            words += ["-p", shlex.quote(f"{key}={held if _is_plain(held) else json.dumps(held)}")]
    return " ".join(words)


def _is_plain(held: object) -> bool:
    """Return whether a value is a text that would not be read as JSON, so that it can stand as it is."""
    if not isinstance(held, str):
        return False
    try:
        json.loads(held)
    except (ValueError, RecursionError):
        return True
    return False
