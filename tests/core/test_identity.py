"""Identity and fingerprint: what is alike has one name in every process, what is not has another."""

import ast
import random
import subprocess
import sys
from enum import Enum
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from pydantic import BaseModel, ConfigDict

from capgap_core import fingerprint, identity, syntax
from capgap_core.stages import distil

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


class Small(BaseModel):
    model_config = ConfigDict(frozen=True)

    steps: int
    rate: float = 0.5
    source: str = "here"


class Colour(Enum):
    RED = "red"


def name_of(recipe: BaseModel, **inputs: str) -> str:
    return identity.identity_of("distil", recipe, inputs)


def exact(value: object) -> str:
    """A second source for "the same": types are told apart, floats to the last bit."""
    if isinstance(value, float):
        return f"float {value.hex()}"
    if isinstance(value, list):
        return f"list {[exact(v) for v in value]}"
    if isinstance(value, dict):
        return f"dict {sorted((k, exact(v)) for k, v in value.items())}"
    return f"{type(value).__name__} {value!r}"


@given(plain, plain)
def test_values_are_canonical_alike_exactly_when_they_are_the_same(a: object, b: object) -> None:
    assert (repr(identity.canonical(a)) == repr(identity.canonical(b))) == (exact(a) == exact(b))


@pytest.mark.parametrize("near", [0, False, "0", None, [], "", -1])
def test_near_misses_differ_from_float_zero(near: object) -> None:
    assert identity.canonical(near) != identity.canonical(0.0)


def test_an_enum_is_its_value_and_a_tuple_is_a_list() -> None:
    assert identity.canonical(Colour.RED) == "red"
    assert identity.canonical((1, 2)) == identity.canonical([1, 2])


@pytest.mark.parametrize("bad", [{1, 2}, float("nan"), float("inf"), print, object(), {1: 2}])
def test_what_has_no_meaning_is_refused(bad: object) -> None:
    with pytest.raises(TypeError, match="cannot hash"):
        identity.canonical(bad)


def test_recipe_inputs_and_stage_each_move_the_identity_and_a_place_does_not() -> None:
    base = name_of(Small(steps=3), teacher="a")
    assert base != name_of(Small(steps=4), teacher="a")
    assert base != name_of(Small(steps=3), teacher="b")
    assert base != identity.identity_of("teacher", Small(steps=3), {"teacher": "a"})
    assert base == name_of(Small(steps=3, source="there"), teacher="a")


def test_a_field_at_its_default_does_not_move_the_identity() -> None:
    class Older(BaseModel):
        steps: int
        source: str = "here"

    assert name_of(Small(steps=3)) == name_of(Older(steps=3))
    assert name_of(Small(steps=3, rate=0.25)) != name_of(Older(steps=3))


trainings = st.fixed_dictionaries({
    "steps": st.sampled_from([1, 2]), "learning_rate": st.sampled_from([1e-3, 1e-3 + 1e-19, 0.1]),
    "batch_size": st.sampled_from([1, 2]), "micro_batch": st.sampled_from([1, 2]),
    "room": st.sampled_from([None, 32]), "per_epoch": st.sampled_from([1, 2]),
    "weight_decay": st.sampled_from([0.0, -0.0, 1.0]), "warmup": st.sampled_from([0.0, 0.1]),
    "clip": st.sampled_from([1.0, 5.0]), "dtype": st.sampled_from(["float32", "bfloat16"]),
    "seed": st.sampled_from([1, 2]),
})  # fmt: skip
distillations = st.builds(
    lambda family, temperature, training, keep, reverse: distil.Recipe.model_validate({
        "family": family, "objective": {"temperature": temperature}, "keep": keep,
        "training": dict(reversed(training.items())) if reverse else training,
    }),
    st.sampled_from(["bert", "other"]), st.sampled_from([1.0, 2.0]), trainings,
    st.sampled_from([None, "bfloat16"]), st.booleans(),
)  # fmt: skip


@given(distillations, distillations)
def test_recipes_have_one_identity_exactly_when_they_are_the_same(a: distil.Recipe, b: distil.Recipe) -> None:
    """Whatever the order in which their fields were given; -0.0 and 0.0 are told apart, which only costs a run."""
    same = exact(a.model_dump()) == exact(b.model_dump())
    assert (name_of(a, teacher="t") == name_of(b, teacher="t")) == same


@given(st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3), st.randoms())
def test_the_order_of_inputs_does_not_move_the_identity(inputs: dict[str, str], draw: random.Random) -> None:
    turned = list(inputs.items())
    draw.shuffle(turned)
    assert name_of(Small(steps=3), **inputs) == name_of(Small(steps=3), **dict(turned))


def test_the_identity_is_the_same_in_another_process() -> None:
    code = (
        "from capgap_core.stages.tradeoff import Recipe; from capgap_core.identity import identity_of;"
        "r = Recipe(lam=0.2, metric_scale='raw', metric='accuracy', target=0.1,"
        " achieved={'0.5': 0.51, '0.1': 0.1}, chance=0.5);"
        "print(identity_of('tradeoff', r, {'b': '2', 'a': '1'}))"
    )
    root = str(Path(identity.__file__).parents[1])
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": root},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1


def fingerprint_of(source: str) -> str:
    return fingerprint._fingerprint_of(source)


BASE = 'def f(x):\n    if x < 1:\n        raise ValueError(f"bad {x}")\n    return x * 2\n'


@pytest.mark.parametrize(
    "words",
    [
        BASE.replace("x * 2", "x * 2  # twice"),
        BASE.replace("def f(x):\n", 'def f(x):\n    """Double it."""\n'),
        BASE.replace("bad {x}", "x = {x}: must be 1 or more"),
        '"""A module."""\n' + BASE,
        BASE + '\nTABLE = 3\n"""What it is for."""\n'.replace("TABLE = 3\n", ""),
    ],
)  # fmt: skip
def test_words_do_not_change_the_code(words: str) -> None:
    assert fingerprint_of(words) == fingerprint_of(BASE)


def test_the_description_of_a_field_does_not_change_the_code() -> None:
    field = 'x: int = Field(default=1, ge=0, description="How many.")\n'
    assert fingerprint_of(field) == fingerprint_of(field.replace("How many", "How many there are"))
    assert fingerprint_of(field) != fingerprint_of(field.replace("ge=0", "ge=1"))


@pytest.mark.parametrize(
    "change", [("x * 2", "x * 3"), ("x < 1", "x <= 1"), ("ValueError", "TypeError"), ("f(x)", "f(x, y=1)")]
)
def test_anything_else_does(change: tuple[str, str]) -> None:
    assert fingerprint_of(BASE.replace(*change)) != fingerprint_of(BASE)


def test_a_stage_holds_the_modules_it_imports_and_no_neutral_ones() -> None:
    _, distil = fingerprint.code_of("distil", ["families.bert"])
    assert {
        "stages.distil",
        "training",
        "steps",
        "losses",
        "models",
        "slimming",
        "families.bert",
        "families.capgap_bert",
    } <= set(distil)
    assert not set(distil) & fingerprint.NEUTRAL
    assert "splits" not in distil
    assert "tradeoff" not in distil
    _, choice = fingerprint.code_of("tradeoff")
    assert "tradeoff" in choice
    assert "training" not in choice


def test_the_closure_is_what_python_really_imports() -> None:
    """The second source: what a fresh process has loaded after importing the stage."""
    code = (
        "import sys, capgap_core.stages.distil, capgap_core.families.bert;"
        "print(*[m for m in sys.modules if m.startswith('capgap_core.')])"
    )
    root = str(Path(identity.__file__).parents[1])
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    ).stdout.split()
    modules = {m.removeprefix("capgap_core.") for m in loaded} - {"families", "stages"} - fingerprint.NEUTRAL
    _, held = fingerprint.code_of("distil", ["families.bert"])
    assert modules == set(held)


def test_a_tree_that_another_thread_spoilt_is_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    told = ["AST constructor recursion depth mismatch (before=66, after=74)"]

    def parse(source: str) -> ast.Module:
        if told:
            raise SystemError(told.pop())
        return real(source)

    real = ast.parse
    monkeypatch.setattr(ast, "parse", parse)
    assert ast.dump(syntax.tree_of("a = 1")) == ast.dump(real("a = 1"))
    told += ["something else"]
    with pytest.raises(SystemError, match="something else"):
        syntax.tree_of("a = 1")
