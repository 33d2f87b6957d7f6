"""The stages of MixKD (arXiv 2011.00593): distillation that also asks the teacher about mixtures of examples."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from capgap_core import flops, models
from capgap_core.distillation import Objective
from capgap_core.flops import step_flops
from capgap_core.method import Caller, Method, command_of
from capgap_core.mixup import Mixup
from capgap_core.outcome import Outcome
from capgap_core.outcome_mixkd import outcome_of
from capgap_core.preflight import Checked
from capgap_core.recipes_mixkd import Arm, Mixkd
from capgap_core.records import Input, ModelInput, Reference
from capgap_core.shapes import Kept, Shape
from capgap_core.stages import (
    ablation as ablation_stage,
    distil as distil_stage,
    first_layers as first_layers_stage,
    part as part_stage,
    pseudo_labels as pseudo_labels_stage,
)  # fmt: skip
from capgap_core.stages.ablation import ArmFact
from capgap_core.training import Training


@dataclass(frozen=True, kw_only=True)
class Way:
    """What an arm learns from, beside the labels."""

    teacher: bool = True
    mixed_labels: bool = False
    mixed_teacher: bool = False
    unlabelled: bool = False
    """Whether there are more rows, which the teacher labels."""
    changes: Mapping[str, object] = field(default_factory=dict)
    """Of how examples are mixed."""

    @property
    def mixes(self) -> bool:
        """Return whether each example goes through the student again, mixed or not."""
        return self.mixed_labels or self.mixed_teacher


WAYS: dict[Arm, Way] = {
    "finetune": Way(teacher=False),
    "kd": Way(),
    "kd_sm": Way(mixed_labels=True),
    "kd_tmkd": Way(mixed_teacher=True),
    "mixkd": Way(mixed_labels=True, mixed_teacher=True),
    "repeats": Way(mixed_labels=True, mixed_teacher=True, changes={"mix": 1.0, "alpha": None, "mask": "soft"}),
    "kd_unlabelled": Way(unlabelled=True),
    "mixkd_unlabelled": Way(mixed_labels=True, mixed_teacher=True, unlabelled=True),
    "noise": Way(mixed_labels=True, mixed_teacher=True, changes={"kind": "noise", "mask": "soft"}),
}


@dataclass(frozen=True, kw_only=True)
class Begun:
    """What the arms of a share have in common."""

    data: Reference
    teacher: Reference
    role: str
    """The teacher's."""
    start: ModelInput


class MixKD(Method):
    """The stages of MixKD, in the order of the method."""

    p: Mixkd

    def __init__(self, checked: Checked, call: Caller) -> None:
        super().__init__(checked, call)
        self._more = checked.more
        self.facts: list[ArmFact] = []
        """Of every arm that was trained."""
        self._begun: dict[str, Begun] = {}
        self._forms: dict[tuple[str, float | None], tuple[Shape, Kept]] = {}

    def part(self, data: Reference, fraction: float) -> Reference:
        """Return the data with a share of the training rows, which stages are resolved for from here on."""
        made = data
        if fraction < 1.0:
            rows = max(2, round(fraction * data.summary["rows"]["train"]))
            made = self._stage("part", f"{fraction:g}", part_stage.Recipe(rows=rows, seed=self.p.draw), data=data)
        self._see(made)
        return made

    def begun(self, whole: Reference, fraction: float) -> Begun:
        """Return a share of the rows, with the teacher of those that learn from it and what they begin from."""
        if self.p.teacher_rows == "same":
            data = self.part(whole, fraction)
            return self._taught(data, data, "teacher" if fraction == 1.0 else f"teacher {fraction:g}")
        self._see(whole)
        made = self._taught(whole, whole, "teacher")
        return replace(made, data=self.part(whole, fraction))

    def _taught(self, data: Reference, rows: Reference, role: str) -> Begun:
        """Return what is made of the rows that a teacher sees; once for each, whatever shares come of it."""
        if role not in self._begun:
            teacher = self.teacher(rows, role)
            self._begun[role] = Begun(data=data, teacher=teacher, role=role, start=self.start(rows, teacher))
        return self._begun[role]

    def start(self, data: Reference, teacher: Reference) -> ModelInput:
        """Return the weights that every arm begins from."""
        if self.p.student.scale is not None:
            self.scales = (self.p.student.scale,)
            return ModelInput(reference=self.importance(data, teacher), scale=self.p.student.scale)
        own = self._more.student
        recipe = first_layers_stage.Recipe(
            family=self._family, layers=self.p.student.layers or (own.layers if own else None),
            pretrained=self._pretrained(),
        )  # fmt: skip
        inputs: dict[str, Input] = {"data": data} if recipe.pretrained else {"teacher": ModelInput(reference=teacher)}
        made = self._stage("first_layers", "", recipe, **inputs)
        self._shape = Shape(**made.summary["shape"])
        return ModelInput(reference=made)

    def _pretrained(self) -> first_layers_stage.Pretrained | None:
        given = self._more.student or self._given
        fitted = self._more.student is None and (given is None or given.mode == "accept")
        if given is None or fitted or self.p.student.begin == "teacher":
            return None
        return first_layers_stage.Pretrained(content=given.content, source=str(given.folder), seed=self.p.seed)

    def arm(self, name: str, arm: Arm, begun: Begun, *, times: int = 1) -> Reference:
        """Train one arm's student under a name, for so many times the steps that were asked for."""
        assert self._shape is not None
        asked, way, data = self.p.student, WAYS[arm], begun.data
        training = self._train(asked, "student", self._shape.hidden)
        examples = training.steps * times * self._rows / training.per_epoch
        if way.unlabelled:
            data = self.pseudo_labels(data, begun.teacher)
            training = self._train(
                asked.model_copy(update={"batch_size": training.batch_size}), "student", self._shape.hidden
            )
        training = training.model_copy(update={"steps": max(1, round(examples * training.per_epoch / self._rows))})
        objective = Objective(
            labels=1.0, hidden=0.0, prediction=asked.prediction if way.teacher else 0.0, distance=asked.distance,
            temperature=asked.temperature,
        )  # fmt: skip
        keep = self._keep(asked, training, again=True, hidden=False) if objective.prediction else None
        recipe = distil_stage.Recipe(
            family=self._family, objective=objective, keep=keep, mixup=self.mixed(arm), training=training
        )
        teacher = ModelInput(reference=begun.teacher)
        made = self._stage("distil", name, recipe, data=data, teacher=teacher, start=begun.start)
        self.facts.append(self._fact(name, arm, begun, training, times=times))
        self._see(begun.data)
        return made

    def pseudo_labels(self, data: Reference, teacher: Reference) -> Reference:
        """Return the rows with more that the teacher labels, which stages are resolved for from here on."""
        texts = self._more.unlabelled
        assert texts is not None
        recipe = pseudo_labels_stage.Recipe(
            family=self._family, content=texts.content, columns=self._corpus.text_columns,
            max_length=self.p.data.max_length,
            source=pseudo_labels_stage.Source(path=str(texts.path), cache=str(Path(self.p.run.root or ".") / "cache")),
        )  # fmt: skip
        made = self._stage("pseudo_labels", "", recipe, data=data, teacher=ModelInput(reference=teacher))
        self._see(made)
        return made

    def mixed(self, arm: Arm) -> Mixup | None:
        """Return how an arm mixes examples; nothing where it does not, or would learn nothing from it."""
        asked, way = self._mixup(), WAYS[arm]
        if asked is None or not way.mixes:
            return None
        weights = {"labels": asked.labels * way.mixed_labels, "teacher": asked.teacher * way.mixed_teacher}
        return asked.model_copy(update={**weights, **way.changes}) if any(weights.values()) else None

    def _fact(self, name: str, arm: Arm, begun: Begun, training: Training, *, times: int) -> ArmFact:
        """Return what the report says of an arm; what a teacher is asked for is counted at every step."""
        way, mixed = WAYS[arm], self.mixed(arm)
        whole, small = (self._forward(item) for item in (ModelInput(reference=begun.teacher), begun.start))
        each = step_flops(small, whole if way.teacher and self.p.student.prediction else 0.0)
        if mixed is not None:
            each += mixed.samples * step_flops(small, whole if mixed.teacher else 0.0)
        rows = begun.data.summary["rows"]["train"]
        seen = training.steps * self._rows / training.per_epoch
        passes = 1 + (mixed.samples if mixed else 0)
        return ArmFact(
            role=name, arm=arm, teacher=begun.role, rows=rows, matched="tokens" if times > 1 else "epochs",
            steps=training.steps, examples=round(seen), passes=round(seen * passes),
            flops=each * seen + (self._rows - rows) * whole,
        )  # fmt: skip

    def _forward(self, item: ModelInput) -> float:
        """Return the forward FLOPs of a model for an example of mean length; each model is looked at once."""
        adapter, key = models.family(self._family), (item.reference.path, item.scale)
        if key not in self._forms:
            model = models.load(adapter, item)
            self._forms[key] = adapter.shape_of(model.config), models.kept_by(adapter, model)
        return flops.forward_flops(adapter, *self._forms[key], self._length)

    def report(self, data: Reference, made: Mapping[str, Reference]) -> Reference:
        """Say what came out."""
        p = self.p
        recipe = ablation_stage.Recipe(
            dataset=p.dataset, seed=p.seed, teacher_rows=p.teacher_rows,
            accepted=self._given is not None and self._given.mode == "accept", arms=tuple(self.facts),
            device=str(self.device), command=command_of("mixkd", p),
        )  # fmt: skip
        return self._stage("ablation", "", recipe, data=data, **made)


def follow(checked: Checked, call: Caller) -> Outcome:
    """Run the chain on checked parameters: every arm on every share of the training rows."""
    m = MixKD(checked, call)
    p, whole = m.p, m.data()
    students: dict[str, Reference] = {}
    made: dict[str, Reference] = {}
    for fraction in sorted(p.fractions, reverse=True):
        begun = m.begun(whole, fraction)
        if f"evaluate_{begun.role}" not in made:
            made[f"evaluate_{begun.role}"] = m.evaluate(begun.role, whole, ModelInput(reference=begun.teacher))
        for name, arm, times in p.trainings():
            role = name if fraction == 1.0 else f"{name} {fraction:g}"
            students[role] = student = m.arm(role, arm, begun, times=times)
            made[f"student_{role}"] = student
            made[f"evaluate_{role}"] = m.evaluate(role, whole, ModelInput(reference=student))
            made[f"seen_{role}"] = m.evaluate(f"{role} seen", begun.data, ModelInput(reference=student), split="train")
    m.report(whole, made)
    return outcome_of(m.made, students, made)
