"""What a user may ask of ``mixkd``, and what its arms are."""

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator

from capgap_core.recipes import (
    DataRecipe,
    DistilRecipe,
    EvaluateRecipe,
    Execution,
    MethodRecipe,
    MixupRecipe,
    Protocol,
    Scale,
    TeacherRecipe,
)

Arm = Literal["finetune", "kd", "kd_sm", "kd_tmkd", "mixkd", "repeats", "noise", "kd_unlabelled", "mixkd_unlabelled"]
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]

ARMS: tuple[Arm, ...] = get_args(Arm)
UNLABELLED: tuple[Arm, ...] = ("kd_unlabelled", "mixkd_unlabelled")
"""Arms that learn from more rows, which the teacher labels."""
ALONE: tuple[Arm, ...] = ("finetune", "kd", "kd_unlabelled")
"""Arms that send each example through the student once in a step."""


class PupilRecipe(DistilRecipe):
    """The student that every arm trains."""

    layers: int | None = Field(
        default=None,
        ge=1,
        le=48,
        description="It begins as so many first layers of the teacher; null: half of them, all of student.model.",
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="It begins as this model, a folder or a name on the hub, which reads as the teacher does.",
    )
    begin: Literal["auto", "pretrained", "teacher"] = Field(
        default="auto",
        description="Whose layers these are: of the given model before it was fine-tuned, with a new head, or of the "
        "fine-tuned teacher, whose weights know of every row it saw; auto: pretrained where there is one and scale is "
        "not given.",
    )
    scale: Scale | None = Field(
        default=None, description="It starts as the teacher slimmed to this scale instead; null: it does not."
    )
    prediction: float = Field(
        default=1.0, ge=0, le=100, description="Weight of the distance to what the teacher says of the example (α_KD)."
    )
    distance: Literal["mse", "kl"] = Field(
        default="mse", description="Between predictions: of logits (mse), or of distributions (kl)."
    )


class MixkdMixupRecipe(MixupRecipe):
    """What a student learns from mixtures of examples, beside the examples."""

    samples: int = Field(default=1, ge=1, le=16, description="Mixtures of each example in a step.")


class Mixkd(MethodRecipe):
    """Everything that ``capgap/mixkd`` takes."""

    arms: tuple[Arm, ...] = Field(
        default=ARMS,
        min_length=1,
        description="finetune: labels alone; kd: and the teacher's predictions; kd_sm: and mixed labels; kd_tmkd: and "
        "the teacher's predictions of mixtures; mixkd: both; repeats: the examples again in place of mixtures; noise: "
        "noise as far as the partner; kd_unlabelled, mixkd_unlabelled: kd and mixkd with the rows of unlabelled.",
    )
    matched: tuple[Literal["epochs", "tokens"], ...] = Field(
        default=("epochs", "tokens"),
        min_length=1,
        description="epochs: every arm sees the examples as often; tokens: arms without mixtures take as many more "
        "steps as the others send tokens through the student, too.",
    )
    unlabelled: str | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="A file with the data set's text columns, or with a text a line (.txt), which the teacher labels.",
    )
    fractions: tuple[Fraction, ...] = Field(
        default=(1.0,), min_length=1, max_length=16, description="Shares of the training rows that students are given."
    )
    draw: int = Field(default=0, ge=0, lt=2**31, description="Draws which rows the shares hold.")
    teacher_rows: Literal["all", "same"] = Field(
        default="all", description="all: one teacher saw every training row; same: as few as its student."
    )
    data: DataRecipe = DataRecipe()
    teacher_recipe: TeacherRecipe = TeacherRecipe()
    student: PupilRecipe = PupilRecipe()
    mixup: MixkdMixupRecipe = MixkdMixupRecipe()
    evaluate: EvaluateRecipe = EvaluateRecipe()
    run: Execution = Execution()

    @field_validator("arms", "matched", "fractions", mode="before")
    @classmethod
    def _one(cls, given: object) -> object:
        return (given,) if isinstance(given, str | float | int) else given

    @field_validator("arms", "matched", "fractions")
    @classmethod
    def _distinct(cls, given: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(given)) != len(given):
            raise ValueError("each may be given once")
        return given

    @field_validator("fractions")
    @classmethod
    def _told_apart(cls, given: tuple[float, ...]) -> tuple[float, ...]:
        names = [f"{fraction:g}" for fraction in given]
        if len(set(names)) != len(names) or any(name == "1" and f != 1.0 for name, f in zip(names, given, strict=True)):
            raise ValueError("they have to differ in six digits, from 1, too")
        return given

    @property
    def protocol(self) -> Protocol:
        """Return how the data are cut: nothing is known of how the paper did it."""
        return "capgap"

    def trainings(self) -> list[tuple[str, Arm, int]]:
        """Return (name, arm, how many times the steps) of each training on one share of the rows.

        An arm that mixes sends each example through the student ``1 + mixup.samples`` times in a step; one that does
        not is trained for as many steps more where tokens are to be equal. Where mixtures weigh nothing no arm mixes.
        """
        mixes = self.mixup.labels > 0.0 or self.mixup.teacher > 0.0
        found: list[tuple[str, Arm, int]] = []
        for arm in self.arms:
            if arm in UNLABELLED and self.unlabelled is None:
                continue
            alone = arm in ALONE
            if "epochs" in self.matched or not alone or not mixes:
                found.append((arm, arm, 1))
            if "tokens" in self.matched and alone and mixes:
                found.append((f"{arm}_tokens", arm, 1 + self.mixup.samples))
        return found
