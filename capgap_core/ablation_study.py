"""MixKD's arms over draws of the training rows and over seeds, each arm tuned alike on the selection part.

A cell is one data set, one share of its rows and one kind of teacher. In it every training, an arm for equal epochs or
for equal tokens, is first tried with the same number of settings, on a draw of the rows that no result comes from (with
a seed that none comes from, where all rows are taken); the setting with the best metric on the selection part is used
in all draws and seeds. Only then is anything measured on the part that nobody tuned on. Where that costs too much, a
cell takes the settings of another, such as a smaller share of the rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from capgap_core import tables
from capgap_core.method import Caller
from capgap_core.mixkd import MixKD
from capgap_core.preflight import Checked
from capgap_core.recipes_mixkd import Arm, Mixkd
from capgap_core.records import ModelInput, Reference
from capgap_core.stages.ablation import row_of

TUNED_ON = 0
"""The draw of the rows that arms are tuned on; results come from the draws after it."""
RANGES = {
    "learning_rate": (5e-5, 8e-4), "prediction": (0.1, 10.0), "labels": (0.1, 10.0), "teacher": (0.1, 10.0),
    "alpha": (0.1, 2.0),
}  # fmt: skip
"""Between which settings are tried, evenly in their logarithm."""
FIRST = {"learning_rate": 2e-4, "prediction": 1.0, "labels": 1.0, "teacher": 1.0, "alpha": 0.4}
"""The setting that is tried first: what capgap does unasked."""

Setting = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is compared: one data set, one share of its rows, one kind of teacher."""

    dataset: str
    """As it is published, which does not say where it lies."""
    fraction: float
    trials: int
    draws: Sequence[int]
    seeds: Sequence[int]
    """Shares are tuned with the first, whose teacher is there, all rows with one that is not among them."""
    chosen: Mapping[str, "Setting"] | None = None
    """Training → its setting, where that was found in another cell; nothing is tried then."""
    tuned_on: str | None = None
    """What these were found on, in words; null where they are this cell's own."""


def settings(trials: int) -> list[Setting]:
    """Return the settings that every arm is tried with, of which it uses what it knows.

    Drawn with a fixed seed after ``FIRST``, so that all arms are tried at the same learning rates.
    """
    drawn = np.random.default_rng(0).random((trials - 1, len(RANGES)))
    found = [
        {name: low * (high / low) ** float(u) for u, (name, (low, high)) in zip(point, RANGES.items(), strict=True)}
        for point in drawn
    ]
    return [FIRST, *found]


def with_setting(p: Mixkd, setting: Setting) -> Mixkd:
    """Return the parameters with a setting in them."""
    student = {name: setting[name] for name in ("learning_rate", "prediction")}
    mixup = {name: setting[name] for name in ("labels", "teacher", "alpha")}
    return p.model_copy(
        update={"student": p.student.model_copy(update=student), "mixup": p.mixup.model_copy(update=mixup)}
    )


def follow(checked: Checked, call: Caller, cell: Cell) -> Iterator[list[dict[str, Any]]]:
    """Tune every arm, then train and measure it on every draw and with every seed.

    Yields
    ------
    Published rows, as they are known: those of each arm's trials, then those of each draw and seed.
    """
    chosen = dict(cell.chosen or {})
    for name, arm, times in checked.parameters.trainings() if cell.chosen is None else ():
        rows = _trials(checked, call, cell, name, arm, times)
        chosen[name] = next({key: row[key] for key in FIRST} for row in rows if row["chosen"])
        yield rows
    for draw in cell.draws:
        for seed in cell.seeds:
            p = checked.parameters.model_copy(update={"draw": draw, "seed": seed})
            yield [
                _measured(_at(checked, p, chosen[name]), call, cell, name, arm, times, chosen[name])
                for name, arm, times in p.trainings()
            ]


def _at(checked: Checked, p: Mixkd, setting: Setting) -> Checked:
    return replace(checked, parameters=with_setting(p, setting))


def _trials(checked: Checked, call: Caller, cell: Cell, name: str, arm: Arm, times: int) -> list[dict[str, Any]]:
    """Return a row for each setting that a training was tried with; the first of the best is chosen."""
    seed = cell.seeds[0] if cell.fraction < 1.0 else max(cell.seeds) + 1
    p = checked.parameters.model_copy(update={"draw": TUNED_ON, "seed": seed})
    rows = []
    for number, setting in enumerate(settings(cell.trials)):
        m = MixKD(_at(checked, p, setting), call)
        whole = m.data()
        begun = m.begun(whole, cell.fraction)
        student = m.arm(name, arm, begun, times=times)
        measured = m.evaluate(f"{name} trial", whole, ModelInput(reference=student), split="selection")
        scores = tables.read(measured.table("metrics"))
        score = next(row for row in scores if row["metric"] == whole.summary["metric"])
        rows.append(
            {
                **_shared(cell, m, student, setting), "role": "trial", "training": name, "arm": arm,
                "matched": m.facts[0].matched, "trial": number, "split": "selection", "metric": score["metric"],
                "value": score["value"], "stderr": score["stderr"], "n": score["n"], "code": measured.code,
                "identity": measured.identity,
            }
        )  # fmt: skip
    best = max(rows, key=lambda row: row["value"])
    return [{**row, "chosen": row is best} for row in rows]


def _measured(
    checked: Checked, call: Caller, cell: Cell, name: str, arm: Arm, times: int, setting: Setting
) -> dict[str, Any]:
    """Return the row of one student on the part that nobody tuned on."""
    m = MixKD(checked, call)
    whole = m.data()
    begun = m.begun(whole, cell.fraction)
    student = m.arm(name, arm, begun, times=times)
    made = {
        "data": whole, f"student_{name}": student,
        f"evaluate_{name}": m.evaluate(name, whole, ModelInput(reference=student)),
        f"seen_{name}": m.evaluate(f"{name} seen", begun.data, ModelInput(reference=student), split="train"),
        f"evaluate_{begun.role}": m.evaluate(begun.role, whole, ModelInput(reference=begun.teacher)),
    }  # fmt: skip
    (fact,) = m.facts
    own, found = made[f"evaluate_{name}"], row_of(fact, (fact,), made)
    return {
        **_shared(cell, m, student, setting), "role": "student", "training": name, "trial": None, "chosen": True,
        "split": whole.summary["eval_name"], "code": own.code, "identity": own.identity,
        "constant": whole.summary["constant"]["evaluation"],
        **{key: value for key, value in found.items() if key not in ("role", "n_train")},
    }  # fmt: skip


def _shared(cell: Cell, m: MixKD, student: Reference, setting: Setting) -> dict[str, Any]:
    (fact,) = m.facts
    return {
        "flow": "mixkd", "dataset": cell.dataset, "fraction": cell.fraction, "teacher_rows": m.p.teacher_rows,
        "n_train": fact.rows, "draw": m.p.draw, "seed": m.p.seed, "steps": fact.steps, "seconds": student.seconds,
        "device": str(m.device), "tuned_on": cell.tuned_on, **setting,
    }  # fmt: skip
