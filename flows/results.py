"""Make the published results of MiniDisc and the README's table of them: ``python -m flows.results run | table``."""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from capgap_core import published
from capgap_core.errors import InputFaults
from capgap_core.progress import Lines
from capgap_core.recipes import DataRecipe, Execution, Minidisc
from flows import runs, servers
from flows.places import default_root

PROJECT = Path(__file__).resolve().parents[1]
PUBLISHED = PROJECT / "artifacts" / "published" / "minidisc.parquet"
README = PROJECT / "README.md"
SETS: dict[str, tuple[str, int | None]] = {"sst-2": ("sst-2", 10_000), "sst-2-all": ("sst-2", None)}
"""Name → (folder, training rows drawn once); another name is that of its folder, with all its rows."""

Table = Callable[[pd.DataFrame], str]
"""Composes a table of published rows."""
Make = Callable[[Minidisc], Any]
"""Makes a run, and returns its outcome (``capgap_core.outcome.Outcome``)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the two commands; return its exit status."""
    given = _parser().parse_args(argv)
    if given.command == "table":
        return show_table(PUBLISHED, README, check=given.check)
    asked = asked_for(given.data, given.teacher, given.root, sets=given.sets, seeds=given.seeds)
    return status_of(lambda: make_all(asked, PUBLISHED, _made), PUBLISHED)


def status_of(make: Callable[[], None], file: Path) -> int:
    """Make results, which are published in ``file`` as they are finished; return the exit status."""
    # torch reads it when it is loaded, which is not yet.
    os.environ.update(servers.PATIENT_THREADS)
    try:
        with servers.interruptible():
            make()
    except InputFaults as faults:
        _say(str(faults))
        return 2
    except servers.Interrupted as interrupted:
        _say(f"interrupted; what has finished is in {file}, and the same command goes on")
        return 128 + interrupted.number
    return 0


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m flows.results", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="make every run and publish the finished ones")
    run.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with a folder for each set")
    run.add_argument("--teacher", type=Path, required=True, metavar="DIR", help="folder of the pretrained teacher")
    run.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], metavar="SEED")
    run.add_argument("--sets", nargs="+", default=["sst-2", "mrpc"], metavar="SET")
    run.add_argument("--root", type=Path, default=default_root(), metavar="DIR", help="the store")
    table = commands.add_parser("table", help="write the published results into the README")
    table.add_argument("--check", action="store_true", help="write nothing; exit 1 where the README differs")
    return top


def asked_for(
    data: Path, teacher: Path, root: Path, *, sets: Sequence[str], seeds: Sequence[int]
) -> list[tuple[str, Minidisc]]:
    """Return (name of the set, parameters) of every run: seed by seed, so that a part of them is a study already."""
    return [
        (
            name,
            Minidisc(
                dataset=str(data.absolute() / folder),
                teacher=str(teacher.absolute()),
                seed=seed,
                data=DataRecipe(train_rows=rows),
                run=Execution(root=str(root.absolute())),
            ),
        )
        for seed in seeds
        for name in sets
        for folder, rows in [SETS.get(name, (name, None))]
    ]


def make_all(asked: Sequence[tuple[str, Minidisc]], file: Path, make: Make) -> None:
    """Make every run, and after each write all that have finished to ``file``, so that nothing is ever lost.

    Rows of sets that are not asked for stay as they are, so that each set can be made on its own. Stages that are in
    the store are reused. A run that an earlier call finished counts before it is its turn, where it was made from the
    same parameters with the same code as the run that has just finished.
    """
    done: dict[Path, dict[str, Any]] = {}
    others = _rows_of_others(file, {name for name, _ in asked})
    for name, p in asked:
        _say(f"{name}, seed {p.seed}")
        result = make_one(name, p, make)
        done[_folder(name, p)] = result
        earlier = {_folder(*other): _earlier(_folder(*other), other[1], like=result) for other in asked}
        held = [found for found in ({**earlier, **done}).values() if found is not None]
        write(file, pd.concat([*others, published.rows([run_of(result) for result in held])], ignore_index=True))
        _say(f"{file}: {len(held)} of {len(asked)} runs")


def _rows_of_others(file: Path, names: set[str]) -> list[pd.DataFrame]:
    """Return what is published of sets with other names: one frame, or none."""
    if not file.is_file():
        return []
    frame = pq.read_table(file).to_pandas().astype(published.COUNTS)
    kept = frame[~frame["dataset"].isin(names)]
    return [kept] if len(kept) else []


def make_one(name: str, p: Minidisc, make: Make) -> dict[str, Any]:
    """Make a run in a folder of its own below the store; return its result, with what ``published.Run`` asks for."""
    path = _folder(name, p)
    folder = runs.RunFolder("minidisc", path.parents[1], path.name, None)
    folder.begin(p.model_dump(mode="json"))
    try:
        outcome = make(p)
    except BaseException as error:
        folder.fail(error)
        raise
    rows = next(made for _, made in outcome.stages if made.stage == "data").summary["rows"]
    facts = {"dataset": name, "seed": p.seed, "n_train": rows["train"], "target_scale": p.student.scale}
    report = outcome.report.folder.joinpath("report.md").read_text(encoding="utf8")
    return folder.finish({**outcome.result, "study": {**facts, "device": _device(p)}}, report)


def run_of(result: Mapping[str, Any]) -> published.Run:
    """Return the result of ``make_one`` as the study takes it."""
    return published.Run(result=result, **result["study"])


def write(path: Path, frame: pd.DataFrame) -> None:
    """Write the published rows so that a reader sees the old file or the new, never half."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    pq.write_table(table.replace_schema_metadata({"schema": "capgap.published/1"}), temporary, compression="zstd")
    os.replace(temporary, path)


def show_table(file: Path, readme: Path, *, check: bool, table: Table | None = None, name: str = "results") -> int:
    """Write the table of the published rows into the README, or only say whether it is there; return the status.

    Parameters
    ----------
    table
        Of the rows; without one that of the runs of MiniDisc.
    name
        Of the table's markers, and of the module that makes the rows.
    """
    if not file.is_file():
        _say(f"{file} is not there: python -m flows.{name} run makes it")
        return 1
    before = readme.read_text(encoding="utf8")
    after = with_table(before, (table or published.readme_table)(pq.read_table(file).to_pandas()), name=name)
    if before == after:
        return 0
    if check:
        _say(f"{readme} does not show what {file} holds: python -m flows.{name} table")
        return 1
    readme.write_text(after, encoding="utf8")
    return 0


def with_table(text: str, table: str, *, name: str = "results") -> str:
    """Return a text with the table between the two markers of this name.

    Raises
    ------
    ValueError
        The text does not have each marker once, in their order.
    """
    begin, end = (f"<!-- {name}:{word} -->" for word in ("begin", "end"))
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(end) < text.index(begin):
        raise ValueError(f"needs one {begin} and after it one {end}")
    return f"{text.partition(begin)[0]}{begin}\n{table}\n{end}{text.partition(end)[2]}"


def _folder(name: str, p: Minidisc) -> Path:
    return runs.folder_of(Path(p.run.root or "."), f"results-{name}-seed{p.seed}")


def _earlier(folder: Path, p: Minidisc, *, like: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the result of a run that an earlier call finished, where it may stand beside ``like``."""
    if not (folder / "result.json").is_file():
        return None
    asked = json.loads((folder / "params.json").read_text(encoding="utf8"))
    result = json.loads((folder / "result.json").read_text(encoding="utf8"))
    if result["status"] != "completed" or asked != p.model_dump(mode="json") or _codes(result) != _codes(like):
        return None
    return result


def _codes(result: Mapping[str, Any]) -> dict[str, str]:
    return {stage["stage"]: stage["code"] for stage in result["stages"]}


def _made(p: Minidisc) -> Any:
    chain = importlib.import_module("capgap_core.chain")  # needs torch
    return chain.minidisc(
        dataset=p.dataset, teacher=p.teacher, seed=p.seed, data=p.data, run=p.run, progress=Lines(every=30.0)
    )


def _device(p: Minidisc) -> str:
    return str(importlib.import_module("capgap_core.machine").device_of(p.run))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
