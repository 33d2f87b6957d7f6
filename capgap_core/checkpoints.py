"""What training needs to go on where it was cut off: kept while it trains, verified before it is used.

A checkpoint is a folder ``step-<n>`` of safetensors and JSON: the parameters, the optimizer's state, the state of the
random generator and the steps so far. The order of the data and the learning rate are functions of the step. A folder
appears by one rename, and its ``state.json`` has size and checksum of every file, so that a half-written or damaged
one is never taken for whole.
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from capgap_core import store
from capgap_core.errors import Damaged
from capgap_core.machine import RandomState, device_of, name, set_random_state, threads_of
from capgap_core.progress import Progress
from capgap_core.recipes import Execution
from capgap_core.records import StoredFile
from capgap_core.training import Step

SCHEMA = "capgap.checkpoint/1"
STATE = "state.json"
UNFINISHED = ".unfinished"
"""The folder in which a checkpoint is written: one, since whoever trains holds the stage's lock."""
KEPT = 2
"""Checkpoints that stay, so that one is whole where the newest is not."""


class Checkpoints:
    """The checkpoints of one stage, in a folder that survives a crash and goes when the stage is finished."""

    def __init__(self, folder: Path, *, every: float, machine: Mapping[str, Any], progress: Progress) -> None:
        self._folder, self._every, self._progress = folder, every, progress
        self._machine = dict(machine)
        self._clock = time.monotonic()
        self.last = 0
        """The step of the newest checkpoint; 0 where there is none."""
        self.resumed: tuple[int, ...] = ()
        """After which steps training went on, one for each time that it was cut off and did."""

    def due(self) -> bool:
        """Return whether the newest checkpoint is older than was asked for."""
        return time.monotonic() - self._clock >= self._every

    def tell(self, text: str) -> None:
        """Say one line to whoever watches."""
        self._progress.message(text)

    def save(
        self, steps: Sequence[Step], model: nn.Module, optimizer: torch.optim.Optimizer, drawn: RandomState
    ) -> None:
        """Keep the state after the last of ``steps``, unless that is kept already."""
        if not steps or steps[-1].step == self.last:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / UNFINISHED
        store.remove(temporary)
        temporary.mkdir()
        try:
            self._write(temporary, steps, model, optimizer, drawn)
            target = self._folder / f"step-{steps[-1].step:09d}"
            store.remove(target)
            os.rename(temporary, target)
        finally:  # where the disk is full, what is half-written only takes room
            store.remove(temporary)
        store.fsync_folder(self._folder)
        self.last = steps[-1].step
        for old in self._found()[KEPT:]:
            store.remove(old)
        self._clock = time.monotonic()

    def _write(
        self, folder: Path, steps: Sequence[Step], model: nn.Module, optimizer: torch.optim.Optimizer,
        drawn: RandomState,
    ) -> None:  # fmt: skip
        held, named = _packed(steps)
        save_file(_weights(model), folder / "model.safetensors")
        save_file(_moments(optimizer), folder / "optimizer.safetensors")
        save_file(drawn, folder / "rng.safetensors")
        save_file(held, folder / "steps.safetensors")
        state = {
            "schema": SCHEMA, "step": steps[-1].step, "terms": named, "machine": self._machine,
            "resumed": list(self.resumed), "files": [file.model_dump() for file in store.list_files(folder)],
        }  # fmt: skip
        store.write_atomically(folder / STATE, store.sealed(state))

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Step]:
        """Put the newest whole checkpoint back in place; return the steps it comes after, none where there is none.

        Raises
        ------
        OSError
            Where there are checkpoints, none is damaged, and none can be read now.
        """
        store.remove(self._folder / UNFINISHED)
        unread: OSError | None = None
        for folder in self._found():
            try:
                state = _verified(folder)
            except Damaged as error:
                self.tell(f"a damaged checkpoint is passed over: {error}")
                store.remove(folder)
                continue
            except OSError as error:  # it may be whole: not to be removed
                self.tell(f"a checkpoint cannot be read and is passed over: {error}")
                unread = unread or error
                continue
            self._compare(state["machine"])
            _put_back(folder, model, optimizer)
            self.last = int(state["step"])
            self.resumed = (*state["resumed"], self.last)
            self.tell(f"goes on after step {self.last}")
            return _unpacked(load_file(folder / "steps.safetensors"), state["terms"])
        if unread is not None:
            raise unread
        return []

    def _found(self) -> list[Path]:
        """Return the checkpoints, newest first."""
        return sorted(self._folder.glob("step-*"), reverse=True) if self._folder.is_dir() else []

    def _compare(self, machine: Mapping[str, Any]) -> None:
        other = [f"{name} {machine.get(name)}" for name, value in self._machine.items() if machine.get(name) != value]
        if other:
            self.tell(
                f"the checkpoint was made with {', '.join(other)}: the last bits will differ from those of a run that "
                "was not cut off"
            )


def beside(out_dir: Path, execution: Execution, progress: Progress) -> Checkpoints:
    """Return the checkpoints of the stage that writes into ``out_dir``."""
    machine = {
        "device": str(device_of(execution)), "processor": name(device_of(execution)),
        "threads": threads_of(execution), "deterministic": execution.deterministic, "torch": torch.__version__,
    }  # fmt: skip
    folder = out_dir.parent / "checkpoints"
    return Checkpoints(folder, every=execution.checkpoint_seconds, machine=machine, progress=progress)


def _verified(folder: Path) -> dict[str, Any]:
    """Return the state of a checkpoint whose every file is what was written."""
    state = store.unsealed(folder / STATE)
    if state.get("schema") != SCHEMA:
        raise Damaged(f"{folder / STATE}: written by another version ({state.get('schema')})")
    for file in state["files"]:
        store.check_file(folder, StoredFile(**file))
    return state


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Return name → parameter or buffer, one that is shared once."""
    return {name: tensor.detach().contiguous() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of each parameter by its place and name: ``3.exp_avg``."""
    state = optimizer.state_dict()["state"]
    return {f"{place}.{name}": value for place, held in state.items() for name, value in held.items()}


def _put_back(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    weights, moments = load_file(folder / "model.safetensors"), load_file(folder / "optimizer.safetensors")
    with torch.no_grad():
        for name, tensor in _weights(model).items():
            tensor.copy_(weights[name])
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        place, _, name = key.partition(".")
        state.setdefault(int(place), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    set_random_state(load_file(folder / "rng.safetensors"), next(model.parameters()).device)


def _packed(steps: Sequence[Step]) -> tuple[dict[str, Tensor], list[list[Any]]]:
    """Return the steps as columns, and the (scale, name) of each term by its number."""
    names = {key: number for number, key in enumerate(dict.fromkeys(key for s in steps for key in s.terms))}
    columns = {
        "step": torch.tensor([s.step for s in steps]),
        "tokens": torch.tensor([s.tokens for s in steps]),
        "lr": torch.tensor([s.lr for s in steps], dtype=torch.float64),
        "grad_norm": torch.tensor([s.grad_norm for s in steps], dtype=torch.float64),
        "terms": torch.tensor([len(s.terms) for s in steps]),
        "term": torch.tensor([names[key] for s in steps for key in s.terms]),
        "value": torch.tensor([value for s in steps for value in s.terms.values()], dtype=torch.float64),
    }
    return columns, [list(key) for key in names]


def _unpacked(columns: Mapping[str, Tensor], named: Sequence[Sequence[Any]]) -> list[Step]:
    found: list[Step] = []
    terms = iter(zip(columns["term"].tolist(), columns["value"].tolist(), strict=True))
    rows = (columns[name].tolist() for name in ("step", "tokens", "lr", "grad_norm", "terms"))
    for step, tokens, lr, norm, count in zip(*rows, strict=True):
        taken = {}
        for _ in range(count):
            number, value = next(terms)
            scale, name = named[number]
            taken[(scale, name)] = value
        found.append(Step(step=step, tokens=tokens, terms=taken, lr=lr, grad_norm=norm, tokens_per_second=0.0))
    return found
