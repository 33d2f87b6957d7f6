"""What a user may ask for comes back the same from JSON, from the command that a report prints, and part by part."""

import shlex
from typing import Any

from hypothesis import given, strategies as st

from capgap_core.method import command_of
from capgap_core.recipes import Minidisc
from flows.params import gather

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
positive = st.floats(1e-6, 1.0, exclude_min=True)
training: dict[str, st.SearchStrategy[Any]] = {
    "epochs": st.none() | positive, "learning_rate": st.none() | positive, "batch_size": st.none() | st.integers(1, 99),
    "micro_batch": st.none() | st.integers(1, 99), "warmup": st.floats(0, 0.99), "clip": positive,
    "dtype": st.sampled_from(["auto", "float32", "bfloat16"]),
}  # fmt: skip


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


asked = some(
    dataset=words, teacher=words, seed=st.integers(0, 2**31 - 1), protocol=st.sampled_from(["capgap", "paper"]),
    data=some(
        text_columns=st.none() | st.lists(words, min_size=1, max_size=2), label_column=st.none() | words,
        splits=st.none() | st.dictionaries(st.sampled_from(["train", "eval", "dev"]), words, max_size=3),
        max_length=st.integers(8, 512),
    ),
    teacher_recipe=some(**training, hidden=st.integers(16, 4096)),
    sandwich=some(grid=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4, unique=True), **training),
    tradeoff=some(lam=st.floats(0, 100)),
    student=some(scale=st.floats(0.01, 0.99), controls=st.booleans(), **training),
)  # fmt: skip


@given(asked)
def test_json_gives_the_same_recipe(parameters: dict[str, Any]) -> None:
    recipe = Minidisc.model_validate(parameters)
    assert Minidisc.model_validate_json(recipe.model_dump_json()) == recipe


@given(asked)
def test_the_command_of_a_report_asks_for_the_same_recipe(parameters: dict[str, Any]) -> None:
    """Through a shell's words and the reader of ``-p``: texts that look like numbers or JSON among them."""
    recipe = Minidisc.model_validate(parameters)
    program, run, name, *pairs = shlex.split(command_of("minidisc", recipe))
    assert (program, run, name) == ("capgap", "run", "minidisc")
    assert pairs[::2] == ["-p"] * (len(pairs) // 2)
    given_back, faults = gather(pairs[1::2], None)
    assert faults == []
    assert Minidisc.model_validate(given_back) == recipe
