"""Hold the law of models against text of a known entropy: ``python -m flows.law_control run | fit | table``."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from capgap_core import published_control
from capgap_core.errors import InputFaults, fault
from capgap_core.progress import Lines
from capgap_core.recipes import Execution
from capgap_core.recipes_law import LmTraining
from flows import results
from flows.places import default_root

PUBLISHED = results.PROJECT / "artifacts" / "published" / "law_control.parquet"
SIZES, BUDGETS = (3e3, 1.3e4, 3.3e4, 9.8e4), (300_000, 1_000_000, 3_000_000)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the commands; return its exit status."""
    given = _parser().parse_args(argv)
    if given.command == "table":
        table = published_control.control_table
        return results.show_table(PUBLISHED, results.README, check=given.check, table=table, name="law_control")
    return results.status_of(fit_again if given.command == "fit" else partial(make_all, given), PUBLISHED)


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m flows.law_control", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="train every model, fit the law, and publish both")
    run.add_argument("--sizes", type=float, nargs="+", default=SIZES, metavar="SIZE", help="parameters")
    run.add_argument("--budgets", type=int, nargs="+", default=BUDGETS, metavar="TOKENS")
    run.add_argument("--seeds", type=int, nargs="+", default=[1], metavar="SEED")
    run.add_argument("--threads", type=int, default=None)
    run.add_argument("--root", type=Path, default=default_root(), metavar="DIR", help="the store")
    commands.add_parser("fit", help="fit the law to the published models again, and publish what it finds")
    table = commands.add_parser("table", help="write what is published into the README")
    table.add_argument("--check", action="store_true", help="write nothing; exit 1 where the README differs")
    return top


def make_all(given: argparse.Namespace) -> None:
    """Train every model that is not in the store yet, and publish all of them in place of what is published."""
    control = importlib.import_module("capgap_core.law_control")  # needs torch
    execution = Execution(root=str(given.root.absolute()), threads=given.threads)
    made = []
    rows = control.rows(
        given.sizes, given.budgets, given.seeds, training=LmTraining(), execution=execution, progress=Lines(every=30.0)
    )
    for row in rows:
        said = f"{row['parameters']:,} parameters on {row['tokens']:,} tokens: {row['nats']:.4f} nats"
        print(f"{said}, the source {row['source_nats']:.4f}", file=sys.stderr, flush=True)
        made.append(row)
    results.write(PUBLISHED, published_control.fitted(pd.DataFrame(made)))


def fit_again() -> None:
    """Publish the models that are published with what their law finds now."""
    if not PUBLISHED.is_file():
        raise InputFaults([fault("fit", str(PUBLISHED), "no model is published yet", "Run run first.")])
    results.write(PUBLISHED, published_control.fitted(pq.read_table(PUBLISHED).to_pandas()))


if __name__ == "__main__":
    sys.exit(main())
