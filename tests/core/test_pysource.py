"""The embedded text for language models: what it is made of, and parts that share nothing and stay the same."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from capgap_core.documents import HELD_OUT, Document, LmText, digest_of, held_out, shuffled
from capgap_core.errors import InputFaults
from capgap_core.library import files
from capgap_core.pysource import CODE, MODULES, REFERENCE, TOPICS, read_pysource


@pytest.fixture(scope="module")
def made() -> LmText:
    return read_pysource()


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A small library that has every module, and two topics one of which holds the other."""
    for number, name in enumerate(MODULES):
        (tmp_path / f"{name}.py").write_text(f"# the module of number {number}\nname = '{name}'\n", encoding="utf8")
    for name in ("string", "typing"):
        (tmp_path / f"{name}.py").write_text("the = 'same'\n", encoding="utf8")
    (tmp_path / "struct.py").write_text(" \n", encoding="utf8")
    (tmp_path / "json.py").unlink()
    (tmp_path / "json" / "tests").mkdir(parents=True)
    (tmp_path / "json" / "__init__.py").write_bytes(b"# -*- coding: latin-1 -*-\r\nwhat = '\xe9'\r\n")
    (tmp_path / "json" / "tests" / "one.py").write_text("a = 'test'\n", encoding="utf8")
    topics = {
        f"topic{n}": f"Topic\n*****\n\nIt says of number {n} what nobody else would say here.\n" for n in range(60)
    }
    topics["section"] = "Section\n*******\n\nEvery word of this stands in another topic as well.\n"
    topics["chapter"] = topics["section"].replace("*", "=") + "\nAnd this is what only the longer of both has to say.\n"
    (tmp_path / "pydoc_data").mkdir()
    (tmp_path / TOPICS).write_text(f"# made\ntopics = {topics!r}\n", encoding="utf8")
    return tmp_path


def everything(made: LmText) -> list[Document]:
    return [one for documents in made.parts.values() for one in documents]


def test_each_part_has_its_share_and_both_sources(made: LmText) -> None:
    assert list(made.parts) == ["train", "valid", "test"]
    assert sum(made.sizes.values()) > 6_000_000
    for source, fewest in ((CODE, 6_000_000), (REFERENCE, 300_000)):
        mine = {
            part: sum(len(one.text.encode()) for one in documents if one.source == source)
            for part, documents in made.parts.items()
        }
        whole = sum(mine.values())
        assert whole > fewest
        assert mine["valid"] / whole == pytest.approx(HELD_OUT, abs=0.01)
        assert mine["test"] / whole == pytest.approx(HELD_OUT, abs=0.01)
    assert {one.source for one in everything(made)} == {CODE, REFERENCE}


def test_no_document_stands_twice_and_none_names_a_machine(made: LmText) -> None:
    found = everything(made)
    assert len({one.text for one in found}) == len({one.path for one in found}) == len(found)
    for one in found:
        assert one.text.strip()
        assert one.path.split("/")[0].split(".")[0] in (*MODULES, "pydoc_data")
        assert {"test", "tests"}.isdisjoint(one.path.split("/"))


def test_the_modules_are_those_of_the_library() -> None:
    unwanted = {"test", "idlelib", "tkinter", "distutils", "lib2to3", "turtle", "ensurepip", "antigravity", "encodings"}
    assert not unwanted & set(MODULES)
    assert set(MODULES) <= set(sys.stdlib_module_names)
    assert len(set(MODULES)) == len(MODULES)


def test_it_is_the_same_in_another_process(made: LmText) -> None:
    code = "from capgap_core.pysource import read_pysource as r; m = r(); print(m.digest, *m.sizes.values())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [made.digest, *map(str, made.sizes.values())]
    assert platform.python_version() in made.notes[0]


def test_what_is_left_out_is_counted(library: Path) -> None:
    made = read_pysource(library)
    found = {one.path: one for one in everything(made)}
    assert made.empty == 1
    assert made.repeated == 2
    assert {"struct.py", "typing.py", f"{TOPICS}:section", "json/tests/one.py"}.isdisjoint(found)
    assert {"string.py", f"{TOPICS}:chapter"} <= set(found)
    assert found["json/__init__.py"].text == "# -*- coding: latin-1 -*-\nwhat = 'é'\n"
    assert len(found) == len(MODULES) - 2 + 61


def test_every_module_without_sources_is_named(library: Path) -> None:
    for name in ("abc.py", "zipfile.py", TOPICS):
        (library / name).unlink()
    with pytest.raises(InputFaults, match=r"has none for abc, zipfile, pydoc_data/topics\.py"):
        read_pysource(library)
    assert files(library, "abc") == []


# Which documents are held out


def test_a_side_is_drawn_by_the_name_alone() -> None:
    sizes = {f"document {n}": 100 + n % 7 for n in range(400)}
    drawn = held_out(sizes, seed="a")
    assert held_out(dict(reversed(sizes.items())), seed="a") == drawn
    assert held_out(sizes, seed="b") != drawn
    for part in ("valid", "test"):
        assert sum(sizes[name] for name, owner in drawn.items() if owner == part) == pytest.approx(
            HELD_OUT * sum(sizes.values()), rel=0.06
        )
    assert held_out(sizes, seed="a", parts=["test"]).keys() == {name for name, part in drawn.items() if part == "valid"}
    grown = held_out({**sizes, "document 3": 4000}, seed="a")
    assert len(grown.items() ^ drawn.items()) < 10
    halved = held_out({name: size // (1 + (drawn.get(name) == "valid")) for name, size in sizes.items()}, seed="a")
    assert len(halved) > len(drawn)
    assert all(halved[name] == drawn[name] for name in halved.keys() & drawn.keys())


def test_a_few_large_documents_are_held_out_too() -> None:
    drawn = held_out({"a": 10, "b": 20, "c": 30}, seed="0")
    assert drawn == {"a": "valid", "b": "test"}


def test_an_order_is_drawn_by_the_seed_and_moves_no_document(made: LmText) -> None:
    one, again, other = (shuffled(made.parts, seed) for seed in (1, 1, 2))
    assert one == again
    for part, documents in made.parts.items():
        assert documents != one[part] != other[part]
        assert sorted(one[part], key=lambda d: d.path) == sorted(documents, key=lambda d: d.path)


def test_the_digest_is_of_texts_and_sources() -> None:
    parts = {"train": [Document("ab", "s", "p"), Document("c", "s", "p")]}
    digest = digest_of(parts)
    assert digest_of({"train": [Document("ab", "s", "other"), Document("c", "s", "p")]}) == digest
    for changed in (
        {"train": [Document("a", "s", "p"), Document("sc", "b", "p")]},
        {"train": [Document("ab", "t", "p"), Document("c", "s", "p")]},
        {"train": parts["train"][:1], "valid": parts["train"][1:]},
        {"test": parts["train"]},
    ):
        assert digest_of(changed) != digest
