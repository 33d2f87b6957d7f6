"""Make the published ablation of MixKD and the README's table of it: ``python -m flows.ablation run | table``."""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from capgap_core import locks, preflight, published_mixkd
from capgap_core.errors import InputFaults, fault
from capgap_core.preflight import Checked
from capgap_core.progress import Lines, Silent
from flows import results
from flows.places import default_root

PUBLISHED = results.PROJECT / "artifacts" / "published" / "mixkd.parquet"
HELD_OUT = {"train": "train_sample.jsonl.xz", "eval": "train_sample_heldout.jsonl.xz"}
SETS: dict[str, tuple[str, dict[str, str] | None]] = {"mnli-sample": ("mnli", HELD_OUT)}
"""Name → (folder, file of each part); another name is that of its folder, whose parts tell by their names."""
LENGTHS = ((200, 16, 15.0), (2000, 32, 5.0), (10**9, 32, 2.0))
"""(training rows up to, examples in a step, epochs): every arm of a share is trained alike."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the two commands; return its exit status."""
    given = _parser().parse_args(argv)
    if given.command == "table":
        table = published_mixkd.readme_table
        return results.show_table(PUBLISHED, results.README, check=given.check, table=table, name="ablation")
    return results.status_of(lambda: make_all(given), PUBLISHED)


def make_all(given: argparse.Namespace) -> None:
    """Make every cell that was asked for, set by set; what is wrong with any is said before the first begins."""
    cells = [prepared(name, fraction, given) for name in given.sets for fraction in given.fractions]
    for checked, cell in cells:
        make(checked, cell)


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m flows.ablation", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="make every training and publish the finished ones")
    run.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with a folder for each set")
    run.add_argument("--teacher", type=Path, required=True, metavar="DIR", help="folder of the pretrained teacher")
    run.add_argument("--sets", nargs="+", default=["sst-2", "mnli-sample", "mrpc"], metavar="SET")
    run.add_argument("--rows", type=_from(1), default=8000, help="most training rows of a set (%(default)s)")
    run.add_argument("--fractions", type=_share, nargs="+", default=[0.01, 0.1, 1.0], metavar="SHARE")
    run.add_argument("--teacher-rows", choices=("all", "same"), default="all")
    run.add_argument("--layers", type=_from(1), default=2, help="layers of the student (%(default)s)")
    run.add_argument("--trials", type=_from(1), default=8, help="settings that each arm is tried with (%(default)s)")
    more = "take the settings that trials on this share, with a teacher of all rows, have chosen; try none"
    run.add_argument("--settings-of", type=_share, default=None, metavar="SHARE", help=more)
    run.add_argument("--draws", type=_from(1), default=5, help="draws of the rows of a share (%(default)s)")
    run.add_argument("--seeds", type=_from(0), nargs="+", default=[1, 2], metavar="SEED")
    run.add_argument("--threads", type=_from(1), default=None)
    run.add_argument("--root", type=Path, default=default_root(), metavar="DIR", help="the store")
    table = commands.add_parser("table", help="write the published results into the README")
    table.add_argument("--check", action="store_true", help="write nothing; exit 1 where the README differs")
    return top


def _from(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return int(text)

    return number


def _share(text: str) -> float:
    if not 0.0 < float(text) <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is no share in (0, 1]")
    return float(text)


def asked_for(name: str, fraction: float, given: argparse.Namespace) -> dict[str, Any]:
    """Return the parameters of the runs of ``capgap/mixkd`` that a cell of the study is made of."""
    folder, splits = SETS.get(name, (name, None))
    rows = round(fraction * given.rows)
    batch, epochs = next((batch, epochs) for most, batch, epochs in LENGTHS if rows <= most)
    return {
        "dataset": str(given.data.absolute() / folder), "teacher": str(given.teacher.absolute()),
        "teacher_rows": given.teacher_rows,
        "data": {"train_rows": given.rows, "selection_rows": 1000, "calibration_rows": 8, "splits": splits},
        "student": {"layers": given.layers, "batch_size": batch, "epochs": epochs},
        "run": {"root": str(given.root.absolute()), "threads": given.threads, "verify": "sizes"},
    }  # fmt: skip


def prepared(name: str, fraction: float, given: argparse.Namespace) -> tuple[Checked, Any]:
    """Return the checked parameters of the runs that a cell is made of, and the cell."""
    checked = preflight.check(asked_for(name, fraction, given), flow="mixkd")
    study = importlib.import_module("capgap_core.ablation_study")  # needs torch
    chosen = None if given.settings_of is None else settings_of(given.settings_of, name, checked, study.FIRST)
    draws = range(1, given.draws + 1) if fraction < 1.0 else [1]
    cell = study.Cell(
        dataset=name, fraction=fraction, trials=given.trials, draws=draws, seeds=given.seeds,
        chosen=chosen,
        tuned_on=None if chosen is None else f"{round(given.settings_of * given.rows):,} rows",
    )  # fmt: skip
    return checked, cell


def settings_of(share: float, name: str, checked: Checked, settings: Sequence[str]) -> dict[str, Any]:
    """Return training → the setting that the published trials on a share of a data set chose.

    Raises
    ------
    InputFaults
        They have none for some training.
    """
    frame = pq.read_table(PUBLISHED).to_pandas() if PUBLISHED.is_file() else pd.DataFrame()
    chosen = published_mixkd.chosen(frame, name, share, settings)
    lacking = [training for training, _, _ in checked.parameters.trainings() if training not in chosen]
    if lacking:
        rule = f"no trials on that share of {name} are published of {', '.join(lacking)}"
        raise InputFaults([fault("--settings-of", share, rule, "Run that share first, or leave it out.")])
    return chosen


def make(checked: Checked, cell: Any) -> None:
    """Make the trainings of one share of one set, and publish each part of them as soon as it is whole."""
    study = importlib.import_module("capgap_core.ablation_study")
    chain = importlib.import_module("capgap_core.chain")
    call = chain.in_this_process(Lines(every=60.0))
    made: list[dict[str, Any]] = []
    title = f"{cell.dataset}, {cell.fraction:g} of the rows, teacher of {checked.parameters.teacher_rows}"
    for rows in study.follow(checked, call, cell):
        made += rows
        _say(f"{title}: {len(made)} trainings{publish(pd.DataFrame(made), PUBLISHED)}")
    publish(pd.DataFrame(made), PUBLISHED, whole=True)


def publish(frame: pd.DataFrame, file: Path, *, whole: bool = False) -> str:
    """Put rows into the published file in place of those of the same cells; several processes may do so at once.

    Rows that are not ``whole`` yet wait while more are published of their cells: nothing finished is lost to a study
    that begins again. Returns what to say of it.
    """
    with locks.held(file.with_name(f".{file.name}.lock"), Silent()):
        before = pq.read_table(file).to_pandas() if file.is_file() else None
        if not whole and not published_mixkd.covers(before, frame):
            return ", published when all are there"
        results.write(file, published_mixkd.joined(before, frame))
    return ", published"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
