"""What a run will cost, before it: every stage is made for real, on a part of the data and for a few steps, and timed.

The data stage is made whole, in the run's own store: the run needs it anyway, and every length and every number of
steps comes from it. The others are made in a folder that is thrown away. What is counted there is scaled: steps to all
steps, the teacher's outputs to all tokens, evaluations to all rows; what is neither stays as it is.
"""

import contextlib
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pydantic import BaseModel

from capgap_core.build import build
from capgap_core.errors import InputFaults
from capgap_core.methods import follow_of
from capgap_core.preflight import Checked, CheckedLaw, device_faults
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import Input, Reference

ROWS = {"train": 3000, "calibration": 128, "selection": 256, "evaluation": 256}
"""Rows of each part that are looked at."""
COUNTED = {"importance": "calibration", "candidates": "selection"}
"""Stage → the part whose rows it goes through once; an evaluation names its own."""
DATA, REPORTS = ("data", "part"), ("report", "ablation", "law", "assistants")
LABELLED = "pseudo_labels"
"""Gives rows that later stages take, as ``DATA`` do, and is made whole: a teacher's one look at each text."""
STEPS = {"teacher": 18, "sandwich": 16, "distil": 40, "pretrain": 20}
"""Stage → most steps of its training that are taken."""
LM_ROWS, LM_HELD_OUT = 512, 2000
"""Rows that a language model is tried on, and those of each held-out part that it is measured on."""
FIRST = 6
"""Steps of a training that are passed over: in them kernels are compiled and memory is taken."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one stage will take."""

    stage: str
    role: str
    seconds: float
    steps: int
    step_seconds: float
    """Of one optimizer step; 0 where nothing trains."""
    outputs_seconds: float
    """To ask the teacher for all examples, where its outputs are kept; in ``seconds``."""


@dataclass(kw_only=True)
class Preview:
    """What a run will take on this machine, if nothing of it is finished yet."""

    estimates: list[Estimate] = field(default_factory=list)
    outputs_bytes: int = 0
    """On disk, of all teachers whose outputs are kept."""
    live_step_seconds: float | None = None
    """Of a step of ``direct`` whose teacher is asked live; null where no outputs are kept, or without controls."""
    steps_per_epoch: int = 0

    @property
    def seconds(self) -> float:
        """Return what all stages take together."""
        return sum(estimate.seconds for estimate in self.estimates)

    @property
    def outputs_seconds(self) -> float:
        """Return what asking the teachers for the outputs that are kept takes."""
        return sum(estimate.outputs_seconds for estimate in self.estimates)

    @property
    def break_even(self) -> float | None:
        """Return after how many epochs the kept outputs of a teacher have paid for themselves."""
        kept = [estimate for estimate in self.estimates if estimate.role == "direct"]
        filled = max((estimate.outputs_seconds for estimate in self.estimates), default=0.0)
        if self.live_step_seconds is None or not kept or not filled:
            return None
        saved = (self.live_step_seconds - kept[0].step_seconds) * self.steps_per_epoch
        return filled / saved if saved > 0 else None


class _Over(Exception):
    """Ends the chain before the report, which would speak of what was thrown away."""


class _Watch:
    """Notes when steps are done, and when teachers' outputs are."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.outputs: list[float] = []

    def message(self, text: str) -> None:
        """Pass nothing on: what is made here is thrown away."""

    def update(self, done: int, total: int, note: str = "") -> None:
        """Note the time."""
        (self.outputs if "outputs" in note else self.steps).append(time.monotonic())


class _Trial:
    """Makes stages small, and says what they would take whole."""

    def __init__(self, checked: Checked | CheckedLaw, root: Path, progress: Progress) -> None:
        self._root, self._progress = root, progress
        self._real: Execution = checked.parameters.run
        self._trial = self._real.model_copy(update={"root": str(root), "checkpoint_seconds": 86400.0})
        self._parts: dict[str, tuple[Reference, Reference]] = {}
        """Where data lie → they whole, and with few rows."""
        self._seen: dict[str, tuple[float, float, float]] = {}
        self.preview = Preview()

    def __call__(
        self, stage: str, recipe: BaseModel, inputs: Mapping[str, Input], *, role: str, execution: Execution
    ) -> Reference:
        """Return a stage that was made small, or the data whole."""
        self._progress.message(f"trying {stage} {role}".rstrip())
        began = time.monotonic()
        if stage == "text":
            return self._whole(stage, role, recipe, began)
        if stage == "pretrain":
            return self._language_model(recipe, inputs, role)
        if stage in DATA or stage == LABELLED:
            where = self._real if stage in DATA else self._trial  # labels of a teacher that is thrown away, too
            whole = build(stage, recipe, inputs, execution=where, progress=self._progress)
            self._note(stage, role, whole.seconds if whole.reused else time.monotonic() - began)
            self._parts[whole.path] = (whole, _smaller(whole, self._root / f"part-{len(self._parts)}"))
            return whole
        if stage in REPORTS:
            raise _Over
        given = {name: self._small(item) for name, item in inputs.items()}
        training = getattr(recipe, "training", None)
        if training is None:
            made = build(stage, recipe, given, execution=self._trial, progress=_Watch())
            took, part = time.monotonic() - began, COUNTED.get(stage, getattr(recipe, "split", None))
            self._note(stage, role, took * self._share(inputs, part) if part else took)
            return made
        self.preview.steps_per_epoch = training.per_epoch
        share = self._share(inputs, "train")
        made = self._trained(stage, recipe, given, role, share)
        if role == "direct" and getattr(recipe, "keep", None) is not None:
            live = recipe.model_copy(update={"keep": None})
            self.preview.live_step_seconds, *_ = self._watched(stage, live, given, share)
        return made

    def _whole(self, stage: str, role: str, recipe: BaseModel, began: float) -> Reference:
        whole = build(stage, recipe, {}, execution=self._real, progress=self._progress)
        self._note(stage, role, whole.seconds if whole.reused else time.monotonic() - began)
        return whole

    def _language_model(self, recipe: Any, inputs: Mapping[str, Input], role: str) -> Reference:
        """Return a model tried on few rows; one that differs in its seed or its tokens alone takes what it took."""
        seen = min(recipe.rows, LM_ROWS)
        measured = min(recipe.held_out_rows or LM_HELD_OUT, LM_HELD_OUT)
        few = {"per_epoch": -(-seen // recipe.training.batch_size), "seed": 0}
        small = recipe.model_copy(
            update={
                "rows": seen, "seed": 0, "source": type(recipe.source)(rows=seen), "held_out_rows": measured,
                "training": recipe.training.model_copy(update=few),
            }
        )  # fmt: skip
        step, outputs, rest, made = self._watched("pretrain", small, inputs, 1.0)
        outputs *= max(recipe.rows, recipe.source.rows) / seen
        steps = recipe.training.steps
        self._note(
            "pretrain", role, rest + outputs + steps * step, steps=steps, step_seconds=step, outputs_seconds=outputs
        )
        return made

    def _trained(self, stage: str, recipe: Any, given: Mapping[str, Input], role: str, share: float) -> Reference:
        step, outputs, rest, made = self._watched(stage, recipe, given, share)
        outputs *= share
        steps = recipe.training.steps
        self._note(stage, role, rest + outputs + steps * step, steps=steps, step_seconds=step, outputs_seconds=outputs)
        return made

    def _watched(
        self, stage: str, recipe: Any, given: Mapping[str, Input], share: float
    ) -> tuple[float, float, float, Reference]:
        """Return the seconds of a step, of the teacher's outputs on the part, and of all else; and the stage."""
        steps = min(recipe.training.steps, STEPS[stage])
        short = recipe.model_copy(update={"training": recipe.training.model_copy(update={"steps": steps})})
        before, watch, began = _bytes(self._root), _Watch(), time.monotonic()
        made = build(stage, short, given, execution=self._trial, progress=watch)
        whole = time.monotonic() - began
        times = watch.steps
        if not times:  # the same in its first steps as one that was tried before: a control of more steps
            step, _, rest = self._seen[made.identity]
            return step, 0.0, rest, made
        warm = min(FIRST, (len(times) - 1) // 2)
        step = (times[-1] - times[warm]) / (len(times) - 1 - warm) if len(times) > 1 else whole
        outputs = watch.outputs[-1] - watch.outputs[0] if watch.outputs else 0.0
        self.preview.outputs_bytes += round((_bytes(self._root) - before) * share)
        rest = max(0.0, whole - outputs - (times[-1] - times[0] + step))
        self._seen[made.identity] = (step, outputs, rest)
        return step, outputs, rest, made

    def _small(self, item: Input) -> Input:
        return self._parts[item.path][1] if isinstance(item, Reference) and item.path in self._parts else item

    def _share(self, inputs: Mapping[str, Input], part: str) -> float:
        """Return how many times as many tokens a part of a stage's data has as were tried."""
        data = inputs["data"]
        assert isinstance(data, Reference)
        whole, small = self._parts[data.path]
        return whole.summary["tokens"][part] / max(1, small.summary["tokens"][part])

    def _note(self, stage: str, role: str, seconds: float, **others: Any) -> None:
        held = {"steps": 0, "step_seconds": 0.0, "outputs_seconds": 0.0, **others}
        self.preview.estimates.append(Estimate(stage=stage, role=role, seconds=seconds, **held))


def preview(checked: Checked | CheckedLaw, progress: Progress) -> Preview:
    """Return what a run with checked parameters will take; makes its data stage, and nothing else that stays."""
    p = checked.parameters
    root = Path(p.run.root or ".")
    # One after the other, here: stages that share the machine would take longer, each.
    here = p.run.model_copy(update={"ray": None})
    if faults := device_faults(here):  # of a cluster it was not asked before
        raise InputFaults(faults)
    checked = replace(checked, parameters=p.model_copy(update={"run": here}))
    with tempfile.TemporaryDirectory(dir=root, prefix=".preview-") as place:
        trial = _Trial(checked, Path(place), progress)
        with contextlib.suppress(_Over):
            follow_of(checked.flow)(checked, trial)
        return trial.preview


def _smaller(data: Reference, folder: Path) -> Reference:
    """Return a data stage with a few rows of each part, spread over all lengths."""
    rows, counts = {}, {}
    (folder / "model").parent.mkdir(parents=True)
    (folder / "model").symlink_to(data.folder / "model")
    for name, most in ROWS.items():
        table = pq.read_table(data.table(name))
        taken = table.take(list(range(0, len(table), -(-len(table) // most))))
        pq.write_table(taken, folder / f"{name}.parquet")
        rows[name] = len(taken)
        counts[name] = len(taken["input_ids"].combine_chunks().flatten())
    summary = {**data.summary, "rows": rows, "tokens": counts}
    return data.model_copy(update={"path": str(folder), "summary": summary, "digest": f"{data.digest}-part"})


def _bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in (root / "targets").rglob("*") if path.is_file())
