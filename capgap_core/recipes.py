"""What a user may ask for: every choice that moves a result, and apart from them, where it runs.

These models check the input, draw the form in the Prefect UI and fill the recipes of the stages
(``capgap_core/method.py``), which are what is hashed. ``null`` means "capgap chooses by model and data
size" (``capgap_core/budget.py``); the choice is resolved before anything is hashed, and recorded.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Scale = Annotated[float, Field(gt=0.0, lt=1.0)]
Dtype = Literal["auto", "float32", "bfloat16"]
Metric = Literal["auto", "accuracy", "accuracy_and_f1", "matthews", "pearson_and_spearman"]
Task = Literal["auto", "classification", "regression"]
Protocol = Literal["capgap", "paper"]

DEFAULT_GRID = (0.5, 0.4, 0.3, 0.2, 0.15)


class Recipe(BaseModel):
    """A frozen set of choices; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)


class DataRecipe(Recipe):
    """Which columns, which parts and which cut of the data set."""

    text_columns: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=2,
        description="The one text column or the two of a pair; null: recognised by name.",
    )
    label_column: str | None = Field(default=None, description="The column to predict; null: label, or score.")
    splits: dict[Literal["train", "eval", "dev", "test", "selection"], str] | None = Field(
        default=None,
        description="The file of each part, where names do not tell: train, eval (or dev and test), selection.",
    )
    metric: Metric = Field(
        default="auto", description="What is measured; auto: by task, and by name for MRPC, QQP and CoLA."
    )
    max_length: int = Field(default=128, ge=8, le=512, description="Tokens kept of an example; what is longer is cut.")
    train_rows: int | None = Field(
        default=None, ge=16, description="Training rows drawn once, by data.seed; null: all."
    )
    selection_rows: int = Field(
        default=2000,
        ge=8,
        description="At most this many rows of train choose an assistant, or a setting (never over a tenth).",
    )
    calibration_rows: int = Field(
        default=1024, ge=8, description="At most this many rows of train score the importance (never over a tenth)."
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**31,
        description="Draws the parts. Apart from the training seed, so that seeds share the data.",
    )

    @field_validator("text_columns", mode="before")
    @classmethod
    def _one_name(cls, names: object) -> object:
        return (names,) if isinstance(names, str) else names


class TrainRecipe(Recipe):
    """How long and how fast a stage trains."""

    epochs: float | None = Field(
        default=None, gt=0, le=1000, description="Passes over the training part; null: by model and data size."
    )
    learning_rate: float | None = Field(
        default=None, gt=0, le=1, description="Peak learning rate; null: by model size."
    )
    batch_size: int | None = Field(
        default=None, ge=1, le=4096, description="Examples in one optimizer step, on average; null: by protocol."
    )
    batches: Literal["tokens", "examples"] = Field(
        default="tokens",
        description="tokens: steps of as many tokens as batch_size examples have; examples: of exactly batch_size.",
    )
    micro_batch: int | None = Field(
        default=None, ge=1, description="Examples at once in memory; null: the whole batch."
    )
    weight_decay: float = Field(
        default=0.01, ge=0, le=1, description="Decay of weights; biases and LayerNorm have none."
    )
    warmup: float = Field(default=0.1, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    clip: float = Field(default=5.0, gt=0, description="Largest norm of the gradient.")
    dtype: Dtype = Field(
        default="auto",
        description="Precision of the forward pass; auto: bfloat16 where the machine multiplies it fast.",
    )


class DistilRecipe(TrainRecipe):
    """How what learns from a teacher trains."""

    temperature: float = Field(
        default=1.0, gt=0, le=100, description="Softens both predictions before they are compared."
    )
    outputs: Literal["auto", "bfloat16", "float32", "live"] = Field(
        default="auto",
        description="How the teacher's hidden states are kept, so that it is asked once; live: asked at every step; "
        "auto: kept on a CPU where they are read again and fit outputs_gb, in the precision of the training.",
    )
    outputs_gb: float = Field(
        default=5.0,
        ge=0,
        le=1e6,
        description="Most room for one teacher's outputs, in 10^9 bytes, where outputs is auto.",
    )


class TeacherRecipe(TrainRecipe):
    """The teacher: fine-tune what is given, accept what is fine-tuned, or train the small default."""

    mode: Literal["auto", "finetune", "accept"] = Field(
        default="auto", description="auto: accept a teacher that has a trained head for this task, fine-tune any other."
    )
    layers: int = Field(default=2, ge=1, le=48, description="Layers of a teacher trained from scratch.")
    hidden: int = Field(default=128, ge=16, le=4096, description="Width of a teacher trained from scratch.")
    heads: int = Field(default=8, ge=1, le=64, description="Attention heads a layer of a teacher trained from scratch.")
    neurons: int = Field(
        default=512, ge=16, le=16384, description="Feed-forward neurons a layer of a teacher trained from scratch."
    )
    vocabulary: int = Field(
        default=16_000, ge=300, le=100_000, description="Word pieces of a tokenizer trained from scratch."
    )


class ImportanceRecipe(Recipe):
    """How much each head and neuron matters."""

    batch_size: int = Field(
        default=32, ge=1, le=4096, description="Examples at once; moves the result only where protocol is paper."
    )


class SandwichRecipe(DistilRecipe):
    """The joint training of all candidates and the target with shared weights."""

    grid: tuple[Scale, ...] = Field(
        default=DEFAULT_GRID, min_length=1, max_length=32, description="Scales of the candidates."
    )
    mode: Literal["all", "sampled"] = Field(
        default="all", description="all: every scale in each step; sampled: largest, smallest and some."
    )
    random: int = Field(
        default=2, ge=0, le=32, description="Scales drawn in each step beside the two, where mode is sampled."
    )

    @field_validator("grid")
    @classmethod
    def _distinct(cls, grid: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(grid)) != len(grid):
            raise ValueError("each scale may stand in the grid once")
        return tuple(sorted(grid, reverse=True))


class TradeoffRecipe(Recipe):
    """How the assistant is chosen: t = m + λ(1 - scale)."""

    lam: float = Field(
        default=0.2,
        ge=0,
        le=100,
        title="λ",
        description="Weight of sparsity against the metric (λ; the paper's is 0.2).",
    )
    metric_scale: Literal["raw", "normalised"] = Field(
        default="raw",
        description="raw: the metric itself, as in the paper; normalised: (m - chance)/(teacher - chance).",
    )
    assistant: Scale | None = Field(
        default=None, description="The candidate to take as the assistant, whatever its t; null: the one of the best t."
    )


class StudentRecipe(DistilRecipe):
    """The student and its controls."""

    scale: float = Field(default=0.1, gt=0, lt=1, description="Kept share of the prunable parameters, in (0, 1).")
    controls: bool = Field(
        default=True, description="Also distil straight from the teacher, for equal epochs and for equal FLOPs."
    )


class MixupRecipe(Recipe):
    """What a student learns from mixtures of examples, beside the examples (MixKD)."""

    samples: int = Field(default=0, ge=0, le=16, description="Mixtures of each example in a step; 0: none.")
    labels: float = Field(
        default=1.0, ge=0, le=100, title="α_SM", description="Weight of the loss with the mixed labels (α_SM)."
    )
    teacher: float = Field(
        default=1.0,
        ge=0,
        le=100,
        title="α_TMKD",
        description="Weight of the distance to what the teacher says of the mixture (α_TMKD).",
    )
    alpha: float = Field(
        default=0.4, gt=0, le=100, title="α", description="The share of the first example is drawn from Beta(α, α)."
    )
    mix: float | None = Field(
        default=None, ge=0, le=1, description="The share of the first example; null: drawn for each mixture."
    )
    per: Literal["pair", "batch"] = Field(
        default="pair", description="pair: each pair has a share of its own; batch: all of a step have one."
    )
    mask: Literal["soft", "union"] = Field(
        default="soft", description="soft: a place counts by the share of the texts that reach it; union: wholly."
    )


class EvaluateRecipe(Recipe):
    """What is measured at the end, on data nobody tuned on."""

    split: Literal["dev", "test"] = Field(
        default="dev", description="The part to report on, where the data set has both."
    )
    length: int = Field(default=128, ge=8, le=512, description="Tokens of the example for FLOPs and latency.")
    latency: bool = Field(default=True, description="Measure milliseconds at batch 1 and 32.")


class Execution(BaseModel):
    """Where and how stages run; never part of an identity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    root: str | None = Field(
        default=None, description="The store; null: CAPGAP_ARTIFACTS, else artifacts/ beside prefect.yaml."
    )
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: cuda where there is one, else cpu."
    )
    threads: int | None = Field(default=None, ge=1, le=1024, description="CPU threads; null: as many as cores.")
    ray: str | None = Field(
        default=None, max_length=1000, pattern=r"^(local|[^\s/]+:\d{1,5})$",
        description="law: local, or host:port of a Ray cluster, where its models are made at once; null: one by one.",
    )  # fmt: skip
    reuse: Literal["same-code", "any-code"] = Field(
        default="same-code", description="any-code: also take finished stages made by other code; the report says so."
    )
    auto_batch: bool = Field(
        default=False, description="Where memory lacks, train again with half the micro-batch, until it does."
    )
    checkpoint_seconds: float = Field(
        default=60.0, gt=0, le=86400, description="Seconds after which training is kept, to go on from there."
    )
    deterministic: bool = Field(
        default=False, description="Use only operations that give the same bits each time; a CPU's always do."
    )
    verify: Literal["checksum", "sizes"] = Field(
        default="checksum", description="What is checked of a finished stage before it is used."
    )


class MethodRecipe(Recipe):
    """What every flow takes, first."""

    dataset: str = Field(
        default="pydocs",
        min_length=1,
        max_length=1000,
        description="pydocs, a file, a folder, or hub[/config][@revision].",
    )
    teacher: str = Field(
        default="scratch", min_length=1, max_length=1000, description="scratch, a folder, or a name on the hub."
    )
    task: Task = Field(default="auto", description="auto: scores with more than 20 values are regression.")
    seed: int = Field(
        default=1, ge=0, lt=2**31, description="Draws initial weights, dropout, mixtures and the order of the data."
    )


class Minidisc(MethodRecipe):
    """Everything that ``capgap/minidisc`` takes."""

    protocol: Protocol = Field(
        default="capgap", description="paper: what the released code does, which reads dev three times."
    )
    data: DataRecipe = DataRecipe()
    teacher_recipe: TeacherRecipe = TeacherRecipe()
    importance: ImportanceRecipe = ImportanceRecipe()
    sandwich: SandwichRecipe = SandwichRecipe()
    tradeoff: TradeoffRecipe = TradeoffRecipe()
    student: StudentRecipe = StudentRecipe()
    mixup: MixupRecipe = MixupRecipe()
    evaluate: EvaluateRecipe = EvaluateRecipe()
    run: Execution = Execution()
