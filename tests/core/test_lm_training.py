"""Language models: documents that do not see each other, losses that no packing moves, and sizes that compare."""

import math
from typing import Any

import builders
import numpy as np
import pytest
import torch

from capgap_core import lm_losses, lm_model
from capgap_core.lm_batches import LmRows
from capgap_core.lm_recipes import ALONE, LmObjective, Sizes
from capgap_core.lm_rows import Stream
from capgap_core.training import Training, train

CPU = torch.device("cpu")
SMALL = Sizes(layers=2, hidden=32, heads=4, kv_heads=2, neurons=48)
END = 256


def model_of(sizes: Sizes = SMALL, seed: int = 0) -> Any:
    return lm_model.scratch(sizes, vocabulary=END + 1, context=64, end=END, seed=seed)


def documents(*sizes: int, seed: int = 0) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [np.append(draw.integers(0, END, size - 1), END) for size in sizes]


def rows_of(texts: list[np.ndarray], length: int = 16) -> LmRows:
    return LmRows(Stream(np.concatenate(texts), np.cumsum([0, *map(len, texts)]), length))


def recipe(**changes: Any) -> Training:
    held = {
        "steps": 4, "learning_rate": 3e-3, "batch_size": 4, "room": None, "per_epoch": 2, "micro_batch": 4,
        "weight_decay": 0.0, "warmup": 0.1, "clip": 1.0, "dtype": "float32", "seed": 0,
    }  # fmt: skip
    return Training(**{**held, **changes})


def summed(model: Any, rows: LmRows, ask: Any = None, objective: LmObjective = ALONE) -> torch.Tensor:
    """The loss of all rows, as one batch."""
    (terms,) = lm_losses.loss_of(model, ask, objective, dtype="float32")(rows.batch(np.arange(len(rows))), 1)
    return torch.stack([term.total * term.weight for term in terms]).sum()


def lost_on(model: Any, rows: LmRows, byte_lengths: np.ndarray | None = None) -> lm_losses.HeldOut:
    return lm_losses.held_out(model, rows, np.zeros(100, dtype=np.int64), byte_lengths, device=CPU)[lm_losses.ALL]


def test_packed_documents_lose_what_each_loses_alone() -> None:
    model, texts = model_of(), documents(5, 9, 2, 13, 3)
    whole = rows_of(texts, sum(map(len, texts)))
    alone = sum(summed(model, rows_of([text], len(text))).item() for text in texts)
    assert summed(model, whole).item() == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("kind", ["scratch", "gpt_neox", "gpt2"])
def test_no_token_reaches_another_document(kind: str) -> None:
    model = model_of() if kind == "scratch" else builders.decoder(kind, language=True, vocabulary=END + 1)
    texts = documents(7, 8)
    other = [np.append((texts[0][:-1] + 1) % END, END), texts[1]]
    found = [lm_model.said(model, rows_of(held, 14).batch([0]), dtype="float32").hidden for held in (texts, other)]
    assert (found[0][:7] - found[1][:7]).abs().max() > 1e-3
    assert torch.equal(found[0][7:], found[1][7:])


def test_a_document_that_is_cut_goes_on_without_what_was_before() -> None:
    """Rows are what a model sees at once; positions begin anew in each."""
    (text,) = documents(33)
    batch = rows_of([text], 16).batch([1])
    assert batch.position_ids[0].tolist() == list(range(16))


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_accumulation_changes_no_loss_and_no_weight(micro_batch: int) -> None:
    rows = rows_of(documents(40, 30, 3, 2, 50, 61))
    made = []
    for size in (12, micro_batch):
        model = model_of()
        training = recipe(batch_size=12, micro_batch=size)
        loss = lm_losses.loss_of(model, None, ALONE, dtype="float32")
        steps = list(train(model, rows, training, loss, device=CPU, stage="pretrain"))
        made.append(([step.terms[None, "cross_entropy"] for step in steps], model.state_dict()))
    assert made[0][0] == pytest.approx(made[1][0], abs=1e-5)
    for name, weight in made[0][1].items():
        assert torch.allclose(weight, made[1][1][name], atol=2e-4), name


def test_what_is_held_out_is_the_mean_over_targets_whatever_the_rows() -> None:
    model, texts = model_of(), documents(5, 9, 2, 13, 3)
    lengths = np.append(np.ones(END, dtype=np.int64), 0)
    found = [lost_on(model, rows_of(texts, length), lengths) for length in (32, 40)]
    assert found[0].tokens == found[1].tokens == sum(map(len, texts)) - len(texts)
    assert found[0].nats == pytest.approx(found[1].nats, rel=1e-6)
    by_text = []
    for text in texts:
        ids = torch.from_numpy(text)[None]
        by_text.append(model(input_ids=ids, labels=ids).loss.item() * (len(text) - 1))
    assert found[0].nats == pytest.approx(sum(by_text) / found[0].tokens, rel=1e-5)
    seen = sum(len(text) - 2 for text in texts)
    assert found[0].bits_per_byte == pytest.approx(sum(by_text) / math.log(2) / seen, rel=1e-5)


def test_the_error_of_what_is_held_out_is_that_of_a_ratio_of_row_sums() -> None:
    model, rows = model_of(), rows_of(documents(*[17] * 40, seed=3))
    found = lost_on(model, rows)
    draws, by_row = np.random.default_rng(0), []
    for place in range(len(rows)):
        batch = rows.batch([place])
        with torch.no_grad():
            by_row.append(
                (
                    lm_losses._losses(lm_model.said(model, batch, dtype="float32"), batch).sum().item(),
                    int(batch.keep.sum()),
                )
            )
    sums, counts = np.array(by_row).T
    picks = draws.integers(0, len(sums), (4000, len(sums)))
    assert found.stderr == pytest.approx(np.std(sums[picks].sum(1) / counts[picks].sum(1)), rel=0.1)
    assert found.bits_per_byte is None


def test_sources_lose_what_their_documents_lose_and_add_up() -> None:
    model, texts = model_of(), documents(5, 9, 2, 13, 3)
    rows = rows_of(texts, 64)
    found = lm_losses.held_out(model, rows, np.array([0, 2, 2, 0, 2]), None, device=CPU)
    assert set(found) == {lm_losses.ALL, 0, 2}
    for source, members in ((0, (0, 3)), (2, (1, 2, 4))):
        alone = [lost_on(model, rows_of([texts[i]], 16)) for i in members]
        assert found[source].tokens == sum(one.tokens for one in alone)
        total = sum(one.nats * one.tokens for one in alone)
        assert found[source].nats == pytest.approx(total / found[source].tokens, rel=1e-5)
    total = sum(found[source].nats * found[source].tokens for source in (0, 2))
    assert found[lm_losses.ALL].nats == pytest.approx(total / found[lm_losses.ALL].tokens, rel=1e-9)


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_a_model_has_nothing_to_learn_from_itself(divergence: Any) -> None:
    model, rows = model_of(), rows_of(documents(30, 20))
    objective = LmObjective(divergence=divergence)
    loss = summed(model, rows, lambda batch: lm_model.said(model, batch, dtype="float32"), objective)
    assert loss.item() == pytest.approx(0.0, abs=1e-5)
    gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    assert max(gradient.abs().max().item() for gradient in gradients) < 1e-6


def test_the_teacher_gets_no_gradient_and_terms_have_their_weights() -> None:
    teacher, student, rows = model_of(seed=1), model_of(), rows_of(documents(30, 20))
    ask = lambda batch: lm_model.said(teacher, batch, dtype="float32")  # noqa: E731
    both = summed(student, rows, ask, LmObjective(labels=0.3, prediction=0.7))
    each = summed(student, rows), summed(student, rows, ask, LmObjective())
    assert both.item() == pytest.approx(0.3 * each[0].item() + 0.7 * each[1].item(), rel=1e-5)
    both.backward()
    assert all(p.grad is None for p in teacher.parameters())


def test_a_student_learns_what_its_teacher_says() -> None:
    teacher, student, rows = model_of(seed=1), model_of(), rows_of(documents(400))
    ask = lambda batch: lm_model.said(teacher, batch, dtype="float32")  # noqa: E731
    loss = lm_losses.loss_of(student, ask, LmObjective(), dtype="float32")
    steps = list(train(student, rows, recipe(steps=60, learning_rate=1e-2), loss, device=CPU, stage="distil"))
    assert steps[-1].terms[None, "prediction"] < 0.5 * steps[0].terms[None, "prediction"]


def test_a_model_from_scratch_is_its_seed_and_begins_near_the_uniform_loss() -> None:
    one, again, other = model_of(seed=3), model_of(seed=3), model_of(seed=4)
    torch.manual_seed(99)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one.model.embed_tokens.weight, other.model.embed_tokens.weight)
    assert sum(p.numel() for p in one.parameters()) == SMALL.parameters() + (END + 1) * SMALL.hidden
    assert one.lm_head.weight is one.model.embed_tokens.weight
    for hidden in (16, 64, 256):
        model = model_of(Sizes(layers=2, hidden=hidden, heads=4, kv_heads=4, neurons=2 * hidden))
        found = lost_on(model, rows_of(documents(200)))
        assert found.nats == pytest.approx(math.log(END + 1) + 0.5, abs=0.25)
