"""The embedded data set: sizes, masks, and parts that share nothing."""

import re
from collections import Counter
from pathlib import Path

import pytest

from capgap_core.corpus import Corpus
from capgap_core.errors import InputFaults
from capgap_core.pydocs import PACKAGES, SOURCES, read_pydocs
from capgap_core.splits import overlapping


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return read_pydocs()


def test_it_has_twenty_balanced_classes_in_both_parts(corpus: Corpus) -> None:
    assert len(set(PACKAGES)) == 20
    assert not set(PACKAGES) & {"test", "idlelib", "tkinter", "distutils", "lib2to3", "turtle"}
    for part, fewest in (("train", 2500), ("eval", 300), ("selection", 300)):
        counts = Counter(corpus.parts[part].labels)
        assert set(counts) == set(range(20))
        assert counts.total() >= fewest
        assert max(counts.values()) <= 0.12 * counts.total()


def test_a_definition_is_in_one_part_only(corpus: Corpus) -> None:
    parts = [set(part.files) for part in corpus.parts.values()]
    assert sum(map(len, parts)) == len(set.union(*parts))


def test_the_parts_share_no_paragraph(corpus: Corpus) -> None:
    train, selection, held_out = (corpus.parts[part].texts for part in ("train", "selection", "eval"))
    assert not overlapping(selection, train)
    assert not overlapping(held_out, [[*train[0], *selection[0]]])


def test_no_paragraph_names_its_package(corpus: Corpus) -> None:
    for part in corpus.parts.values():
        for text, label in zip(part.texts[0], part.labels, strict=True):
            for name in {PACKAGES[int(label)], SOURCES.get(PACKAGES[int(label)], PACKAGES[int(label)])}:
                assert not re.search(rf"\b{name}\b", text, re.IGNORECASE)


def test_it_is_the_same_every_time(corpus: Corpus) -> None:
    assert read_pydocs() == corpus


def test_a_library_without_sources_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(InputFaults, match="has none"):
        read_pydocs(tmp_path)


def test_masks_and_dedupes(tmp_path: Path) -> None:
    for package in PACKAGES:
        inside = f"It is {package.title()} and {package}.part.name that say what number {package[::-1]} would be."
        text = '"""Every package of this library says the same here.\n\n'
        text += f'    >>> {package} is not a paragraph but code to run\n"""\n'
        text += f'def a():\n    """{inside}\n\n    {inside}\n    """\n'
        text += f'def b():\n    def a():\n        """{inside}\n\n        {inside}\n        """\n'
        (tmp_path / f"{SOURCES.get(package, package)}.py").write_text(text, encoding="utf-8")
    texts = [text for part in read_pydocs(tmp_path).parts.values() for text in part.texts[0]]
    said = [f"It is PACKAGE and PACKAGE that say what number {package[::-1]} would be." for package in PACKAGES]
    assert sorted(texts) == sorted(f"a: {one} {one}" for one in said)
