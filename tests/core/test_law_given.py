"""Grids with teachers that are given, and with students that begin as slices of their teachers."""

import hashlib
import math
from pathlib import Path
from typing import Any

import pytest
from lms import BYTES, folder_of
from texts import write_text
from transformers import AutoModelForCausalLM

from capgap_core import ladder, law, models, preflight, tables
from capgap_core.build import build
from capgap_core.contents import content_digest
from capgap_core.identity import identity_of
from capgap_core.ladder import Ladder, sizes_for
from capgap_core.lm_recipes import LmObjective
from capgap_core.progress import Silent
from capgap_core.recipes import Execution
from capgap_core.recipes_law import LmTraining
from capgap_core.records import Reference
from capgap_core.stages import text as text_stage

STUDENTS = (3e3, 7e3, 2.5e4)
"""The largest is no smaller than the teacher that is given."""


class Calls:
    """Makes stages, and remembers their roles, and which were made anew."""

    def __init__(self) -> None:
        self.made: dict[str, Reference] = {}

    def __call__(self, stage: str, recipe: Any, inputs: Any, *, role: str, execution: Execution) -> Reference:
        made = build(stage, recipe, inputs, execution=execution, progress=Silent())
        self.made[f"{stage} {role}".strip()] = made
        return made

    @property
    def new(self) -> list[str]:
        return sorted(name for name, made in self.made.items() if not made.reused and made.stage != "law")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("law")


@pytest.fixture(scope="module")
def asked(root: Path) -> dict[str, Any]:
    """Return the parameters of a grid with a teacher that is trained here and one that is given."""
    return {
        "dataset": str(write_text(root, documents=300)),
        "ladder": {
            "teachers": [4.9e4], "given": str(folder_of(root / "neox", "gpt_neox")), "students": list(STUDENTS),
            "teacher_tokens": 0.25, "budgets": [0.5], "seeds": [1],
        },
        "training": {"length": 32, "batch_size": 32},
        "run": {"root": str(root / "art"), "threads": 1},
    }  # fmt: skip


def filled(asked: dict[str, Any], **changes: Any) -> tuple[Reference, Calls]:
    """Return the stage ``law`` of a grid with another ladder, and what it is made of."""
    checked = preflight.check({**asked, "ladder": {**asked["ladder"], **changes}}, flow="law")
    calls = Calls()
    return law.fill(law.grid_of(checked), calls), calls


@pytest.fixture(scope="module")
def without(asked: dict[str, Any]) -> tuple[Reference, Calls]:
    return filled(asked, given=[])


@pytest.fixture(scope="module")
def first(asked: dict[str, Any], without: Any) -> tuple[Reference, Calls]:
    assert without
    return filled(asked)


@pytest.fixture(scope="module")
def slimmed(asked: dict[str, Any], first: Any) -> tuple[Reference, Calls]:
    assert first
    return filled(asked, begin="slimmed")


def outside(folder: Path) -> int:
    """A second source: the parameters of a GPT-NeoX that stand in none of its two tables of tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    return sum(p.numel() for p in model.parameters()) - 2 * BYTES * 32


def test_a_teacher_that_is_given_adds_its_own_cells_alone(
    asked: dict[str, Any], first: tuple[Reference, Calls]
) -> None:
    law_, calls = first
    size = outside(Path(asked["ladder"]["given"]))
    name = f"{size / 1e3:.3g}k"
    sizes = {f"{sizes_for(one).parameters() / 1e3:.3g}k" for one in STUDENTS}
    assert len(calls.new) == 1 + 3
    assert calls.new[0] == f"given_lm teacher {name}"
    assert {role.split()[1] for role in calls.new[1:]} == sizes
    assert all(f"of {name} on" in role for role in calls.new[1:])
    kinds = {role: models.read_config(calls.made[role].folder / "model")["model_type"] for role in calls.new}
    assert [kinds[role] for role in calls.new] == ["gpt_neox", "llama", "llama", "llama"]
    assert filled(asked)[1].new == []
    assert law_.summary["apple"] != "estimable", "two teachers hold no law"


def test_what_nobody_knows_of_it_is_null_and_limits_nothing(first: tuple[Reference, Calls], asked: Any) -> None:
    law_, _ = first
    rows = tables.read(law_.table("cells"))
    given, own = [row for row in rows if row["role"] == "teacher"]
    assert given["parameters"] == given["achieved_parameters"] == outside(Path(asked["ladder"]["given"]))
    assert [given[name] for name in ("tokens", "unique_tokens", "epochs", "tokens_per_parameter")] == [None] * 4
    assert (given["begin"], own["begin"]) == ("given", "scratch")
    assert (given["data_limited"], own["data_limited"]) == (False, True)
    taught = [row for row in rows if row["teacher"] == given["parameters"]]
    assert [row["teacher_nats"] for row in taught] == [given["nats"]] * 3
    assert not any(row["data_limited"] for row in taught)
    assert len(tables.read(law_.table("optima"))) == 3, "its cells are in the fits, those of the other are not"
    report = (law_.folder / "report.md").read_text(encoding="utf8")
    assert f"Given, not trained here: teachers of {given['parameters'] / 1e3:.3g}k." in report
    assert "| given: unknown | – | – |" in report


def test_grids_that_differ_in_how_students_begin_share_the_rest(
    slimmed: tuple[Reference, Calls], first: tuple[Reference, Calls]
) -> None:
    law_, calls = slimmed
    rows = tables.read(law_.table("cells"))
    taught = [row for row in rows if row["teacher"]]
    assert len(taught) == 3 + 2
    assert sum(name.startswith("lm_importance") for name in calls.new) == 2
    assert len(calls.new) == 2 + 5, "neither a teacher nor a student alone"
    alone = {row["identity"] for row in rows if not row["teacher"]}
    assert alone == {row["identity"] for row in tables.read(first[0].table("cells")) if not row["teacher"]}
    assert {row["begin"] for row in taught} == {"slimmed"}
    assert {row["begin"] for row in rows if not row["teacher"]} == {"given", "scratch"}


def test_a_slice_comes_near_its_size_which_stays_what_was_asked_for(slimmed: tuple[Reference, Calls]) -> None:
    law_, calls = slimmed
    rows = [row for row in tables.read(law_.table("cells")) if row["begin"] == "slimmed"]
    made = {one.identity: one for one in calls.made.values()}
    assert {row["parameters"] for row in rows} == {sizes_for(size).parameters() for size in STUDENTS}
    for row in rows:
        folder = made[row["identity"]].folder / "model"
        family = "gpt_neox" if row["teacher"] < 2e4 else "llama"
        assert models.read_config(folder)["model_type"] == f"capgap_{family}"
        model = models.load(models.family(family), made[row["identity"]])
        named = dict(model.named_parameters())
        apart = [name for name in named if "embed" in name or "lm_head" in name]
        inside = sum(p.numel() for p in named.values()) - sum(named[name].numel() for name in apart)
        assert row["achieved_parameters"] == inside
        scored = calls.made[f"lm_importance teacher {row['teacher'] / 1e3:.3g}k"]
        sizes = [one["parameters"] for one in scored.summary["slices"].values()]
        off = [abs(math.log(size / row["parameters"])) for size in sizes]
        assert abs(math.log(inside / row["parameters"])) == pytest.approx(min(off))
        assert min(off) < math.log(ladder.FURTHEST)
        assert model.config.kept_hidden < model.config.hidden_size, "width goes, too"


def test_the_report_says_what_slices_are_and_what_was_left_out(slimmed: tuple[Reference, Calls]) -> None:
    report = (slimmed[0].folder / "report.md").read_text(encoding="utf8")
    rows = tables.read(slimmed[0].table("cells"))
    ratios = [r["achieved_parameters"] / r["parameters"] for r in rows if r["begin"] == "slimmed"]
    assert "those alone from scratch" in report
    assert f"slices have {min(ratios):.2f} to {max(ratios):.2f} times as many" in report
    (given,) = [row["parameters"] for row in rows if row["begin"] == "given"]
    left = f"{sizes_for(2.5e4).parameters() / 1e3:.3g}k of {given / 1e3:.3g}k"
    assert f"Not smaller than the teacher, and left out: {left}." in report


def test_another_student_leaves_the_scores_of_units_alone(asked: dict[str, Any], slimmed: Any) -> None:
    assert slimmed
    _, calls = filled(asked, begin="slimmed", students=[*STUDENTS, 1.1e4])
    assert len(calls.new) == 1 + 2
    assert not any(name.startswith("lm_importance") for name in calls.new)


def test_a_slice_of_a_gpt2_that_is_given_learns(asked: dict[str, Any], root: Path) -> None:
    law_, calls = filled(
        asked, teachers=[], given=[str(folder_of(root / "gpt2", "gpt2"))], begin="slimmed", students=[6e3]
    )
    taught = [made for name, made in calls.made.items() if " of " in name]
    assert len(taught) == 1
    assert models.read_config(taught[0].folder / "model")["model_type"] == "capgap_gpt2"
    losses = [row["value"] for row in tables.read(taught[0].table("steps")) if row["term"] == "prediction"]
    assert losses[-1] < losses[0]
    assert all(row["tokens"] is None for row in tables.read(law_.table("cells")) if row["role"] == "teacher")


def test_the_stages_of_the_default_grid_have_the_identities_that_they_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before teachers could be given and students begin slimmed; nothing is trained here."""
    found: list[str] = []

    def call(stage: str, recipe: Any, inputs: Any, *, role: str, execution: Execution) -> Reference:
        held = {name: content_digest(item) for name, item in inputs.items()}
        found.append(identity_of(stage, recipe, held))
        facts = {"tokens": {"train": 10**7}}
        return Reference(stage=stage, identity=found[-1], code="c", digest=found[-1], path="/x", summary=facts)

    monkeypatch.setattr(law, "measured_on", lambda _model: 1000)
    source = text_stage.Source(dataset="x", splits=None, cache="y", tokenizer=None)
    text = text_stage.Recipe(content="a", column=None, tokenizer="bytes", vocabulary=None, seed=0, source=source)
    grid = law.Grid(
        text=text, ladder=Ladder(), training=LmTraining(), objective=LmObjective(), execution=Execution(root="/tmp"),
        dataset="text", command="capgap run law",
    )  # fmt: skip
    law.fill(grid, call)
    assert len(found) == 1 + 4 + 3 * 5 * 2 + 1
    digest = hashlib.sha256(" ".join(found).encode()).hexdigest()
    assert digest == "19c3050df8b040bdb62a5f4f04ef9c977d98613bd948d70c63808f0f5c95db7c"
