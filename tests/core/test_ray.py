"""A law's grid on real Ray workers: the same bytes as without, nothing twice, and what an end in the middle leaves."""

import _thread
import importlib.util
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import builders
import pytest
from texts import text_recipe, write_text

from capgap_core import law, ray_workers
from capgap_core.at_once import together
from capgap_core.build import address_of, build
from capgap_core.errors import NonFinite
from capgap_core.ladder import Ladder
from capgap_core.lm_recipes import ALONE, LmObjective, Sizes
from capgap_core.progress import Silent
from capgap_core.ray_start import Room, room
from capgap_core.ray_workers import RayWorkers
from capgap_core.recipes import Execution
from capgap_core.recipes_law import LmTraining
from capgap_core.records import Reference
from capgap_core.stages import pretrain
from capgap_core.store import read_record

if importlib.util.find_spec("ray") is None:  # not imported here: what starts it sets how
    pytest.skip("ray is not installed: pip install 'capgap[ray]'", allow_module_level=True)

LADDER = Ladder(teachers=(3e3, 7e3), students=(3e3,), teacher_tokens=0.5, budgets=(0.5,), seeds=(1,))
SMALL = Sizes(layers=1, hidden=16, heads=1, kv_heads=1, neurons=16)
STEPS = 600


class Heard(Silent):
    """Keeps what a stage tells."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.notes: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)

    def update(self, done: int, total: int, note: str = "") -> None:
        self.notes.append(note)


class Calls:
    """Makes stages, and remembers each with what it told, by its role."""

    def __init__(self) -> None:
        self.made: dict[str, tuple[Reference, Heard]] = {}

    def __call__(self, stage: str, recipe: Any, inputs: Any, *, role: str, execution: Execution) -> Reference:
        heard = Heard()
        made = build(stage, recipe, inputs, execution=execution, progress=heard)
        self.made[role or stage] = made, heard
        return made


@dataclass
class Both:
    """One grid, made without Ray and with it, and the workers that are still there."""

    held: RayWorkers
    plain: Calls
    ray: Calls
    grid: law.Grid

    def build(self, recipe: Any, heard: Heard, **inputs: Any) -> Reference:
        return build("pretrain", recipe, inputs, execution=self.grid.execution, progress=heard)

    def text(self) -> Reference:
        return self.ray.made["text"][0]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    root = tmp_path_factory.mktemp("both")
    where = Execution(root=str(root / "plain"), threads=1, device="cpu", checkpoint_seconds=0.5)
    grid = law.Grid(
        text=text_recipe(root, write_text(root, documents=300)), ladder=LADDER,
        training=LmTraining(length=32, batch_size=32), objective=LmObjective(), execution=where, dataset="text",
        command="capgap run law",
    )  # fmt: skip
    plain, on_ray = Calls(), Calls()
    law.fill(grid, plain)
    there = replace(grid, execution=where.model_copy(update={"root": str(root / "ray"), "ray": "local"}))
    held = RayWorkers(there.execution)

    @contextmanager
    def kept(_execution: Execution) -> Iterator[Any]:
        """Starting Ray takes seconds, so that one is there for all tests."""
        yield lambda asks: together(asks, held)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(law, "several", kept)
            law.fill(there, on_ray)
        yield Both(held, plain, on_ray, there)
    finally:
        held.close()


def test_the_same_bytes_come_of_workers(both: Both) -> None:
    assert both.held.places >= 1
    digests = {role: made.digest for role, (made, _) in both.plain.made.items()}
    assert {role: made.digest for role, (made, _) in both.ray.made.items()} == digests
    assert len(digests) == 1 + 2 + 3 + 1
    reused = [role for role, (made, _) in both.ray.made.items() if made.reused]
    assert reused == ["2.99k alone on 1.5k seed 1"], "it is the smaller teacher"
    assert [role for role, (made, _) in both.plain.made.items() if made.reused] == reused
    assert all(str(made.folder).startswith(str(both.grid.execution.root)) for made, _ in both.ray.made.values())


def test_stages_stand_in_the_order_of_the_asks_whichever_ended_first(both: Both) -> None:
    made = [(role if role else "", one) for role, (one, _) in both.plain.made.items()]
    shuffled = [*made[:1], *reversed(made[1:-1]), made[-1]]
    assert law._in_order(both.grid, shuffled) == made


def test_what_workers_tell_arrives(both: Both) -> None:
    for role in ("teacher 2.99k", "2.99k of 5.97k on 1.5k seed 1"):
        _, heard = both.ray.made[role]
        assert heard.lines[0] == "not made before"
        assert heard.notes[-1].startswith("loss ")


def test_again_nothing_is_made_and_ray_is_not_even_started(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_workers, "connected", None)
    again = Calls()
    law.fill(both.grid, again)
    assert all(made.reused for made, _ in again.made.values())
    assert len(again.made) == len(both.ray.made)


def test_students_that_begin_together_ask_their_teacher_once(both: Both) -> None:
    shutil.rmtree(Path(str(both.grid.execution.root)) / "targets")
    made, _ = both.ray.made["2.99k of 5.97k on 1.5k seed 1"]
    recipe = pretrain.Recipe.model_validate(read_record(made.folder).recipe["given"])
    heard = Heard(), Heard()
    asks = [
        partial(both.build, recipe.model_copy(update={"seed": 7 + i}), one, text=both.text(),
                teacher=both.ray.made["teacher 5.97k"][0])
        for i, one in enumerate(heard)
    ]  # fmt: skip
    first, second = together(asks, both.held)
    assert first.digest != second.digest
    assert sum("the teacher's outputs" in one.notes for one in heard) == 1


def long(seed: int, **changes: Any) -> pretrain.Recipe:
    training = builders.training(steps=STEPS, per_epoch=3, weight_decay=0.0, clip=1.0, batch_size=4, **changes)
    return pretrain.Recipe(scratch=SMALL, length=16, rows=12, objective=ALONE, training=training, seed=seed)


def interrupted() -> Any:
    _thread.interrupt_main()
    time.sleep(60)


@pytest.mark.parametrize("end", ["fails", "interrupted"])
def test_what_ends_in_the_middle_keeps_its_state_and_goes_on_from_there(both: Both, end: str) -> None:
    seed = {"fails": 3, "interrupted": 4}[end]
    root, heard = Path(str(both.grid.execution.root)), Heard()
    address, _ = address_of("pretrain", long(seed), {"text": both.text()})
    work = root.joinpath("work", *address.parts)

    def kept() -> list[Path]:
        return sorted(work.glob("checkpoints/step-*"))

    def bad() -> Any:
        while not kept():
            time.sleep(0.05)
        if end == "fails":
            return both.build(long(9, learning_rate=1e30), Heard(), text=both.text())
        return interrupted()

    with pytest.raises(NonFinite if end == "fails" else KeyboardInterrupt):
        together([partial(both.build, long(seed), heard, text=both.text()), bad], both.held)
    both.held._stopping.clear()  # a run that was stopped ends its workers; those of these tests stay
    last = kept()[-1]
    assert not (work / "out" / "model").exists()
    (made,) = together([partial(both.build, long(seed), heard, text=both.text())], both.held)
    steps = read_record(made.folder).resumed_from_steps
    assert steps == (int(last.name.removeprefix("step-")),)
    assert f"goes on after step {steps[0]}" in heard.lines
    assert not work.exists()


def node(cpus: float, gpus: float = 0.0, *, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": cpus, **({"GPU": gpus} if gpus else {})}}


@pytest.mark.parametrize(
    ("nodes", "asked", "expected"),
    [
        ([node(2)], {}, Room(places=2, threads=1, cpus=1, gpus=0)),
        ([node(8), node(4)], {"threads": 4}, Room(places=3, threads=4, cpus=4, gpus=0)),
        ([node(2)], {"threads": 4}, Room(places=1, threads=4, cpus=2, gpus=0)),
        ([node(32, 4), node(8, 2)], {}, Room(places=6, threads=4, cpus=4, gpus=1)),
        ([node(32, 4), node(64)], {"device": "cuda"}, Room(places=4, threads=8, cpus=8, gpus=1)),
        ([node(16, 8)], {"threads": 4}, Room(places=4, threads=4, cpus=4, gpus=1)),
        ([node(4, 8)], {}, Room(places=4, threads=1, cpus=1, gpus=1)),
        ([node(32, 4)], {"device": "cpu", "threads": 8}, Room(places=4, threads=8, cpus=8, gpus=0)),
        ([node(4), node(8, alive=False)], {}, Room(places=4, threads=1, cpus=1, gpus=0)),
    ],
)
def test_each_has_a_gpu_and_its_share_of_the_cores(nodes: Any, asked: dict[str, Any], expected: Room) -> None:
    assert room(nodes, Execution(**asked)) == expected
