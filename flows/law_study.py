"""Make the published grid of a law: ``python -m flows.law_study run | name | test | find | table``.

``run`` trains the grid, ``name`` fits every law to it and keeps what each names and predicts for students that nobody
has trained, ``test`` trains these, ``find`` fits the laws to the published rows again and trains nothing, and ``table``
writes what came of it into the README. What ``name`` has written is
committed before ``test`` is run.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from capgap_core import preflight, published_grid
from capgap_core.errors import InputFaults, fault
from capgap_core.progress import Lines
from flows import results
from flows.places import default_root

FOLDER = results.PROJECT / "artifacts" / "published"
MODELS, NAMED, FINDINGS = (FOLDER / f"{name}.parquet" for name in ("law", "law_named", "law_findings"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the commands; return its exit status."""
    given = _parser().parse_args(argv)
    if given.command == "table":
        return results.show_table(MODELS, results.README, check=given.check, table=_table, name="law_study")
    if given.command == "name":
        return results.status_of(name, NAMED)
    if given.command == "find":
        return results.status_of(find, FINDINGS)
    return results.status_of(lambda: make(given), MODELS)


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m flows.law_study", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command, words in (("run", "train the grid"), ("test", "train the students that are held out")):
        one = commands.add_parser(command, help=f"{words}, and publish its rows")
        one.add_argument("--data", required=True, metavar="TEXT", help="a file or a folder of text")
        one.add_argument("--threads", type=int, default=None)
        one.add_argument("--root", type=Path, default=default_root(), metavar="DIR", help="the store")
    commands.add_parser("name", help="keep what every law names for the students that are held out")
    commands.add_parser("find", help="fit the laws to the published rows again, and publish what they say")
    table = commands.add_parser("table", help="write what is published into the README")
    table.add_argument("--check", action="store_true", help="write nothing; exit 1 where the README differs")
    return top


def make(given: argparse.Namespace) -> None:
    """Train a part of the study, and publish its rows and what all rows say."""
    study = importlib.import_module("capgap_core.law_study")  # needs torch
    kind, students = (study.GRID, study.STUDENTS) if given.command == "run" else (study.TEST, study.HELD_OUT)
    if kind == study.TEST and not NAMED.is_file():
        rule, remedy = "no law has named a teacher yet", "Run name, and commit what it writes."
        raise InputFaults([fault("test", str(NAMED), rule, remedy)])
    dataset, root = str(Path(given.data).absolute()), str(given.root.absolute())
    asked = study.asked_for(dataset, root, students=students, threads=given.threads)
    checked = preflight.check(asked, flow="law")
    rows = study.made(checked, importlib.import_module("capgap_core.chain").in_this_process(Lines(every=60.0)), kind)
    publish(study, pd.DataFrame(rows), kind)


def publish(study: Any, new: pd.DataFrame, kind: str) -> None:
    """Put the rows of a kind in place of those that are there, and write what all say."""
    before = _read(MODELS)
    others = [] if before is None else [row for row in before.to_dict("records") if row["kind"] != kind]
    frame = pd.DataFrame([*others, *new.to_dict("records")])
    order = ["kind", "role", "parameters", "tokens", "teacher", "seed"]
    frame = frame.sort_values(order, ignore_index=True, na_position="first")
    results.write(MODELS, frame)
    results.write(FINDINGS, study.findings(frame, _read(NAMED)))


def name() -> None:
    """Write what every law of the published grid names and predicts for the students that are held out."""
    results.write(NAMED, importlib.import_module("capgap_core.law_study").predictions(_grid("name")))


def find() -> None:
    """Write what the published rows say."""
    findings = importlib.import_module("capgap_core.law_study").findings
    results.write(FINDINGS, findings(_grid("find"), _read(NAMED)))


def _grid(command: str) -> pd.DataFrame:
    frame = _read(MODELS)
    if frame is None:
        raise InputFaults([fault(command, str(MODELS), "there is no grid yet", "Run run first.")])
    return frame


def _table(frame: pd.DataFrame) -> str:
    findings = _read(FINDINGS)
    assert findings is not None, f"{FINDINGS} is written with {MODELS}"
    return published_grid.readme_table(frame, findings)


def _read(path: Path) -> pd.DataFrame | None:
    return pq.read_table(path).to_pandas() if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
