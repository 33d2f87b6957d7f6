"""Slim a small published language model and distil it from itself: ``python -m flows.slimmed_stories run | table``."""

import argparse
import importlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from capgap_core import locks, published_lm
from capgap_core.progress import Lines, Silent
from capgap_core.recipes import Execution
from flows import results
from flows.places import default_root

PUBLISHED = results.PROJECT / "artifacts" / "published" / "slimmed_lm.parquet"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the two commands; return its exit status."""
    given = _parser().parse_args(argv)
    if given.command == "table":
        table = published_lm.arms_table
        return results.show_table(PUBLISHED, results.README, check=given.check, table=table, name="slimmed_stories")
    return results.status_of(lambda: make_all(given), PUBLISHED)


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m flows.slimmed_stories", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="make every arm of every seed and publish the finished ones")
    help_ = "folder with stories260K.bin and tok512.bin of llama2.c"
    run.add_argument("--weights", type=Path, required=True, metavar="DIR", help=help_)
    run.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="SEED")
    run.add_argument("--steps", type=int, default=None, help="optimizer steps of each arm that learns")
    run.add_argument("--rounds", type=int, default=None, help="rounds of documents that the model writes")
    run.add_argument("--threads", type=int, default=None)
    run.add_argument("--root", type=Path, default=default_root(), metavar="DIR", help="the store")
    table = commands.add_parser("table", help="write the published results into the README")
    table.add_argument("--check", action="store_true", help="write nothing; exit 1 where the README differs")
    return top


def make_all(given: argparse.Namespace) -> None:
    """Make the arms of each seed, and publish them when all of a seed are there."""
    slimmed_lm = importlib.import_module("capgap_core.slimmed_lm")  # needs torch
    chain = importlib.import_module("capgap_core.chain")
    asked = {name: getattr(given, name) for name in ("steps", "rounds") if getattr(given, name) is not None}
    study = slimmed_lm.Study(**asked)
    root = given.root.absolute()
    execution = Execution(root=str(root), threads=given.threads)
    folder = root / "cache" / "slimmed_stories"
    shutil.rmtree(folder, ignore_errors=True)
    slimmed_lm.convert(given.weights, folder / "model")
    for seed in given.seeds:
        _say(f"seed {seed}")
        path = folder / f"text-{seed}.jsonl"
        slimmed_lm.write_text(folder / "model", path, study, seed=seed, execution=execution)
        call = chain.in_this_process(Lines(every=30.0))
        publish(pd.DataFrame(slimmed_lm.follow(folder / "model", path, study, call, seed=seed, execution=execution)))


def publish(frame: pd.DataFrame) -> None:
    """Put the rows of a seed into the published file in place of those that are there."""
    with locks.held(PUBLISHED.with_name(f".{PUBLISHED.name}.lock"), Silent()):
        before = pq.read_table(PUBLISHED).to_pandas() if PUBLISHED.is_file() else None
        results.write(PUBLISHED, published_lm.joined(before, frame))
    _say(f"{PUBLISHED}: seed {frame['seed'].iloc[0]} is published")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
