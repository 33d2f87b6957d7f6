"""The errors a user can meet, and the faults that explain them.

CapgapError
├── InputFaults      a recipe, a data set, a teacher or a place is wrong: every fault at once
├── StageFailed      a stage could not finish: which, and what to do
│   ├── NonFinite    a loss or a gradient norm was NaN or infinite before an optimizer step
│   └── OutOfMemory  the memory of the device or the machine did not do
└── StoreError       the store cannot be used, or holds something that this version cannot read
    └── Damaged      a stored file is missing or does not hold what its record says
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that is wrong with an input: where, what was given, what is asked, what to do."""

    field: str
    value: str
    rule: str
    remedy: str

    def __str__(self) -> str:
        """Return the fault in one line."""
        return f"{self.field} = {self.value}: {self.rule}. {self.remedy}"


def fault(field: str, value: object, rule: str, remedy: str) -> Fault:
    """Return a fault on one line of characters that can be seen, its parts shortened to what fits there."""
    text = value if isinstance(value, str) and value.strip() else repr(value)
    return Fault(field=_line(field, 120), value=_line(text, 120), rule=_line(rule, 400), remedy=_line(remedy, 400))


def _line(text: str, longest: int) -> str:
    """Return a text with escapes for line ends, controls, and what could not be printed or would turn the line."""
    seen = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return seen if len(seen) <= longest else seen[: longest - 3] + "..."


class CapgapError(Exception):
    """The root of every error that capgap raises on purpose."""


class InputFaults(CapgapError):
    """Every fault found in the input, before any stage has started."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        super().__init__("\n".join([f"{count} in the input:", *(f"  - {f}" for f in self.faults)]))

    def as_dicts(self) -> list[dict[str, str]]:
        """Return the faults as plain dictionaries, for JSON."""
        return [asdict(f) for f in self.faults]


class StageFailed(CapgapError):
    """A stage could not finish."""

    def __init__(self, stage: str, why: str, remedy: str) -> None:
        self.stage, self.why, self.remedy = stage, why, remedy
        super().__init__(f"{stage}: {why}. {remedy}")


class NonFinite(StageFailed):
    """A loss or gradient norm was not finite; the optimizer step was not taken."""


class OutOfMemory(StageFailed):
    """The memory of the device or the machine did not do."""


class StoreError(CapgapError):
    """The store cannot be used."""


class Damaged(StoreError):
    """A stored file is missing or does not hold what its record says."""


class Problems:
    """The faults found so far, and the first error behind one."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.cause: Exception | None = None

    def add(self, *faults: Fault, cause: Exception | None = None) -> None:
        """Keep the faults, and the error where it is the first."""
        self.faults += faults
        self.cause = self.cause or cause

    def error(self) -> InputFaults:
        """Return the error to raise."""
        error = InputFaults(self.faults)
        error.__cause__ = self.cause
        return error
