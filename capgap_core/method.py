"""The stages of MiniDisc: from what the user asked for and what earlier stages found, the recipe of each."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from pydantic import BaseModel

from capgap_core import budget, flops, losses, machine, models
from capgap_core.batches import lengths_of
from capgap_core.costs import Costs
from capgap_core.distillation import Objective
from capgap_core.errors import OutOfMemory
from capgap_core.kept_outputs import Kind
from capgap_core.machine import device_of, precision
from capgap_core.mixup import Mixup
from capgap_core.preflight import Checked
from capgap_core.recipes import DistilRecipe, Execution, Minidisc, TrainRecipe
from capgap_core.records import WORDS, Input, ModelInput, Reference
from capgap_core.shapes import Shape
from capgap_core.stages import (
    candidates as candidates_stage,
    data as data_stage,
    distil as distil_stage,
    evaluate as evaluate_stage,
    importance as importance_stage,
    latency as latency_stage,
    report as report_stage,
    sandwich as sandwich_stage,
    teacher as teacher_stage,
    tradeoff as tradeoff_stage,
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


class Method:
    """Turns what the user asked for into the recipe of each stage, and remembers what was made."""

    def __init__(self, checked: Checked, call: Caller) -> None:
        self.p = checked.parameters
        self.made: list[tuple[str, Reference]] = []
        self.scales = (*(s for s in self.p.sandwich.grid if s > self.p.student.scale), self.p.student.scale)
        self._corpus, self._given, self._call = checked.corpus, checked.teacher, call
        self._family = self._given.family if self._given else "bert"
        self._device = device_of(self.p.run)
        self._rows, self._length, self._lengths = 0, 0.0, np.zeros(0, dtype=np.int64)
        self._shape: Shape | None = None
        self._costs: Costs | None = None
        self._training: dict[str, Training] = {}

    def _stage(self, stage: str, role: str, recipe: BaseModel, **inputs: Input) -> Reference:
        while True:
            try:
                made = self._call(stage, recipe, inputs, role=role, execution=self.p.run)
            except OutOfMemory:
                smaller = _halved(recipe) if self.p.run.auto_batch else None
                if smaller is None:
                    raise
            else:
                self.made.append((role, made))
                return made
            recipe = smaller
            machine.free_memory()  # out of the handler, which would keep what filled it

    def _train(self, asked: TrainRecipe, arm: budget.Arm, hidden: int) -> Training:
        dtype = precision(asked.dtype, self._device, hidden=hidden)
        return budget.resolve(
            asked, arm, lengths=self._lengths, hidden=hidden, scratch=self._given is None, protocol=self.p.protocol,
            dtype=dtype, seed=self.p.seed,
        )  # fmt: skip

    def _keep(self, asked: DistilRecipe, training: Training, *, again: bool) -> Kind | None:
        """Return in which type the teacher's hidden states are kept for a stage, or nothing where it is asked live.

        Parameters
        ----------
        again
            Whether they are of use to other stages, too; otherwise they are kept for more than one epoch only.
        """
        assert self._shape is not None
        if asked.outputs != "auto":
            return None if asked.outputs == "live" else asked.outputs
        numbers = len(losses.matched_layers(self._shape.layers)) * self._shape.hidden
        size = int(self._lengths.sum()) * numbers * machine.KINDS[training.dtype].itemsize
        wanted = self._device.type == "cpu" and (again or training.steps > training.per_epoch)
        return training.dtype if wanted and size <= asked.outputs_gb * 1e9 else None

    def data(self) -> Reference:
        """Cut and tokenise the data set."""
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
            train_rows=p.data.train_rows, selection_rows=p.data.selection_rows,
            calibration_rows=p.data.calibration_rows, seed=p.data.seed, protocol=p.protocol, source=source,
        )  # fmt: skip
        made = self._stage("data", "", recipe)
        self._lengths = lengths_of(made.table("train"))
        self._rows = made.summary["rows"]["train"]
        self._length = made.summary["tokens"]["train"] / self._rows
        return made

    def teacher(self, data: Reference) -> Reference:
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
        return self._stage("teacher", "teacher", recipe, data=data)

    def importance(self, data: Reference, teacher: Reference) -> Reference:
        """Score heads and neurons, reorder them, and plan every scale."""
        paper = self.p.protocol == "paper"
        recipe = importance_stage.Recipe(
            family=self._family, scales=self.scales, batch_means=paper,
            batch_size=self.p.importance.batch_size if paper else None,
        )  # fmt: skip
        made = self._stage("importance", "", recipe, data=data, teacher=ModelInput(reference=teacher))
        self._shape = Shape(**made.summary["shape"])
        self._costs = self._costs_of(made, self._shape)
        return made

    def _costs_of(self, importance: Reference, shape: Shape) -> Costs:
        """Return what training costs: forward FLOPs of the teacher and each scale, for an example of mean length."""
        adapter, plans, asked = models.family(self._family), models.plans_of(importance), self.p.sandwich
        teacher, *scales = (
            flops.forward_flops(adapter, shape, kept, self._length)
            for kept in (shape.full(), *(plans[s] for s in self.scales))
        )
        sampled = asked.random if asked.mode == "sampled" else None
        return Costs(
            teacher=teacher,
            scales=dict(zip(self.scales, scales, strict=True)),
            rows=self._rows,
            sampled=sampled,
            mixtures=self.p.mixup.samples,
            mixtures_asked=self.p.mixup.teacher > 0,
        )

    def sandwich(self, data: Reference, teacher: Reference, importance: Reference) -> Reference:
        """Train all candidates and the target at once, with shared weights."""
        assert self._shape is not None
        asked = self.p.sandwich
        self._training["sandwich"] = self._train(asked, "sandwich", self._shape.hidden)
        recipe = sandwich_stage.Recipe(
            family=self._family, scales=self.scales, mode=asked.mode,
            random=asked.random if asked.mode == "sampled" else 0,
            objective=Objective(temperature=asked.temperature), training=self._training["sandwich"],
            keep=self._keep(asked, self._training["sandwich"], again=True),
        )  # fmt: skip
        return self._stage(
            "sandwich", "candidate", recipe, data=data, teacher=ModelInput(reference=teacher), importance=importance
        )

    def candidates(self, data: Reference, teacher: Reference, sandwich: Reference) -> Reference:
        """Score every candidate on the selection part."""
        recipe = candidates_stage.Recipe(family=self._family)
        return self._stage(
            "candidates", "candidate", recipe, data=data, sandwich=sandwich, teacher=ModelInput(reference=teacher)
        )

    def tradeoff(self, data: Reference, candidates: Reference, importance: Reference) -> Reference:
        """Choose the assistant."""
        asked = self.p.tradeoff
        recipe = tradeoff_stage.Recipe(
            lam=asked.lam, metric_scale=asked.metric_scale, metric=data.summary["metric"], target=self.p.student.scale,
            achieved=importance.summary["achieved"], chance=data.summary["constant"]["selection"],
        )  # fmt: skip
        return self._stage("tradeoff", "assistant", recipe, candidates=candidates)

    def _mixup(self) -> Mixup | None:
        asked = self.p.mixup
        learned = asked.samples and (asked.labels or asked.teacher)
        return Mixup(**asked.model_dump(), seed=self.p.seed) if learned else None

    def _distil(
        self, role: str, data: Reference, teacher: ModelInput, start: ModelInput, steps: int | None = None
    ) -> Reference:
        assert self._shape is not None
        asked = self.p.student
        training = self._train(asked, "student", self._shape.hidden)
        self._training[role] = training if steps is None else training.model_copy(update={"steps": steps})
        recipe = distil_stage.Recipe(
            family=self._family, objective=Objective(temperature=asked.temperature), training=self._training[role],
            keep=self._keep(asked, training, again=role != "student"), mixup=self._mixup(),
        )  # fmt: skip
        return self._stage("distil", role, recipe, data=data, teacher=teacher, start=start)

    def student(self, data: Reference, sandwich: Reference, scale: float) -> Reference:
        """Distil the student from its assistant; it starts as the target's prefix of the shared weights."""
        teacher = ModelInput(reference=sandwich, scale=scale)
        return self._distil("student", data, teacher, ModelInput(reference=sandwich, scale=self.p.student.scale))

    def direct(self, data: Reference, teacher: Reference, importance: Reference) -> Reference:
        """Distil the same student straight from the teacher, for equal epochs."""
        start = ModelInput(reference=importance, scale=self.p.student.scale)
        return self._distil("direct", data, ModelInput(reference=teacher), start)

    def direct_flops(self, data: Reference, teacher: Reference, importance: Reference) -> Reference:
        """Distil the same student straight from the teacher, for the FLOPs of sandwich and student together."""
        assert self._costs is not None
        start = ModelInput(reference=importance, scale=self.p.student.scale)
        steps = self._costs.steps_of_equal_flops(self._training["sandwich"], self._training["student"])
        return self._distil("direct_flops", data, ModelInput(reference=teacher), start, steps)

    def evaluate(self, role: str, data: Reference, model: Input, scales: tuple[float, ...] = ()) -> Reference:
        """Measure one model on the part nobody tuned on."""
        recipe = evaluate_stage.Recipe(
            family=self._family, split="evaluation", scales=scales, length=self.p.evaluate.length
        )
        return self._stage("evaluate", role, recipe, data=data, model=model)

    def latency(self, importance: Reference) -> Reference:
        """Time a forward pass of every size."""
        threads = machine.threads_of(self.p.run)
        recipe = latency_stage.Recipe(
            family=self._family, scales=self.scales, length=self.p.evaluate.length, device=str(self._device),
            threads=threads, machine=machine.name(self._device),
        )  # fmt: skip
        return self._stage("latency", "", recipe, importance=importance)

    def report(
        self, data: Reference, teacher: Reference, importance: Reference, candidates: Reference, tradeoff: Reference,
        students: Mapping[str, Reference], evaluations: Mapping[str, Reference], latency: Reference | None,
    ) -> Reference:  # fmt: skip
        """Say what came out."""
        assert self._costs is not None
        p = self.p
        spent = self._costs.spent(self._training, tradeoff.summary["chosen_scale"])
        recipe = report_stage.Recipe(
            dataset=p.dataset, seed=p.seed, protocol=p.protocol, lam=p.tradeoff.lam,
            metric_scale=p.tradeoff.metric_scale, scale=p.student.scale, device=str(self._device), spent=spent,
            command=command_of(p), words={name: data.summary[name] for name in sorted(WORDS)},
            latency=latency.identity if latency else None,
        )  # fmt: skip
        stages: dict[str, Input] = {
            "data": data, "teacher": teacher, "importance": importance, "candidates": candidates, "tradeoff": tradeoff,
            **students, **{f"evaluate_{role}": made for role, made in evaluations.items()},
        }  # fmt: skip
        if latency is not None:
            stages["latency"] = latency
        return self._stage("report", "", recipe, **stages)


def _halved(recipe: BaseModel) -> BaseModel | None:
    """Return the recipe with half the micro-batch, which is another identity; nothing where that cannot be halved."""
    training = getattr(recipe, "training", None)
    least = 2 if getattr(recipe, "mixup", None) else 1  # a mixture takes two
    if not isinstance(training, Training) or training.micro_batch <= least:
        return None
    half = training.model_copy(update={"micro_batch": -(-training.micro_batch // 2)})
    return recipe.model_copy(update={"training": half})


def command_of(p: Minidisc) -> str:
    """Return the shell command that asks for the same result."""
    asked = p.model_dump(mode="json", exclude={"run"}, exclude_defaults=True)
    words = ["capgap", "run", "minidisc"]
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
