"""Models of several sizes, alone, on fresh text of a known entropy: what a fitted law should find at its end."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from capgap_core import hmm, law, machine, tables
from capgap_core.build import build
from capgap_core.ladder import Cell, sizes_for
from capgap_core.lm_recipes import ALONE
from capgap_core.lm_text import read_text
from capgap_core.loading import Cache
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.recipes_law import LmTraining
from capgap_core.records import Reference
from capgap_core.stages import pretrain, text as text_stage
from capgap_core.stages.law import PART

SPARE = 1.02
"""Text for each token that the model with most of them sees: the order by seed leaves no place to count exactly."""


def rows(
    sizes: Sequence[float], budgets: Sequence[int], seeds: Sequence[int], *, training: LmTraining,
    execution: Execution, progress: Progress,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Train every size on every budget of tokens, each seen once, and yield the published row of each model.

    Parameters
    ----------
    sizes
        Parameters outside the embeddings.
    budgets
        Tokens.
    """
    recipe = text_recipe(round(SPARE * max(budgets)), execution)
    text = build("text", recipe, {}, execution=execution, progress=progress)
    known = hmm.on_part(text.table(PART), training.length, most=training.held_out_rows)
    for seed in seeds:
        for size in sorted(sizes):
            for tokens in sorted(budgets):
                cell = Cell(student=sizes_for(size), tokens=tokens, teacher=None, seed=seed)
                made = _made(cell, text, training, execution, progress)
                (lost,) = [r for r in tables.read(made.table("held_out")) if r["part"] == PART and r["source"] is None]
                yield {
                    "parameters": made.summary["non_embedding"], "budget": tokens, "tokens": made.summary["tokens"],
                    "epochs": made.summary["epochs"], "nats": lost["nats"], "stderr": lost["stderr"],
                    "source_nats": known.nats, "source_stderr": known.stderr,
                    "whole_nats": text.summary["source_nats"][PART], "measured": lost["tokens"], "seed": seed,
                    "seconds": made.seconds, "device": str(machine.device_of(execution)), "identity": made.identity,
                    "code": made.code,
                }  # fmt: skip


def text_recipe(train_bytes: int, execution: Execution) -> text_stage.Recipe:
    """Return the recipe of the control's stage ``text``, with so many bytes to train on."""
    cache = Path(execution.root or ".") / "cache"
    content = read_text(hmm.NAME, seed=0, cache=Cache(cache), synthetic_bytes=train_bytes).digest
    source = text_stage.Source(
        dataset=hmm.NAME, splits=None, cache=str(cache), tokenizer=None, synthetic_bytes=train_bytes
    )
    return text_stage.Recipe(
        content=content, column=None, tokenizer="bytes", vocabulary=None, seed=0, source=source
    )  # fmt: skip


def _made(cell: Cell, text: Reference, training: LmTraining, execution: Execution, progress: Progress) -> Reference:
    seen = law.rows_of(cell.tokens, training.length, text)
    recipe = pretrain.Recipe(
        scratch=cell.student, length=training.length, rows=seen, objective=ALONE,
        training=law.resolved(training, cell, seen), seed=cell.seed, held_out_rows=training.held_out_rows,
    )  # fmt: skip
    return build("pretrain", recipe, {"text": text}, execution=execution, progress=progress)
