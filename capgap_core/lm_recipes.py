"""What may be asked of a language model: its shape, and what it learns from. Imports no torch."""

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
