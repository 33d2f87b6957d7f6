"""Check everything a run needs before anything starts, and name all that is wrong at once."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capgap_core import given_lms, given_ray, given_text, parts, runs_alike
from capgap_core.across import across, beside
from capgap_core.corpus import Corpus
from capgap_core.errors import Fault, InputFaults, fault
from capgap_core.given_lms import GivenLm
from capgap_core.given_mixkd import Given, look
from capgap_core.given_runs import CheckedRuns
from capgap_core.given_teacher import GivenTeacher, inspect
from capgap_core.given_text import GivenText
from capgap_core.loading import Cache
from capgap_core.methods import RECIPES
from capgap_core.parameters import validated
from capgap_core.reading import read_corpus
from capgap_core.recipes import Execution
from capgap_core.recipes_law import Law
from capgap_core.recipes_mixkd import Mixkd

READING = {
    "dataset", "task", "data", "data.text_columns", "data.label_column", "data.splits", "data.metric", "evaluate",
    "evaluate.split",
}  # fmt: skip
"""What decides how the data set is read: where one of them is wrong, nothing can be said of the data set."""


@dataclass(frozen=True, kw_only=True)
class CheckedLaw:
    """The parameters of ``capgap/law`` after every check, with what was read on the way."""

    flow: str
    parameters: Law
    text: GivenText
    given: tuple[GivenLm, ...] = ()
    """The teachers that are given."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The parameters of any other flow after every check, with what was read on the way."""

    flow: str
    parameters: Any
    """The recipe of the flow."""
    corpus: Corpus
    teacher: GivenTeacher | None
    """Null where the teacher is trained from scratch."""
    more: Given
    """What a method is given beside these."""


Within = Callable[[Path], contextlib.AbstractContextManager[None]]


def check(parameters: Mapping[str, Any], *, flow: str = "minidisc", within: Within | None = None) -> Any:
    """Return the checked parameters of a flow: ``Checked``, and of ``law`` ``CheckedLaw`` or ``CheckedRuns``.

    Parameters
    ----------
    parameters
        What was asked for, with the store in ``run.root``.
    flow
        A key of ``methods.RECIPES``.
    within
        Given the store, once it is known to be one, a context in which the rest is looked at: it may take minutes.

    Raises
    ------
    InputFaults
        With every fault of the parameters, the store, the data set and the teacher; no folder of theirs is left.
    """
    p, wrong, faults = validated(RECIPES[flow], parameters)
    faults += across(p, wrong)
    with _untouched(p.run.root):
        unwritable = _store(p.run) if not wrong & {"run", "run.root"} else []
        root = None if unwritable else p.run.root
        with within(Path(root)) if within and root else contextlib.nullcontext(), _cache(root) as cache:
            faults += unwritable + (device_faults(p.run) if not wrong & {"run", "run.device"} else [])
            faults += given_ray.faults_of(flow, p.run, wrong, root)
            if isinstance(p, Law):
                return _law_looked_at(flow, p, wrong, faults, root, cache)
            return _looked_at(flow, p, wrong, faults, root, cache)


def _law_looked_at(
    flow: str, p: Law, wrong: set[str], faults: list[Fault], root: str | None, cache: Cache
) -> CheckedLaw | CheckedRuns:
    """Return what has been checked after a look at the runs that are given, else at the text and the teachers."""
    if p.references or "references" in wrong:
        return runs_alike.checked(flow, p, wrong, faults)
    text, found = given_text.look(p, wrong, cache=cache)
    given, more = given_lms.look(p, wrong, root=root)
    faults += found + more
    if faults or text is None:
        raise InputFaults(faults)
    cache.keep()
    return CheckedLaw(flow=flow, parameters=p, text=text, given=given)


def _looked_at(flow: str, p: Any, wrong: set[str], faults: list[Fault], root: str | None, cache: Cache) -> Checked:
    """Return what has been checked after a look at the data set and the teacher."""
    corpus: Corpus | None = None
    teacher: GivenTeacher | None = None
    if not wrong & READING:
        try:
            corpus = read_corpus(p.dataset, task=p.task, data=p.data, split=p.evaluate.split, cache=cache)
            parts.check(corpus, _cutting(p, corpus))
        except InputFaults as error:
            faults += error.faults
    if "teacher" not in wrong and p.teacher != "scratch":
        try:
            teacher = inspect(p.teacher, p.teacher_recipe.mode, corpus, cache=root)
            faults += _lengths(p, teacher) + beside(p, teacher)
        except InputFaults as error:
            faults += error.faults
    more = Given()
    if isinstance(p, Mixkd) and corpus is not None:
        more, found = look(p, wrong, corpus, teacher, cache=cache, root=root)
        faults += found
    if faults or corpus is None:
        raise InputFaults(faults)
    cache.keep()
    return Checked(flow=flow, parameters=p, corpus=corpus, teacher=teacher, more=more)


@contextlib.contextmanager
def _cache(root: str | None) -> Iterator[Cache]:
    """Give a place for what is read, from which nothing is kept unless the input is good."""
    if root is None:
        with tempfile.TemporaryDirectory() as elsewhere:
            yield Cache(Path(elsewhere))
        return
    kept = Path(root) / "cache"
    try:
        kept.mkdir(exist_ok=True)
        place = tempfile.TemporaryDirectory(dir=kept, prefix=".checking-", ignore_cleanup_errors=True)
    except OSError as error:
        raise InputFaults([_unwritable(root, error)]) from error
    with place as fresh:
        yield Cache(kept, Path(fresh))


@contextlib.contextmanager
def _untouched(root: str | None) -> Iterator[None]:
    """Remove the folders that checking has made, where it does not end well and nothing is in them."""
    try:
        places = [Path(root) / "cache", Path(root), *Path(root).parents] if root else []
        missing = [path for path in places if not path.exists()]
    except (OSError, ValueError):  # it cannot be a folder, which the check itself will say
        missing = []
    try:
        yield
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError, ValueError):  # one into which somebody has put something stays
                path.rmdir()
        raise


def _cutting(p: Any, corpus: Corpus) -> parts.Cutting:
    return parts.Cutting(
        protocol=p.protocol, task=corpus.task, train_rows=p.data.train_rows, selection_rows=p.data.selection_rows,
        calibration_rows=p.data.calibration_rows, seed=p.data.seed,
    )  # fmt: skip


def _lengths(p: Any, teacher: GivenTeacher) -> list[Fault]:
    """Return a fault for each length that the teacher has no positions for."""
    asked = {"data.max_length": p.data.max_length, "evaluate.length": p.evaluate.length}
    rule = f"the teacher has {teacher.positions} positions"
    return [
        fault(field, length, rule, f"Give {teacher.positions} at most.")
        for field, length in asked.items()
        if length > teacher.positions
    ]


def _store(run: Execution) -> list[Fault]:
    """Return a fault where the store cannot be written; leaves nothing behind but the folder itself."""
    if not run.root:  # an empty name would be the current folder
        return [fault("run.root", run.root, "the store is not named", "Give a folder.")]
    root = Path(run.root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root) as probe:
            probe.write(b"capgap")
            probe.flush()
            os.fsync(probe.fileno())
    except (OSError, ValueError) as error:
        return [_unwritable(str(root), error)]
    return []


def _unwritable(root: str, error: Exception) -> Fault:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return fault("run.root", root, f"the store cannot be written ({reason})", "Give a folder you may write to.")


def device_faults(run: Execution) -> list[Fault]:
    """Return a fault where this machine does not have the device that is asked of it."""
    if not run.device.startswith("cuda") or run.ray not in (None, "local"):  # a cluster is asked for its own
        return []
    import torch  # noqa: PLC0415 - seconds to import, and only this question needs it

    count, number = torch.cuda.device_count(), int(run.device.partition(":")[2] or 0)
    if number < count:
        return []
    rule = f"torch can use {count} CUDA devices of this machine"
    remedy = f"Use auto, cpu or cuda:0 to cuda:{count - 1}." if count else "Use auto or cpu."
    return [fault("run.device", run.device, rule, remedy)]
