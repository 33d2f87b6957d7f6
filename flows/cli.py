"""The command line: ``capgap up``, ``run``, ``preview``, ``recommend``, ``show``, ``doctor`` and ``gc``.

Only a preview needs torch here, and Prefect is imported only once the input is known to be good.
"""

import argparse
import atexit
import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from capgap_core.errors import CapgapError, InputFaults
from capgap_core.methods import RECIPES
from capgap_core.progress import Lines
from flows import doctor, params, present, runs, servers, show, up, upkeep
from flows.places import default_root, rooted
from flows.registry import FLOWS, flow_of

COMPLETED, FAILED, BAD_INPUT = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    given = parser().parse_args(argv)
    try:
        with servers.interruptible():
            return int(given.do(given))
    except servers.Interrupted as interrupted:
        say(f"interrupted by {signal.Signals(interrupted.number).name}")
        return 128 + interrupted.number
    except (servers.Unreachable, servers.Ended) as error:
        say(str(error))
        return _print_failure(given, runs.failure(given.name, error), FAILED) if given.do is _run else FAILED


def parser() -> argparse.ArgumentParser:
    """Return what understands the command line."""
    top = argparse.ArgumentParser(prog="capgap", description="Compress a language model through teacher assistants.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for name, do, words in (
        ("run", _run, "run one method here and print its result"),
        ("preview", _preview, "try each stage of a run for some steps, and print what the run will take"),
    ):
        every = "\n\n".join(f"{flow} {params.listing(RECIPES[flow])}" for flow in sorted(FLOWS))
        one = commands.add_parser(name, help=words, epilog=every, formatter_class=argparse.RawDescriptionHelpFormatter)
        one.add_argument("name", metavar="NAME", choices=sorted(FLOWS), help=", ".join(sorted(FLOWS)))
        one.add_argument("-p", action="append", default=[], metavar="KEY=VALUE", help="a parameter: student.scale=0.05")
        one.add_argument("--params", metavar="FILE", help="parameters from a JSON file; -p goes over it")
        one.add_argument("--json", action="store_true", help="print one line of JSON instead of the table")
        one.set_defaults(do=do)
    page = commands.add_parser("up", help="start the local server and serve every method until Ctrl-C")
    page.add_argument("--run", choices=sorted(FLOWS), metavar="NAME", help="run this one first, and print its result")
    page.add_argument("--no-keep", action="store_true", help="stop everything once the run has ended")
    page.set_defaults(do=_up)
    advice = commands.add_parser("recommend", help="say which teacher laws name for a student")
    advice.add_argument("--student", required=True, metavar="N", help="its parameters outside the embeddings: 300M")
    advice.add_argument("--tokens", required=True, metavar="D", help="tokens it is distilled on: 5B")
    words = "last, the id of a run of law, law/identity, or published rows; without it: what others have published"
    advice.add_argument("--from", dest="grid", metavar="GRID", help=words)
    words = "tokens a teacher was trained on, for each of its parameters (20; with --from, what the grid's were)"
    advice.add_argument("--teacher-tokens", metavar="M", help=words)
    words = "FLOPs a second that your machine does, for hours: 200T (with --from, what its largest teacher took)"
    advice.add_argument("--throughput", metavar="F", help=words)
    advice.add_argument("--json", action="store_true", help="print JSON")
    advice.set_defaults(do=_recommend)
    look = commands.add_parser("show", help="list finished runs, or show a run or a stage of the store")
    look.add_argument("what", nargs="?", metavar="WHAT", help="last, the start of a run's id, or stage/identity")
    look.add_argument("--json", action="store_true", help="print JSON")
    look.add_argument("--verify", action="store_true", help="check every file of every finished stage")
    look.set_defaults(do=_show)
    health = commands.add_parser("doctor", help="check versions, the store's disk, the server and who serves")
    health.set_defaults(do=lambda _given: doctor.doctor(default_root()))
    waste = commands.add_parser("gc", help="list what no report rests on, or remove it")
    waste.add_argument("--apply", action="store_true", help="remove it; never what is in use")
    waste.add_argument("--unfinished", action="store_true", help="also the work from which stopped runs would go on")
    waste.set_defaults(do=_gc)
    return top


def say(text: str) -> None:
    """Tell the user something that is not the result."""
    print(text, file=sys.stderr, flush=True)


def _run(given: argparse.Namespace) -> int:
    try:
        parameters, _ = _checked(given)
    except InputFaults as faults:
        say(str(faults))
        return _print_failure(given, runs.failure(given.name, faults), BAD_INPUT)
    root = Path(parameters["run"]["root"])
    _use_server(root)
    with contextlib.redirect_stdout(sys.stderr):
        result, status = _ran(given.name, parameters, root)
    if status != COMPLETED:
        return _print_failure(given, result, status)
    print(json.dumps(result, allow_nan=False) if given.json else present.table(result))
    return status


def _preview(given: argparse.Namespace) -> int:
    try:
        _, checked = _checked(given)
    except InputFaults as faults:
        say(str(faults))
        return _print_failure(given, runs.failure(given.name, faults), BAD_INPUT)
    from capgap_core import preview  # noqa: PLC0415 - needs torch

    try:
        found = preview.preview(checked, Lines())
    except CapgapError as error:
        say(str(error))
        return FAILED
    print(json.dumps(present.preview_facts(found), allow_nan=False) if given.json else present.preview(found))
    return COMPLETED


def _ran(name: str, parameters: dict[str, Any], root: Path) -> tuple[dict[str, Any], int]:
    """Return the result of a run in this process, finished or not, and the exit status."""
    try:
        return flow_of(name)(**parameters), COMPLETED
    except servers.Interrupted:
        _settle()
        raise
    except InputFaults as faults:  # what was there at the check has gone since
        say(str(faults))
        return runs.failure(name, faults), BAD_INPUT
    except Exception as error:
        say(f"{type(error).__name__}: {error}")
        ended = runs.ended_here()
        if ended is not None and ended["status"] == "completed":
            say("the run is complete; the Prefect server could not be told so")
            return ended, COMPLETED
        return ended or runs.failure(name, error), FAILED


def _settle() -> None:
    from flows import cancel  # noqa: PLC0415 - it needs Prefect, which is there by now

    cancel.settle(say)


def _print_failure(given: argparse.Namespace, failed: dict[str, Any], status: int) -> int:
    if given.json:
        print(json.dumps(failed, allow_nan=False))
    return status


def _checked(given: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """Return the parameters with an absolute store, and what every check that can be done before a stage has found."""
    parameters, faults = params.gather(given.p, given.params)
    parameters = rooted(parameters)
    from capgap_core import preflight  # noqa: PLC0415 - only a run needs the readers it brings

    try:
        checked = preflight.check(parameters, flow=given.name)
    except InputFaults as found:
        raise InputFaults([*faults, *found.faults]) from None
    if faults:
        raise InputFaults(faults)
    return parameters, checked


def _use_server(root: Path) -> None:
    """Point Prefect at a server: the one the user named, that of ``capgap up``, or one that ends with this process."""
    if servers.named(say):
        return
    url = servers.announced_server(root)
    if url is None:
        child, url = servers.start_server(root)
        atexit.register(child.stop)  # before Prefect registers its own, so after it has sent its last lines
        say(f"Prefect server for this run: {url.removesuffix('/api')} (later: capgap up)")
    else:
        say(f"Prefect server: {url.removesuffix('/api')} (of capgap up)")
    for name in servers.FOREIGN:
        os.environ.pop(name, None)
    os.environ.update(servers.environment(root, url))


def _up(given: argparse.Namespace) -> int:
    keep = given.run is None or (sys.stdout.isatty() and not given.no_keep)
    return up.up(default_root(), run=given.run, keep=keep, say=say)


def _gc(given: argparse.Namespace) -> int:
    return upkeep.collect(default_root(), apply=given.apply, unfinished=given.unfinished, say=say)


def _recommend(given: argparse.Namespace) -> int:
    from flows import recommend  # noqa: PLC0415 - only this command needs scipy

    asked = recommend.Asked(
        student=given.student, tokens=given.tokens, teacher_tokens=given.teacher_tokens, throughput=given.throughput,
        grid=given.grid,
    )  # fmt: skip
    return recommend.recommend(asked, root=default_root(), as_json=given.json, say=say)


def _show(given: argparse.Namespace) -> int:
    if given.verify:
        return upkeep.verify(default_root(), say)
    return show.show(default_root(), given.what, as_json=given.json, say=say)


if __name__ == "__main__":
    sys.exit(main())
