"""Language models as stages: text that is tokenised once, models from scratch, students, and what they lose."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from texts import text_of, write_text
from transformers import AutoModelForCausalLM, AutoTokenizer

from capgap_core import lm_model, lm_parts, lm_teaching, tables
from capgap_core.build import build
from capgap_core.errors import StageFailed
from capgap_core.lm_recipes import ALONE, LmObjective, Sizes
from capgap_core.progress import Silent
from capgap_core.recipes import Execution
from capgap_core.records import Reference
from capgap_core.stages import pretrain
from capgap_core.training import Training

SMALL = Sizes(layers=1, hidden=32, heads=2, kv_heads=1, neurons=48)


def model_of(
    root: Path,
    text: Reference,
    *,
    steps: int = 30,
    seed: int = 1,
    rate: float = 1e-2,
    inputs: Any = None,
    **changes: Any,
) -> Reference:
    training = Training(
        steps=steps, learning_rate=rate, batch_size=8, room=None, per_epoch=20, micro_batch=8, weight_decay=0.0,
        warmup=0.1, clip=1.0, dtype="float32", seed=seed,
    )  # fmt: skip
    held = {"scratch": SMALL, "length": 32, "rows": 160, "objective": ALONE, "training": training, "seed": seed}
    recipe = pretrain.Recipe(**{**held, **changes})
    execution = Execution(root=str(root), threads=1)
    return build("pretrain", recipe, {"text": text, **(inputs or {})}, execution=execution, progress=Silent())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reference, Reference]:
    root = tmp_path_factory.mktemp("lm")
    text = text_of(root, write_text(root))
    return root, text, model_of(root, text, steps=60)


def test_text_is_kept_in_parts_with_its_sources(made: Any) -> None:
    _, text, _ = made
    facts = text.summary
    assert facts["sources"] == ["day", "night"]
    assert sum(facts["documents"].values()) + facts["repeated"] == 120
    for part, tokens in facts["tokens"].items():
        assert tokens == facts["bytes"][part] + facts["documents"][part], (
            "a byte is a token, and each document has an end"
        )
    whole = lm_parts.rows(text, "train", 32)
    assert whole.lengths.sum() == facts["tokens"]["train"] - facts["documents"]["train"]
    assert len(lm_parts.rows(text, "train", 32, first=5)) == 5


def test_a_model_learns_and_its_folder_loads(made: Any) -> None:
    root, _, model = made
    steps = [row["value"] for row in tables.read(model.table("steps"))]
    assert steps[0] == pytest.approx(math.log(257) + 0.5, abs=0.4)
    assert steps[-1] < 2.5
    held = tables.read(model.table("held_out"))
    assert {(row["part"], row["source"]) for row in held} == {
        (part, source) for part in ("valid", "test") for source in (None, "day", "night")
    }
    for part in ("valid", "test"):
        own = {row["source"]: row for row in held if row["part"] == part}
        assert own[None]["tokens"] == own["day"]["tokens"] + own["night"]["tokens"]
        both = sum(own[name]["nats"] * own[name]["tokens"] for name in ("day", "night"))
        assert own[None]["nats"] == pytest.approx(both / own[None]["tokens"], rel=1e-9)
        assert own[None]["nats"] == model.summary[f"nats_{part}"]
    loaded = AutoModelForCausalLM.from_pretrained(model.folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(model.folder / "model")
    ids = torch.tensor([tokenizer("the sun")["input_ids"]])
    assert loaded(input_ids=ids).logits.shape == (1, 7, 257)
    assert model.summary["non_embedding"] == SMALL.parameters()
    assert root.exists()


def test_tokens_are_counted_once_and_again(made: Any) -> None:
    root, text, model = made
    facts = model.summary
    assert facts["tokens"] == pytest.approx(facts["epochs"] * facts["unique_tokens"], rel=1e-3)
    assert facts["tokens_per_parameter"] == pytest.approx(facts["tokens"] / SMALL.parameters(), abs=1e-4)
    few = model_of(root, text, steps=2, rows=160)
    assert few.summary["epochs"] < 1
    assert few.summary["unique_tokens"] == few.summary["tokens"]


def test_a_student_learns_from_its_teacher_and_may_begin_as_a_model(made: Any) -> None:
    root, text, teacher = made
    inputs = {"teacher": teacher}
    student = model_of(root, text, steps=30, seed=2, inputs=inputs, objective=LmObjective())
    alone = model_of(root, text, steps=30, seed=2)
    assert student.digest != alone.digest
    assert student.summary["nats_valid"] == pytest.approx(alone.summary["nats_valid"], abs=0.5)
    more = {"scratch": None, "objective": LmObjective(labels=0.5, prediction=0.5)}
    again = model_of(root, text, steps=1, rate=1e-6, inputs={**inputs, "start": teacher}, **more)
    assert again.summary["nats_valid"] == pytest.approx(teacher.summary["nats_valid"], abs=0.05)
    terms = {row["term"] for row in tables.read(again.table("steps"))}
    assert terms == {"cross_entropy", "prediction"}


def test_a_teacher_is_asked_once_for_all_its_students(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    root, text, teacher = made
    inputs, more = {"teacher": teacher}, {"objective": LmObjective(), "seed": 3}
    live = model_of(root, text, steps=6, rows=40, inputs=inputs, **more)
    asked: list[int] = []
    said = lm_model.said

    def counted(model: Any, batch: Any, **how: Any) -> Any:
        if not model.training and not next(model.parameters()).requires_grad:
            asked.append(len(batch.index))
        return said(model, batch, **how)

    monkeypatch.setattr("capgap_core.lm_model.said", counted)
    kept = {"keep": "float32", "source": pretrain.Kept(rows=100)}
    once = model_of(root, text, steps=6, rows=40, inputs=inputs, **more, **kept)
    assert sum(asked) == 112, "of 100 rows, and then to a multiple of 16"
    assert once.summary["nats_valid"] == pytest.approx(live.summary["nats_valid"], abs=1e-5)
    asked.clear()
    other = model_of(root, text, steps=6, rows=100, seed=4, inputs=inputs, objective=LmObjective(), **kept)
    assert not asked
    assert other.digest != once.digest
    wider = model_of(root, text, steps=6, rows=40, inputs=inputs, **more, **{**kept, "source": pretrain.Kept(rows=150)})
    assert wider.reused, "where outputs lie moves no result"


def test_what_is_kept_of_a_row_depends_on_no_other_student(made: Any, tmp_path: Path) -> None:
    root, text, teacher = made
    found = []
    for rows in (40, 150):
        rows_seen = lm_parts.rows(text, "train", 32, first=-(-rows // 16) * 16)
        where = lm_teaching.Keeping(
            execution=Execution(root=str(tmp_path), threads=1), progress=Silent(), device=torch.device("cpu")
        )
        ask = lm_teaching.asked("llama", teacher, rows_seen, dtype="float32", keep="float32", where=where)
        answer = ask(rows_seen.batch(np.arange(48)))
        assert not isinstance(answer, torch.Tensor)
        found.append(answer[0])
    assert torch.equal(*found)
    assert root.exists()


def test_the_same_recipe_gives_the_same_bytes(made: Any, tmp_path: Path) -> None:
    root, text, _ = made
    first, second = model_of(root, text, steps=3), model_of(tmp_path, text, steps=3)
    assert first.digest == second.digest
    assert not second.reused
    assert model_of(root, text, steps=3).reused


def test_a_trained_tokenizer_makes_fewer_tokens(made: Any) -> None:
    root, text, _ = made
    bpe = text_of(root, root / "text.jsonl", tokenizer="trained", vocabulary=300)
    assert bpe.summary["vocabulary"] == 300
    assert bpe.summary["tokens"]["train"] < 0.5 * text.summary["tokens"]["train"]
    small = model_of(root, bpe, steps=5)
    held = next(row for row in tables.read(small.table("held_out")) if row["part"] == "valid" and row["source"] is None)
    bytes_seen = held["nats"] * held["tokens"] / math.log(2) / held["bits_per_byte"]
    assert 0 < bytes_seen <= bpe.summary["bytes"]["valid"]


def test_text_that_has_changed_is_refused(tmp_path: Path) -> None:
    path = write_text(tmp_path)
    with pytest.raises(StageFailed, match="the text has changed"):
        text_of(tmp_path, path, content="other")
