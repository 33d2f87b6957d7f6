"""A data set that has been read: its parts, as texts and labels."""

from dataclasses import dataclass

from capgap_core.columns import Resolved


@dataclass(frozen=True)
class Part:
    """The rows of one part."""

    texts: tuple[list[str], ...]
    """One list of texts, or the two parallel lists of a pair."""
    labels: list[int] | list[float]
    """Label ids for classification, scores for regression."""
    files: tuple[str, ...]
    """Where the rows come from."""


@dataclass(frozen=True)
class Corpus:
    """A data set that has been read and has no faults."""

    name: str
    task: Resolved
    metric: str
    labels: tuple[str, ...]
    """Label names by id; none for regression."""
    text_columns: tuple[str, ...]
    label_column: str
    parts: dict[str, Part]
    """``train``, and where the data set or the user gives them ``eval`` and ``selection``."""
    eval_name: str
    """``dev`` or ``test``, or ``cut`` where the part to report on will be cut from train."""
    digest: str
    """Of the content of the parts, wherever they lie."""
    notes: tuple[str, ...]
