"""The stages of MiniDisc (arXiv 2205.14570): a student through a teacher assistant chosen in one trial."""

from collections.abc import Mapping

from capgap_core import flops, machine, models
from capgap_core.costs import Costs
from capgap_core.distillation import Objective
from capgap_core.method import Caller, Method, command_of
from capgap_core.preflight import Checked
from capgap_core.recipes import Minidisc
from capgap_core.records import WORDS, Input, ModelInput, Reference
from capgap_core.shapes import Shape
from capgap_core.stages import (
    candidates as candidates_stage,
    distil as distil_stage,
    latency as latency_stage,
    report as report_stage,
    sandwich as sandwich_stage,
    tradeoff as tradeoff_stage,
)  # fmt: skip


class MiniDisc(Method):
    """The stages of MiniDisc, in the order of the method."""

    p: Minidisc

    def __init__(self, checked: Checked, call: Caller) -> None:
        super().__init__(checked, call)
        self.scales = (*(s for s in self.p.sandwich.grid if s > self.p.student.scale), self.p.student.scale)
        self._costs: Costs | None = None

    def importance(self, data: Reference, teacher: Reference) -> Reference:
        """Score heads and neurons, reorder them, and plan every scale."""
        made = super().importance(data, teacher)
        assert self._shape is not None
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
        """Choose the assistant, or take the one that is asked for."""
        asked = self.p.tradeoff
        recipe = tradeoff_stage.Recipe(
            lam=asked.lam, metric_scale=asked.metric_scale, metric=data.summary["metric"], target=self.p.student.scale,
            achieved=importance.summary["achieved"], chance=data.summary["constant"]["selection"],
            assistant=asked.assistant,
        )  # fmt: skip
        return self._stage("tradeoff", "assistant", recipe, candidates=candidates)

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

    def latency(self, importance: Reference) -> Reference:
        """Time a forward pass of every size."""
        threads = machine.threads_of(self.p.run)
        recipe = latency_stage.Recipe(
            family=self._family, scales=self.scales, length=self.p.evaluate.length, device=str(self.device),
            threads=threads, machine=machine.name(self.device),
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
            metric_scale=p.tradeoff.metric_scale, scale=p.student.scale, device=str(self.device), spent=spent,
            command=command_of("minidisc", p), words={name: data.summary[name] for name in sorted(WORDS)},
            latency=latency.identity if latency else None,
        )  # fmt: skip
        stages: dict[str, Input] = {
            "data": data, "teacher": teacher, "importance": importance, "candidates": candidates, "tradeoff": tradeoff,
            **students, **{f"evaluate_{role}": made for role, made in evaluations.items()},
        }  # fmt: skip
        if latency is not None:
            stages["latency"] = latency
        return self._stage("report", "", recipe, **stages)
