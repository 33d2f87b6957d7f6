"""Measure which learning rate is best for which width: ``python -m flows.width_sweep run | table``."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from capgap_core import preflight
from capgap_core.progress import Lines
from flows import results
from flows.places import default_root

PUBLISHED = results.PROJECT / "artifacts" / "published" / "width_sweep.parquet"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the two commands; return its exit status."""
    given = _parser().parse_args(argv)
    if given.command == "table":
        return results.show_table(PUBLISHED, results.README, check=given.check, table=_table, name="width_sweep")
    return results.status_of(lambda: make(given), PUBLISHED)


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m flows.width_sweep", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="train every width at every rate, and publish the losses")
    run.add_argument("--dataset", default="pysource", metavar="TEXT")
    run.add_argument("--threads", type=int, default=None)
    run.add_argument("--root", type=Path, default=default_root(), metavar="DIR", help="the store")
    table = commands.add_parser("table", help="write what is published into the README")
    table.add_argument("--check", action="store_true", help="write nothing; exit 1 where the README differs")
    return top


def make(given: argparse.Namespace) -> None:
    """Train every model, and publish the rows."""
    asked = {"dataset": given.dataset, "run": {"root": str(given.root.absolute()), "threads": given.threads}}
    checked = preflight.check(asked, flow="law")
    call = importlib.import_module("capgap_core.chain").in_this_process(Lines(every=60.0))
    results.write(PUBLISHED, pd.DataFrame(list(_sweep().follow(checked, call))))


def _table(frame: pd.DataFrame) -> str:
    return _sweep().readme_table(frame)


def _sweep() -> Any:
    return importlib.import_module("capgap_core.width_sweep")  # needs torch


if __name__ == "__main__":
    sys.exit(main())
