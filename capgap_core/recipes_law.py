"""What a user may ask of ``law``. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from capgap_core.ladder import Ladder
from capgap_core.lm_recipes import LmObjective
from capgap_core.recipes import Execution, Recipe


class TextRecipe(Recipe):
    """Which column and which parts of the text, and what its tokens are."""

    text_columns: str | None = Field(default=None, min_length=1, description="The column of the text; null: text.")
    splits: dict[Literal["train", "dev", "test"], str] | None = Field(
        default=None, description="The file of each part, where names do not tell: train, dev, test."
    )
    tokenizer: str = Field(
        default="bytes", min_length=1, max_length=1000,
        description="bytes: a token is a byte; trained: a BPE trained on the text; else the folder of a tokenizer.",
    )  # fmt: skip
    vocabulary: int | None = Field(
        default=None, ge=300, le=200_000, description="Tokens of a BPE that is trained here; null: 4,096."
    )
    seed: int = Field(
        default=0, ge=0, lt=2**31, description="Draws the documents held out where no part is, and their order."
    )  # fmt: skip
    synthetic_bytes: int | None = Field(
        default=None, ge=10_000, le=2 * 10**9,
        description="Bytes of the training part, of dataset=hmm alone; null: 20,000,000.",
    )  # fmt: skip


class LmTraining(Recipe):
    """How every model of a grid is trained."""

    length: int = Field(default=128, ge=8, le=8192, description="Tokens of a row.")
    batch_size: int = Field(default=16, ge=1, le=65536, description="Rows of a step.")
    learning_rate: float = Field(
        default=7e-3, gt=0, le=1, description="Peak learning rate of a model of width 64; others: by 1 / width."
    )
    warmup: float = Field(default=0.05, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    weight_decay: float = Field(default=0.01, ge=0, le=1, description="Decay of weights; those of norms have none.")
    clip: float = Field(default=1.0, gt=0, description="Largest norm of the gradient.")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="Precision of the forward pass.")
    keep: Literal["bfloat16", "float32"] | None = Field(
        default="bfloat16",
        description="How teachers' last hidden states are kept, so that they are asked once; null: at every step.",
    )
    held_out_rows: int | None = Field(
        default=2000, ge=2, description="At most so many rows of valid and of test, evenly spread, are measured on."
    )


Reference = Annotated[str, Field(min_length=1, max_length=1000)]


class Law(Recipe):
    """Everything that ``capgap/law`` takes."""

    dataset: str = Field(
        default="pysource", min_length=1, max_length=1000,
        description="pysource, hmm, a file, a folder, or hub[/config][@revision].",
    )  # fmt: skip
    data: TextRecipe = TextRecipe()
    ladder: Ladder = Ladder()
    training: LmTraining = LmTraining()
    objective: LmObjective = LmObjective()
    references: tuple[Reference, ...] = Field(
        default=(), max_length=10_000,
        description="Finished runs of minidisc (ids or folders) whose students and assistants are the grid; then "
        "nothing is trained.",
    )  # fmt: skip
    run: Execution = Execution()

    @field_validator("references", mode="before")
    @classmethod
    def _one(cls, given: object) -> object:
        return (given,) if isinstance(given, str | int) else given
