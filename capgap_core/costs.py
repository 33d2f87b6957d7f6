"""What each arm of the comparison costs to train, beyond the teacher and the importance that all of them share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from capgap_core.flops import BACKWARD, step_flops
from capgap_core.training import Training


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Forward FLOPs of one training example of mean length, and what training on such examples adds up to."""

    teacher: float
    scales: Mapping[float, float]
    """Nominal scale → forward FLOPs of an example, from large to small, the target last."""
    rows: int
    """Training examples."""
    sampled: int | None
    """How many sub-networks a step of the sandwich draws between the largest and the target; null: all train."""
    mixtures: int = 0
    """Mixtures of each example that a student learns from, beside the example."""
    mixtures_asked: bool = True
    """Whether the teacher is asked about them."""

    @property
    def target(self) -> float:
        """Return the forward FLOPs of the student."""
        return list(self.scales.values())[-1]

    def sandwich(self, training: Training) -> float:
        """Return the FLOPs of training all candidates and the target at once."""
        return self.sandwich_of_a_step(self.sampled) * examples_seen(training, self.rows)

    def sandwich_of_a_step(self, sampled: int | None) -> float:
        """Return the FLOPs of the sandwich for one example, where so many sub-networks are drawn, or all train."""
        return sandwich_flops(self.teacher, list(self.scales.values()), sampled=sampled)

    def distilled(self, training: Training, teacher: float) -> float:
        """Return the FLOPs of distilling the target from a model of so many forward FLOPs."""
        return self.distilled_of_a_step(teacher) * examples_seen(training, self.rows)

    def distilled_of_a_step(self, teacher: float) -> float:
        """Return the FLOPs of distilling the target for one example, its mixtures among them."""
        of_a_mixture = step_flops(self.target, teacher if self.mixtures_asked else 0.0)
        return step_flops(self.target, teacher) + self.mixtures * of_a_mixture

    def steps_of_equal_flops(self, sandwich: Training, student: Training) -> int:
        """Return the steps for which the teacher itself distils the student at the cost of the way round.

        The assistant is charged at the mean cost of the candidates, so that the control is the same whichever of
        them is chosen, and no other λ makes it train again; ``spent`` has what each arm really cost.
        """
        candidates = list(self.scales.values())[:-1]
        total = self.sandwich(sandwich) + self.distilled(student, sum(candidates) / len(candidates))
        direct = self.distilled_of_a_step(self.teacher)
        return steps_for(total, per_example=direct, examples=examples_of_a_step(student, self.rows))

    def spent(self, training: Mapping[str, Training], chosen: float) -> dict[str, float]:
        """Return role → FLOPs of what only that arm has to pay.

        Parameters
        ----------
        training
            Role (sandwich, student, and the controls that ran) → how it was trained.
        chosen
            Scale of the assistant.
        """
        sandwich = self.sandwich(training["sandwich"])
        own = self.distilled(training["student"], self.scales[chosen])
        controls = {r: self.distilled(t, self.teacher) for r, t in training.items() if r.startswith("direct")}
        return {"sandwich": sandwich, "student": sandwich + own, **controls}


def sandwich_flops(teacher: float, candidates: Sequence[float], *, sampled: int | None) -> float:
    """Return the FLOPs of one example in the sandwich: the teacher forward, the sub-networks there and back.

    Parameters
    ----------
    teacher, candidates
        Forward FLOPs of one example; the candidates from large to small, the target last.
    sampled
        How many are drawn between the largest and the smallest; null where all train in each step.
    """
    between = candidates[1:-1]
    if sampled is None or len(between) <= sampled:
        trained = sum(candidates)
    else:
        trained = candidates[0] + candidates[-1] + sampled * sum(between) / len(between)
    return teacher + (1.0 + BACKWARD) * trained


def examples_of_a_step(training: Training, rows: int) -> float:
    """Return the mean examples of a step."""
    return rows / training.per_epoch


def examples_seen(training: Training, rows: int) -> float:
    """Return the examples of all steps, each counted as often as it is seen."""
    return training.steps * examples_of_a_step(training, rows)


def steps_for(flops: float, *, per_example: float, examples: float) -> int:
    """Return the steps of so many examples that cost the given FLOPs, at least one."""
    return max(1, round(flops / (per_example * examples)))
