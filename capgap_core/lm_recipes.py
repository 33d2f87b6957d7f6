"""What may be asked of a language model: its shape, what it learns from, and how it is trained. Imports no torch."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from capgap_core.recipes import Recipe


class Sizes(BaseModel):
    """The shape of a decoder of LLaMA's kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    neurons: int

    def parameters(self) -> int:
        """Return the parameters outside the embeddings."""
        keys = self.kv_heads * (self.hidden // self.heads)
        block = 2 * self.hidden**2 + 2 * self.hidden * keys + 3 * self.hidden * self.neurons + 2 * self.hidden
        return self.layers * block + self.hidden


class LmObjective(Recipe):
    """What a student learns from: the weight of each term of its loss, none of it for 0."""

    labels: float = Field(default=0.0, ge=0, le=100, description="Weight of the cross-entropy with the text.")
    prediction: float = Field(
        default=1.0, ge=0, le=100, description="Weight of the divergence from the teacher's predictions."
    )
    divergence: Literal["forward", "reverse"] = Field(
        default="forward",
        description="forward: KL(teacher || student); reverse: KL(student || teacher) (MiniLLM, arXiv 2306.08543).",
    )
    temperature: float = Field(default=1.0, gt=0, le=100, description="Softens both predictions before that.")

    @model_validator(mode="after")
    def _something(self) -> "LmObjective":
        if not self.labels and not self.prediction:
            raise ValueError("labels and prediction weigh nothing: nothing would be learned")
        return self


ALONE = LmObjective(labels=1.0, prediction=0.0)
"""What a model learns from without a teacher."""


class LmTraining(Recipe):
    """How every model of a grid is trained."""

    length: int = Field(default=128, ge=8, le=8192, description="Tokens of a row.")
    batch_size: int = Field(default=16, ge=1, le=65536, description="Rows of a step.")
    learning_rate: float = Field(
        default=1e-2, gt=0, le=1, description="Peak learning rate of a model of width 64; others: by 1 / width."
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
