"""What a report is composed from: plain facts, by their names."""

from typing import Literal, TypedDict


class Candidate(TypedDict):
    """A row of ``tradeoff.parquet`` with the standard error of its metric on the selection part."""

    scale: float
    achieved: float
    metric: float
    stderr: float | None
    tradeoff: float
    chosen: bool
    target: bool
    wins_from: float | None
    wins_to: float | None


class Score(TypedDict):
    """The primary metric on the evaluation part, a fraction, and its standard error over examples."""

    value: float
    stderr: float | None


class Difference(TypedDict):
    """Student minus a control on the same examples, with its paired 95% interval over examples."""

    against: Literal["direct_flops", "direct"]
    value: float
    low: float
    high: float
    seeds_needed: int | None
    """For an effect of this size; null where the effect is 0. 1000 stands for that many or more."""


class Size(TypedDict):
    """The four sizes of a model."""

    parameters: int
    non_embedding: int
    flops: float
    """Of one example of ``length`` tokens; a multiply-accumulate is 2."""
    length: int
    megabytes: float
    latency_ms: dict[str, float] | None
    """Batch size → milliseconds a batch; null where not measured."""


class Data(TypedDict):
    """How the data was cut."""

    rows: dict[str, int]
    """Part → rows."""
    groups: int
    largest_group: int
    overlap: dict[str, int]
    """Held-out part → rows that equal, contain or are contained in one that was read before, to train or to choose."""
    how: str
    """How the parts were kept apart, in words or as the splits name it: groups, overlap-left-out."""
    notes: list[str]
    """What else is to be known: rows left out of train since they overlap a part, a part that is not used."""


class StageFact(TypedDict):
    """A stage that the report rests on."""

    name: str
    stage: str
    identity: str
    code: str


class Facts(TypedDict):
    """All that a report says; metrics are fractions, and ``scores`` hold the primary metric on the evaluation part."""

    title: str
    dataset: str
    task: str
    metric: str
    split: str
    n: int
    """Examples evaluated on."""
    protocol: Literal["capgap", "paper"]
    seed: int
    device: str
    target: float
    """Nominal scale of the student."""
    lam: float
    metric_scale: Literal["raw", "normalised"]
    candidates: list[Candidate]
    """The candidates and the target's own row."""
    chosen: float
    best: float | None
    """The candidate of the best t, where ``chosen`` was asked for and not chosen; else null."""
    margin: float | None
    within_error: bool | None
    assistant_preferred: bool
    target_from: float | None
    scores: dict[str, Score]
    """Role → score; without the controls that were not asked for."""
    constant: float
    """The best constant predictor on the evaluation part."""
    differences: list[Difference]
    sizes: dict[str, Size]
    spent: dict[str, float]
    """Arm (student, direct, direct_flops) → FLOPs of all training after the teacher that it needed."""
    teacher_on_selection: float
    selection_seen: Literal["no", "unknown"]
    """unknown: an accepted teacher, which may have been trained on the selection part."""
    data: Data
    stages: list[StageFact]
    lineage: list[tuple[str, str]]
    """Arrows between stages, as ``("data", "teacher")``; empty: no chart."""
    student_path: str
    remote_code: bool
    """Whether loading needs ``trust_remote_code=True``."""
    command: str
    """The shell command that repeats the run."""
