"""The law of a capacity gap: teachers and students of a ladder, each made once, and what their losses say."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import BaseModel

from capgap_core import ladder as ladders, law_of_runs, lm_slices
from capgap_core.at_once import Together, several
from capgap_core.errors import StageFailed
from capgap_core.given_lms import SCRATCH, GivenLm
from capgap_core.given_runs import CheckedRuns
from capgap_core.given_text import VOCABULARY
from capgap_core.ladder import Cell, Ladder
from capgap_core.lm_recipes import ALONE, LmObjective
from capgap_core.markdown import short
from capgap_core.method import Caller, command_of, within_memory
from capgap_core.outcome import Outcome
from capgap_core.outcome_law import measured_on, outcome_of
from capgap_core.preflight import CheckedLaw
from capgap_core.recipes import Execution
from capgap_core.recipes_law import LmTraining
from capgap_core.records import Input, ModelInput, Reference
from capgap_core.stages import given_lm, law as law_stage, lm_importance, pretrain, text as text_stage
from capgap_core.training import Training

SCORED = 512
"""Rows of the training part on which the units of a teacher are scored, at most."""


Ask = tuple[str, str, BaseModel, Mapping[str, Input]]
"""Role, stage, recipe and inputs."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What a grid is made of."""

    text: text_stage.Recipe
    ladder: Ladder
    given: tuple[GivenLm, ...] = ()
    """The teachers that the ladder names."""
    training: LmTraining
    objective: LmObjective
    execution: Execution
    dataset: str
    """Its name, for the report."""
    command: str
    """Asks for the same grid."""


def follow(checked: CheckedLaw | CheckedRuns, call: Caller) -> Outcome:
    """Run the chain on checked parameters: train every model of the grid, and fit the laws; of runs, only fit."""
    if isinstance(checked, CheckedRuns):
        return law_of_runs.follow(checked, call)
    made: list[tuple[str, Reference]] = []

    def noted(
        stage: str, recipe: BaseModel, inputs: Mapping[str, Input], *, role: str, execution: Execution
    ) -> Reference:
        reference = within_memory(call, stage, recipe, inputs, role=role, execution=execution)
        made.append((role, reference))
        return reference

    grid = grid_of(checked)
    fill(grid, noted)
    return outcome_of(_in_order(grid, made))


def _in_order(grid: Grid, made: list[tuple[str, Reference]]) -> list[tuple[str, Reference]]:
    """Return the stages in the order in which they were asked for, whichever of those made at once has ended first."""
    roles = {role: i for i, role in enumerate(cell.role for cell in _cells(grid))}
    sizes = {role: one.summary.get("non_embedding", 0) for role, one in made if one.stage in ("pretrain", "given_lm")}
    stages = ("text", "pretrain", "given_lm", "lm_importance", "law")

    def place(one: tuple[str, Reference]) -> tuple[bool, int, int]:
        role, reference = one
        later = role in roles or reference.stage == "law"
        return later, stages.index(reference.stage), roles[role] if role in roles else sizes.get(role, 0)

    return sorted(made, key=place)


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
        text=recipe, ladder=p.ladder, given=checked.given, training=p.training, objective=p.objective, execution=p.run,
        dataset=text.name, command=command_of(checked.flow, p),
    )  # fmt: skip


def fill(grid: Grid, call: Caller) -> Reference:
    """Make every teacher and every student of the grid, and fit the laws; return the stage ``law``."""
    text = call("text", grid.text, {}, role="", execution=grid.execution)
    _long_enough(text, grid.training.length)
    cells = _cells(grid)
    with several(grid.execution) as together:
        make = partial(_made, grid, call, together)
        teachers = _teach(grid, text, call, make)
        scored: dict[int, Reference] = {}
        if grid.ladder.begin == "slimmed":
            asks: list[Ask] = [
                (f"teacher {short(size)}", "lm_importance", _scoring(grid, size), {"text": text, "teacher": teacher})
                for size, teacher in teachers.items()
            ]
            scored = dict(zip(teachers, make(asks), strict=True))
        whose = [(cell, cell.teacher or 0) for cell in cells]
        made = make(
            [
                (cell.role, "pretrain", *_ask(grid, text, cell, teachers.get(size), scored.get(size)))
                for cell, size in whose
            ]
        )
    inputs: dict[str, Input] = {f"teacher_{i}": one for i, one in enumerate(teachers.values())}
    inputs |= {f"cell_{i}": one for i, one in enumerate(made)}
    recipe = _law(grid, cells, _control(grid, text), measured_on(made[0]))
    inputs |= {"text": text} if recipe.control else {}
    return call("law", recipe, inputs, role="", execution=grid.execution)


def _teach(
    grid: Grid, text: Reference, call: Caller, make: Callable[[Sequence[Ask]], list[Reference]]
) -> dict[int, Reference]:
    """Return parameters → teacher, ascending. One that is given is read here: others need not see its folder."""
    asks = {
        size: (f"teacher {short(size)}", stage, recipe, {"text": text})
        for size, (stage, recipe) in _teachers(grid, text).items()
    }
    trained = {size: ask for size, ask in asks.items() if ask[1] == "pretrain"}
    made = dict(zip(trained, make(list(trained.values())), strict=True))
    for size, (role, stage, recipe, inputs) in asks.items():
        if size not in made:
            made[size] = call(stage, recipe, inputs, role=role, execution=grid.execution)
    return dict(sorted(made.items()))


def _made(grid: Grid, call: Caller, together: Together, asks: Sequence[Ask]) -> list[Reference]:
    """Make stages that need nothing of each other."""
    return together(
        [
            partial(call, stage, recipe, inputs, role=role, execution=grid.execution)
            for role, stage, recipe, inputs in asks
        ]
    )


def _cells(grid: Grid) -> list[Cell]:
    return ladders.cells(grid.ladder, [one.parameters for one in grid.given])


def _teachers(grid: Grid, text: Reference) -> dict[int, tuple[str, BaseModel]]:
    """Return parameters outside the embeddings → the stage that gives this teacher and its recipe, in their order."""
    found: dict[int, tuple[str, BaseModel]] = {}
    for shape, tokens in ladders.teachers(grid.ladder):
        one = Cell(student=shape, tokens=tokens, teacher=None, seed=grid.ladder.seeds[0])
        found[shape.parameters()] = ("pretrain", _ask(grid, text, one)[0])
    for one in grid.given:
        recipe = given_lm.Recipe(
            family=one.family, content=one.content, length=grid.training.length,
            held_out_rows=grid.training.held_out_rows, source=str(one.folder),
        )  # fmt: skip
        found[one.parameters] = ("given_lm", recipe)
    return dict(sorted(found.items()))


def _scoring(grid: Grid, teacher: int) -> lm_importance.Recipe:
    """Return how the units of a teacher are scored: whatever students begin as slices of it."""
    return lm_importance.Recipe(
        family=_family(grid, teacher), scales=lm_slices.SCALES, length=grid.training.length, rows=SCORED,
        axes=lm_slices.SLICED,
    )  # fmt: skip


def _family(grid: Grid, teacher: int | None) -> str:
    """Return the family of a teacher by its size."""
    return next((one.family for one in grid.given if one.parameters == teacher), SCRATCH)


def _law(grid: Grid, cells: Sequence[Cell], control: law_stage.Control | None, measured: int) -> law_stage.Recipe:
    """Return what the inputs of the stage ``law`` are."""
    theirs = {shape.parameters(): tokens for shape, tokens in ladders.teachers(grid.ladder)}
    known: dict[int, int | None] = {**theirs, **dict.fromkeys(one.parameters for one in grid.given)}
    return law_stage.Recipe(
        teachers=tuple(law_stage.Teacher(parameters=size, tokens=known[size]) for size in sorted(known)),
        cells=tuple(
            law_stage.Cell(
                student=cell.student.parameters(), tokens=cell.tokens, seed=cell.seed, teacher=cell.teacher,
                begin=cell.begin,
            )
            for cell in cells
        ),
        teacher_tokens=None if grid.given else grid.ladder.teacher_tokens, control=control,
        said=law_stage.Said(dataset=grid.dataset, command=grid.command, measured=measured),
    )  # fmt: skip


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


def _ask(
    grid: Grid, text: Reference, cell: Cell, teacher: Reference | None = None, scored: Reference | None = None
) -> tuple[pretrain.Recipe, dict[str, Input]]:
    """Return the recipe of one model of the grid and its inputs: with a teacher as its student, else of the text alone.

    Parameters
    ----------
    scored
        The teacher reordered, with its plan, where the student begins as a slice of it.
    """
    asked, seen = grid.training, rows_of(cell.tokens, grid.training.length, text)
    start, width = None, cell.student.hidden
    if scored is not None:
        left = {float(scale): one for scale, one in scored.summary["slices"].items()}
        sizes, whole = {s: one["parameters"] for s, one in left.items()}, cell.teacher or 0
        scale = lm_slices.nearest(sizes, cell.student.parameters(), whole=whole)
        start, width = ModelInput(reference=scored, scale=scale), left[scale]["hidden"]
    recipe = pretrain.Recipe(
        scratch=None if start else cell.student, length=asked.length, rows=seen,
        objective=grid.objective if teacher else ALONE, training=resolved(asked, cell, seen, width=width),
        seed=cell.seed, keep=asked.keep if teacher else None, held_out_rows=asked.held_out_rows,
        source=pretrain.Kept(rows=most_rows(grid, text) if teacher else 0), family=_family(grid, cell.teacher),
    )  # fmt: skip
    inputs: dict[str, Input] = {"text": text}
    inputs |= {"teacher": teacher} if teacher else {}
    inputs |= {"start": start} if start else {}
    return recipe, inputs


def resolved(asked: LmTraining, cell: Cell, rows: int, *, width: int | None = None) -> Training:
    """Return how a model is trained on its tokens, which may be more than so many rows hold.

    Parameters
    ----------
    width
        Of the model; null: of one from scratch.
    """
    per_epoch = -(-rows // asked.batch_size)
    return Training(
        steps=max(1, round(cell.tokens / (asked.length * asked.batch_size))),
        learning_rate=ladders.rate(asked.learning_rate, width or cell.student.hidden),
        batch_size=asked.batch_size, room=None, per_epoch=per_epoch, micro_batch=asked.batch_size,
        weight_decay=asked.weight_decay, warmup=asked.warmup, clip=asked.clip, dtype=asked.dtype, seed=cell.seed,
    )  # fmt: skip


def rows_of(tokens: int, length: int, text: Reference) -> int:
    """Return the rows of the training part that so many tokens take, at most all."""
    return min(math.ceil(tokens / length), math.ceil((text.summary["tokens"]["train"] - 1) / length))


def most_rows(grid: Grid, text: Reference) -> int:
    """Return the rows that the student with most of them sees."""
    most = max(cell.tokens for cell in _cells(grid))
    return rows_of(most, grid.training.length, text)
