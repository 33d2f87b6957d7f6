"""The law of a capacity gap: teachers and students of a ladder, each trained once, and what their losses say."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from capgap_core import ladder as ladders
from capgap_core.errors import StageFailed
from capgap_core.given_text import VOCABULARY
from capgap_core.ladder import Cell, Ladder
from capgap_core.lm_recipes import ALONE, LmObjective, Sizes
from capgap_core.markdown import short
from capgap_core.method import Caller, command_of, within_memory
from capgap_core.outcome import Outcome
from capgap_core.outcome_law import measured_on, outcome_of
from capgap_core.preflight import CheckedLaw
from capgap_core.recipes import Execution
from capgap_core.recipes_law import LmTraining
from capgap_core.records import Input, Reference
from capgap_core.stages import law as law_stage, pretrain, text as text_stage
from capgap_core.training import Training


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What a grid is made of."""

    text: text_stage.Recipe
    ladder: Ladder
    training: LmTraining
    objective: LmObjective
    execution: Execution
    dataset: str
    """Its name, for the report."""
    command: str
    """Asks for the same grid."""


def follow(checked: CheckedLaw, call: Caller) -> Outcome:
    """Run the chain on checked parameters: train every model of the grid, and fit the laws."""
    made: list[tuple[str, Reference]] = []

    def noted(
        stage: str, recipe: BaseModel, inputs: Mapping[str, Input], *, role: str, execution: Execution
    ) -> Reference:
        reference = within_memory(call, stage, recipe, inputs, role=role, execution=execution)
        made.append((role, reference))
        return reference

    fill(grid_of(checked), noted)
    return outcome_of(made)


def grid_of(checked: CheckedLaw) -> Grid:
    """Return the grid that is asked for."""
    p, text = checked.parameters, checked.text
    own = text.tokenizer in ("bytes", "trained")
    source = text_stage.Source(
        dataset=p.dataset, splits=p.data.splits, cache=str(Path(p.run.root or ".") / "cache"),
        tokenizer=None if own else str(Path(p.data.tokenizer).expanduser().absolute()),
        synthetic_bytes=p.data.synthetic_bytes,
    )  # fmt: skip
    recipe = text_stage.Recipe(
        content=text.content, column=p.data.text_columns, tokenizer=text.tokenizer,
        vocabulary=(p.data.vocabulary or VOCABULARY) if text.tokenizer == "trained" else None, seed=p.data.seed,
        source=source,
    )  # fmt: skip
    return Grid(
        text=recipe, ladder=p.ladder, training=p.training, objective=p.objective, execution=p.run,
        dataset=text.name, command=command_of(checked.flow, p),
    )  # fmt: skip


def fill(grid: Grid, call: Caller) -> Reference:
    """Train every teacher and every student of the grid, and fit the laws; return the stage ``law``."""
    text = call("text", grid.text, {}, role="", execution=grid.execution)
    _long_enough(text, grid.training.length)
    teachers: dict[Sizes, Reference] = {}
    for shape, tokens in ladders.teachers(grid.ladder):
        one = Cell(student=shape, tokens=tokens, teacher=None, seed=grid.ladder.seeds[0])
        teachers[shape] = _made(grid, text, call, one, f"teacher {short(shape.parameters())}")
    cells = ladders.cells(grid.ladder)
    made = [_made(grid, text, call, cell, cell.role, cell.teacher and teachers[cell.teacher]) for cell in cells]
    recipe = law_stage.Recipe(
        teachers=tuple(
            law_stage.Teacher(parameters=shape.parameters(), tokens=tokens)
            for shape, tokens in ladders.teachers(grid.ladder)
        ),
        cells=tuple(
            law_stage.Cell(
                student=cell.student.parameters(), tokens=cell.tokens, seed=cell.seed,
                teacher=None if cell.teacher is None else cell.teacher.parameters(),
            )
            for cell in cells
        ),
        teacher_tokens=grid.ladder.teacher_tokens,
        control=_control(grid, text),
        said=law_stage.Said(dataset=grid.dataset, command=grid.command, measured=measured_on(made[0])),
    )  # fmt: skip
    inputs: dict[str, Input] = {f"teacher_{i}": made for i, made in enumerate(teachers.values())}
    inputs |= {f"cell_{i}": one for i, one in enumerate(made)}
    inputs |= {"text": text} if recipe.control else {}
    return call("law", recipe, inputs, role="", execution=grid.execution)


def _long_enough(text: Reference, length: int) -> None:
    """Raise where a part is not two rows: one row has no error. Tokens of more than a byte are known only now."""
    for part, tokens in sorted(text.summary["tokens"].items()):
        if tokens < 2 * length:
            rule = f"{part} has {tokens:,} tokens: not two rows of {length}"
            raise StageFailed("text", rule, "Give training.length fewer, or more text.")


def _control(grid: Grid, text: Reference) -> law_stage.Control | None:
    """Return how models are measured on a text whose own loss is known; null for any other."""
    if "source_nats" not in text.summary:
        return None
    return law_stage.Control(length=grid.training.length, rows=grid.training.held_out_rows)


def _made(
    grid: Grid, text: Reference, call: Caller, cell: Cell, role: str, teacher: Reference | None = None
) -> Reference:
    """Return one model of the grid: with a teacher as its student, else from the text alone."""
    asked, seen = grid.training, rows_of(cell.tokens, grid.training.length, text)
    recipe = pretrain.Recipe(
        scratch=cell.student, length=asked.length, rows=seen, objective=grid.objective if teacher else ALONE,
        training=resolved(asked, cell, seen), seed=cell.seed, keep=asked.keep if teacher else None,
        held_out_rows=asked.held_out_rows,
        source=pretrain.Kept(rows=most_rows(grid, text) if teacher else 0),
    )  # fmt: skip
    inputs = {"text": text, **({"teacher": teacher} if teacher else {})}
    return call("pretrain", recipe, inputs, role=role, execution=grid.execution)


def resolved(asked: LmTraining, cell: Cell, rows: int) -> Training:
    """Return how a model is trained on its tokens, which may be more than so many rows hold."""
    per_epoch = -(-rows // asked.batch_size)
    return Training(
        steps=max(1, round(cell.tokens / (asked.length * asked.batch_size))),
        learning_rate=ladders.rate(asked.learning_rate, cell.student),
        batch_size=asked.batch_size, room=None, per_epoch=per_epoch, micro_batch=asked.batch_size,
        weight_decay=asked.weight_decay, warmup=asked.warmup, clip=asked.clip, dtype=asked.dtype, seed=cell.seed,
    )  # fmt: skip


def rows_of(tokens: int, length: int, text: Reference) -> int:
    """Return the rows of the training part that so many tokens take, at most all."""
    return min(math.ceil(tokens / length), math.ceil((text.summary["tokens"]["train"] - 1) / length))


def most_rows(grid: Grid, text: Reference) -> int:
    """Return the rows that the student with most of them sees."""
    most = max(cell.tokens for cell in ladders.cells(grid.ladder))
    return rows_of(most, grid.training.length, text)
