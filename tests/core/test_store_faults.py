"""Every file-system call of the store failing once: never a torn result, and the next try completes."""

import builtins
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import pytest

from capgap_core import store as stores
from capgap_core.errors import StageFailed, StoreError
from capgap_core.records import Reference
from capgap_core.store import Address

CALLS = ("rename", "replace", "fsync", "mkdir", "open")


class Faulty:
    """Counts the calls of the file system below a folder, and lets one of them fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path, failing: int | None, code: int) -> None:
        self.count, self._root, self._failing, self._code = 0, str(root), failing, code
        self.names: list[str] = []
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))
        for module in (builtins, io):
            monkeypatch.setattr(module, "open", self._wrapped("write", io.open))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if self._counts(name, args, options):
                self.count += 1
                self.names.append(name)
                if self.count == self._failing:
                    raise OSError(self._code, os.strerror(self._code), str(args[0]))
            return real(*args, **options)

        return call

    def _counts(self, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> bool:
        if name == "write":
            mode = str(args[1] if len(args) > 1 else options.get("mode", "r"))
            return isinstance(args[0], str | Path) and str(args[0]).startswith(self._root) and not mode.startswith("r")
        return name == "fsync" or str(args[0]).startswith(self._root)


def calls_of(tmp_path: Path, candidates: Reference) -> int:
    with pytest.MonkeyPatch.context() as patched:
        faulty = Faulty(patched, tmp_path / "count", None, 0)
        builders.make_tradeoff(tmp_path / "count", candidates)
    assert {"rename", "replace", "fsync", "mkdir", "write"} <= set(faulty.names)
    return faulty.count


def attempt(root: Path, candidates: Reference) -> str | None:
    """Return what a failed stage says, or nothing where it needed the failed call for nothing that it promises."""
    try:
        builders.make_tradeoff(root, candidates)
    except (StageFailed, StoreError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_each_call_fails_once(tmp_path: Path, code: int) -> None:
    candidates = builders.scored(tmp_path)
    whole = builders.make_tradeoff(tmp_path / "whole", candidates)
    for failing in range(1, calls_of(tmp_path, candidates) + 1):
        root = tmp_path / str(failing)
        with pytest.MonkeyPatch.context() as patched:
            faulty = Faulty(patched, root, failing, code)
            said = attempt(root, candidates)
        assert faulty.count >= failing
        assert said is None or (os.strerror(code) in said and "give the same command again" in said)
        folder = root / "art" / "store" / "tradeoff" / whole.identity / whole.code
        if folder.is_dir():
            assert stores.verified_record(folder).digest == whole.digest
        again = builders.make_tradeoff(root, candidates)
        assert again.digest == whole.digest
        assert builders.make_tradeoff(root, candidates).reused
        address = Address(stage="tradeoff", identity=whole.identity, code=whole.code)
        if faulty.names[failing - 1] != "open":  # the last folders are opened to be removed, which may fail
            assert not stores.Store(root / "art").work(address).exists()
