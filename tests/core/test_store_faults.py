"""Every file-system call of the store failing once: never a torn result, and the next try completes."""

import builtins
import contextlib
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import pyarrow.parquet as pq
import pytest
from cut_off import checkpoints, same, trained

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
        opened = self._opened(io.open)
        for module in (builtins, io):
            monkeypatch.setattr(module, "open", opened)
        monkeypatch.setattr(pq, "write_table", self._half(pq.write_table))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if name == "fsync" or self._below(args[0]):
                self.come(name, args[0])
            return real(*args, **options)

        return call

    def _opened(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """Opening for writing is a call, and so is each write into what it gives."""

        def call(*args: Any, **options: Any) -> Any:
            mode = str(args[1] if len(args) > 1 else options.get("mode", "r"))
            if mode.startswith("r") or not self._below(args[0]):
                return real(*args, **options)
            self.come("open to write", args[0])
            file = real(*args, **options)
            written = file.write

            def write(held: Any) -> int:
                try:
                    self.come("write", args[0])
                except OSError:
                    written(held[: len(held) // 2])
                    raise
                return written(held)

            return Writing(file, write)

        return call

    def _half(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """A Parquet file is written by a library in C++; where it fails, half of the file is there."""

        def call(table: Any, path: Path, **options: Any) -> None:
            real(table, path, **options)
            try:
                self.come("write", path)
            except OSError:
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
                raise

        return call

    def _below(self, place: Any) -> bool:
        return isinstance(place, str | Path) and str(place).startswith(self._root)

    def come(self, name: str, place: Any) -> None:
        """Count a call, and let it fail where its turn has come."""
        self.count += 1
        self.names.append(name)
        if self.count == self._failing:
            raise OSError(self._code, os.strerror(self._code), str(place))


class Writing:
    """A file whose ``write`` is another function."""

    def __init__(self, file: Any, write: Callable[[Any], int]) -> None:
        self._file, self.write = file, write

    def __enter__(self) -> "Writing":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def calls_of(tmp_path: Path, candidates: Reference) -> int:
    with pytest.MonkeyPatch.context() as patched:
        faulty = Faulty(patched, tmp_path / "count", None, 0)
        builders.make_tradeoff(tmp_path / "count", candidates)
    assert {"rename", "replace", "fsync", "mkdir", "open to write", "write"} <= set(faulty.names)
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


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_each_call_of_a_checkpoint_fails_once(tmp_path: Path, every: int) -> None:
    """Training ends with the error, and the next try ends with the bits of one that nothing disturbed."""
    part = builders.examples(tmp_path)
    whole = trained(tmp_path, part, keeper=checkpoints(tmp_path, every=1000)[0])

    def tried(root: Path, failing: int | None) -> Faulty:
        root.mkdir()
        with pytest.MonkeyPatch.context() as patched:
            faulty = Faulty(patched, root, failing, errno.ENOSPC)
            with contextlib.suppress(OSError):
                trained(root, part, until=2)
        return faulty

    calls = tried(tmp_path / "count", None).count
    assert calls > 20
    for failing in range(1, calls + 1, every):
        root = tmp_path / str(failing)
        tried(root, failing)
        keeper, heard = checkpoints(root, every=1000)
        same(whole, trained(root, part, keeper=keeper))
        assert not [line for line in heard.lines if "damaged" in line]
