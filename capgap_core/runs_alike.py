"""What runs of minidisc have to share to be cells of one grid: all but the student, the assistant and the seed.

Each run is held against the most usual of its kind, so that the odd one out is named. A run that differs in one thing
is not asked about what follows from it.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from capgap_core.errors import Fault, InputFaults, fault
from capgap_core.given_runs import CheckedRuns, GivenRun, read
from capgap_core.recipes_law import Law

Key = Callable[[GivenRun], Any]
MOST = 3
"""Differences of a run that are told; more say no more."""
AGAIN = "Run it again as the others, or leave it out."
FREE = frozenset({"scales", "seed"})
"""What runs of one grid may differ in; how the data were cut is no part of that."""


def checked(flow: str, p: Law, wrong: set[str], faults: list[Fault]) -> CheckedRuns:
    """Return the checked parameters of a law of runs.

    Parameters
    ----------
    wrong, faults
        Of the parameters, found so far.

    Raises
    ------
    InputFaults
        With these, and every fault of the runs.
    """
    runs: list[GivenRun] = []
    if not wrong & {"references", "run", "run.root"}:
        runs, found = read(p)
        faults = [*faults, *found, *faults_of(runs, any_code=p.run.reuse == "any-code")]
    if faults:
        raise InputFaults(faults)
    return CheckedRuns(flow=flow, parameters=p, runs=tuple(runs))


def faults_of(runs: Sequence[GivenRun], *, any_code: bool) -> list[Fault]:
    """Return for each run that does not go with the others in what, and for sizes that are no two points of a curve.

    Parameters
    ----------
    any_code
        Whether models may have been made by different code.
    """
    faults: list[Fault] = []
    left = list(runs)
    for what, of, within in _asked(any_code):
        found = list(_odd(left, what, of, within))
        faults += [one for _, one in found]
        left = [run for run in left if all(run is not odd for odd, _ in found)]
    odd = list(_other_grids(left))
    faults += [one for _, one in odd]
    left = [run for run in left if all(run is not other for other, _ in odd)]
    return faults + _same_size(left)


def mean_sizes(measured: Iterable[tuple[float, int, float]]) -> dict[float, float]:
    """Return scale → its size: the mean over seeds of (scale, seed, parameters).

    Which units a plan keeps depends on the seed, and whole multiples of them make sizes differ a little.
    """
    found: dict[float, dict[int, float]] = {}
    for scale, seed, parameters in measured:
        found.setdefault(scale, {})[seed] = parameters
    return {scale: sum(own.values()) / len(own) for scale, own in sorted(found.items())}


def differences(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """Yield where two recipes differ, as ``training.steps = 40, not 20``."""
    if isinstance(one, Mapping) and isinstance(other, Mapping) and "float" not in {*one, *other}:
        for name in sorted({*one, *other}):
            yield from differences(one.get(name, "its default"), other.get(name, "its default"), f"{path}.{name}")
    elif one != other:
        yield f"{path.lstrip('.')} = {_shown(one)}, not {_shown(other)}"


def _asked(any_code: bool) -> Iterator[tuple[str, Key, Key]]:
    """Yield what has to be alike, what it is of a run, and within which runs."""

    def every(_run: GivenRun) -> Any:
        return None

    yield "data", lambda run: run.made["data"].digest, every
    if not any_code:
        yield "code", lambda run: run.codes, every
    for part in ("teacher", "importance", "sandwich", "student"):
        yield part, lambda run, part=part: _recipe(run, part), every
    yield "teacher of this seed", lambda run: run.made["teacher"].digest, lambda run: run.seed
    yield (
        "sandwich of this seed, student and grid", lambda run: run.made["sandwich"].digest,
        lambda run: (run.seed, run.student, run.made["sandwich"].summary["scales"]),
    )  # fmt: skip


def _odd(runs: Sequence[GivenRun], what: str, of: Key, within: Key) -> Iterator[tuple[GivenRun, Fault]]:
    """Yield each run in which something is not as in most of its group."""
    groups: dict[str, list[GivenRun]] = {}
    for run in runs:
        groups.setdefault(json.dumps(within(run)), []).append(run)
    for group in groups.values():
        held = [json.dumps(of(run), sort_keys=True) for run in group]
        usual = Counter(held).most_common(1)[0][0]  # the first of equals
        model = group[held.index(usual)]
        for run, own in zip(group, held, strict=True):
            if own != usual:
                yield run, _unlike(run, model, what, of)


def _unlike(run: GivenRun, model: GivenRun, what: str, of: Key) -> Fault:
    """Return in what a run is not as another."""
    if what == "code":
        others = ", ".join(part for part, code in run.codes.items() if code != model.codes[part])
        rule = f"made by other code than {model.name}: {others}"
        return fault("references", run.name, rule, "Run it again, or give run.reuse=any-code to take it as it is.")
    part = what.split(" ", maxsplit=1)[0]
    told = list(differences(_recipe(run, part), _recipe(model, part)))
    seen = "; ".join(told[:MOST]) or "asked for alike, and other contents"
    return fault("references", run.name, f"its {what} is not that of {model.name}: {seen}", AGAIN)


def _recipe(run: GivenRun, part: str) -> Any:
    """Return a stage's recipe without seeds, and without the scales that the student moves."""
    return _without(run.made[part].recipe["hashed"], frozenset() if part == "data" else FREE)


def _without(held: Any, names: frozenset[str]) -> Any:
    if isinstance(held, Mapping):
        return {name: _without(value, names) for name, value in held.items() if name not in names}
    return held


def _other_grids(runs: Sequence[GivenRun]) -> Iterator[tuple[GivenRun, Fault]]:
    """Yield each run whose candidates are not those of the grid that most runs of the smallest student have.

    Candidates share weights: in another grid the same scale is another model.
    """
    if not runs:
        return
    smallest = min(run.student for run in runs)
    grids = [tuple(run.made["sandwich"].summary["scales"][:-1]) for run in runs if run.student == smallest]
    widest = Counter(grids).most_common(1)[0][0]
    for run in runs:
        held = tuple(run.made["sandwich"].summary["scales"][:-1])
        due = tuple(scale for scale in widest if scale > run.student)
        if held != due:
            rule = f"its candidates are {_listed(held)}, and by the grid of the others {_listed(due)}"
            yield run, fault("references", run.name, rule, "Run it again with their sandwich.grid, or leave it out.")


def _same_size(runs: Sequence[GivenRun]) -> list[Fault]:
    """Return a fault for scales that come out at one size, which no curve can tell apart."""
    faults = []
    for role in ("assistant", "student"):
        rows = [(run.results[role], run.seed) for run in runs]
        sizes = mean_sizes((row["scale"], seed, row["non_embedding"]) for row, seed in rows)
        scales: dict[float, list[float]] = {}
        for scale, size in sizes.items():
            scales.setdefault(size, []).append(scale)
        for size, alike in scales.items():
            if len(alike) > 1:
                rule = f"{role}s of these scales come out at the same {size:,.0f} parameters"
                faults.append(fault("references", _listed(alike), rule, "Leave the runs of all but one of them out."))
    return faults


def _listed(scales: Iterable[float]) -> str:
    return ", ".join(f"{scale:g}" for scale in scales)


def _shown(value: Any) -> str:
    """Return a value of a recipe, whose floats are kept as hexadecimal digits."""
    if isinstance(value, Mapping) and set(value) == {"float"}:
        return f"{float.fromhex(value['float']):g}"
    return value if isinstance(value, str) else json.dumps(value)
