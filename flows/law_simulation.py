"""Hold the laws' intervals against grids with a known answer: ``python -m flows.law_simulation run | table``."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

import pandas as pd
import pyarrow.parquet as pq

from capgap_core import locks, published_law
from capgap_core.laws import simulate
from capgap_core.progress import Silent
from flows import results

PUBLISHED = results.PROJECT / "artifacts" / "published" / "law_simulation.parquet"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the two commands; return its exit status."""
    given = _parser().parse_args(argv)
    if given.command == "table":
        table = published_law.coverage_table
        return results.show_table(PUBLISHED, results.README, check=given.check, table=table, name="law_simulation")
    return results.status_of(partial(make_all, given), PUBLISHED)


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m flows.law_simulation", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="simulate grids, fit them, and publish every interval")
    run.add_argument("--grids", type=_count, default=400, help="grids of each source (%(default)s)")
    run.add_argument("--sources", nargs="+", choices=simulate.SOURCES, default=list(simulate.SOURCES), metavar="SOURCE")
    table = commands.add_parser("table", help="write what is published into the README")
    table.add_argument("--check", action="store_true", help="write nothing; exit 1 where the README differs")
    return top


def _count(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return int(text)


def make_all(given: argparse.Namespace) -> None:
    """Simulate the grids of each source, and publish those of a source when all are there."""
    for source in given.sources:
        rows = []
        for grid in range(given.grids):
            rows += [asdict(held) for held in simulate.SOURCES[source](grid)]
            if (grid + 1) % 20 == 0:
                print(f"{source}: {grid + 1} of {given.grids} grids", file=sys.stderr, flush=True)
        if rows:
            publish(pd.DataFrame(rows))


def publish(frame: pd.DataFrame) -> None:
    """Put the intervals of a source into the published file in place of those that are there."""
    with locks.held(PUBLISHED.with_name(f".{PUBLISHED.name}.lock"), Silent()):
        before = pq.read_table(PUBLISHED).to_pandas() if PUBLISHED.is_file() else None
        results.write(PUBLISHED, published_law.joined(before, frame))


if __name__ == "__main__":
    sys.exit(main())
