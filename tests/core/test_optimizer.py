"""Rows of a large table that move when they are needed end where AdamW takes them that moves all at every step."""

import copy
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import builders
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cut_off import checkpoints, same
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from capgap_core import optimizer as optimizers
from capgap_core.batches import Batch, Examples
from capgap_core.checkpoints import Checkpoints
from capgap_core.families import bert_rows
from capgap_core.optimizer import AdamW
from capgap_core.outputs import Computed
from capgap_core.training import LossOf, Step, Term, train

CPU = torch.device("cpu")
ROWS, WIDTH, STEPS, DECAY = 5000, 8, 320, 0.01
LONELY = 4999
"""A row that is looked up in the steps of ``VISITS`` and in no other."""
VISITS = (40, 43, 300)
UNSEEN = 4990
"""Rows from this one to the one before ``LONELY`` are never looked up."""


def rates(steps: int = STEPS, peak: float = 5e-3) -> list[float]:
    """Return a rate that rises for a tenth of the steps and falls to nearly nothing."""
    rising = steps // 10
    return [peak * min(s / rising, (steps - s + 1) / (steps - rising + 1)) for s in range(1, steps + 1)]


def lookups(steps: int = STEPS, *, seed: int = 0) -> list[Tensor]:
    """Return the rows of each step: some often, most seldom, several twice in one step."""
    draw = np.random.default_rng(seed)
    drawn = [np.minimum(draw.zipf(1.3, size=96), UNSEEN) - 1 for _ in range(steps)]
    spread = [draw.integers(0, UNSEEN, size=32) for _ in range(steps)]
    lonely = [[LONELY] if step in VISITS else [] for step in range(1, steps + 1)]
    return [torch.from_numpy(np.concatenate(held).astype(np.int64)) for held in zip(drawn, spread, lonely, strict=True)]


class Model(nn.Module):
    """A large table and a small layer; the gradient of each depends on the weights of the other."""

    def __init__(self, *, sparse: bool, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(1)
        self.table = nn.Embedding(ROWS, WIDTH, sparse=sparse)
        self.last = nn.Linear(WIDTH, 4)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
        self.to(dtype)

    def pull(self, rows: Tensor, step: int, *, scale: float = 1.0) -> None:
        """Leave the gradients of a step; some rows are pulled a thousand times as hard as others."""
        draw = torch.Generator().manual_seed(step)
        target = torch.randn(len(rows), 4, generator=draw).to(self.last.weight.dtype)
        weight = scale * torch.logspace(-1.5, 1.5, 7, dtype=target.dtype)[rows % 7]
        (weight[:, None] * (self.last(self.table(rows)) - target).square()).sum().backward()


def taken(model: Model, optimizer: AdamW, rows: Tensor, step: int, *, scale: float = 1.0) -> None:
    """Take one step of the lazy optimizer as a training does."""
    optimizer.ready(rows.unique(), step - 1)
    model.pull(rows, step, scale=scale)
    optimizer.gradients()
    optimizer.step_to(step)


class Dense:
    """A twin of the model that torch's own optimizer trains."""

    def __init__(self, *, decay: float = DECAY, scale: float = 1.0) -> None:
        self.model, self._scale = Model(sparse=False), scale
        self._adamw = torch.optim.AdamW(
            [
                {"params": [self.model.table.weight, self.model.last.weight], "weight_decay": decay},
                {"params": [self.model.last.bias], "weight_decay": 0.0},
            ],
            betas=(0.9, 0.999), eps=1e-8, fused=True,
        )  # fmt: skip

    def take(self, rows: Tensor, step: int, rate: float) -> None:
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.zero_grad()
        self.model.pull(rows, step, scale=self._scale)
        self._adamw.step()


def off(found: Tensor, expected: Tensor, began: Tensor) -> float:
    """Return by how much the row that is furthest off is, as a share of the mean movement of a row."""
    found, expected, began = found.detach(), expected.detach(), began.detach()
    return float((found - expected).norm(dim=-1).max() / (expected - began).norm(dim=-1).mean())


@pytest.mark.parametrize(("sparse", "decay"), [(True, DECAY), (False, DECAY), (True, 0.0)])
def test_all_rows_end_where_those_of_torchs_own_adamw_do(sparse: bool, decay: float) -> None:
    """Each row that is looked up is there before it is, also after hundreds of steps without."""
    start, model, dense = Model(sparse=sparse), Model(sparse=sparse), Dense(decay=decay)
    optimizer = AdamW(model, rates(), decay=decay)
    assert [id(table) for table in optimizer.tables] == [id(model.table.weight)]
    visited = 0
    for step, (rows, rate) in enumerate(zip(lookups(), rates(), strict=True), 1):
        optimizer.ready(rows.unique(), step - 1)
        ours, theirs, began = (m.table(rows) for m in (model, dense.model, start))
        assert step < 20 or off(ours, theirs, began) < 1e-3, step
        if step in VISITS[1:]:
            visited += 1
            assert off(ours[-1:], theirs[-1:], began[-1:]) < 1e-3, step
        taken(model, optimizer, rows, step)
        dense.take(rows, step, rate)
    assert visited == 2
    optimizer.finish(STEPS)
    ends = [dict(m.named_parameters()) for m in (model, dense.model, start)]
    for name, ours in ends[0].items():
        assert off(ours, ends[1][name], ends[2][name]) < 1e-3, name


@pytest.mark.parametrize(("scale", "most"), [(1e-3, 2e-3), (1e-5, 2e-2)])
def test_gradients_so_small_that_epsilon_counts_are_followed_less_closely(scale: float, most: float) -> None:
    """Those of a row that is pulled at least are of the size of ε itself at last."""
    start, model, dense = Model(sparse=True), Model(sparse=True), Dense(scale=scale)
    optimizer = AdamW(model, rates(), decay=DECAY)
    for step, (rows, rate) in enumerate(zip(lookups(), rates(), strict=True), 1):
        taken(model, optimizer, rows, step, scale=scale)
        dense.take(rows, step, rate)
    optimizer.finish(STEPS)
    ours, theirs, began = (m.table.weight.detach() for m in (model, dense.model, start))
    assert float((ours - theirs).norm() / (theirs - began).norm()) < most


def test_rows_lag_behind_until_they_are_needed() -> None:
    """What makes this fast: a row that no batch looks up is not touched."""
    model, start = Model(sparse=True), Model(sparse=True)
    optimizer = AdamW(model, rates(), decay=DECAY)
    for step, rows in enumerate(lookups()[:60], 1):
        taken(model, optimizer, rows, step)
    after = model.table.weight.detach().clone()
    assert torch.equal(after[UNSEEN:LONELY], start.table.weight[UNSEEN:LONELY])
    optimizer.ready(torch.tensor([5, LONELY]), 60)
    moved = (model.table.weight != after).any(dim=1).nonzero()[:, 0].tolist()
    assert LONELY in moved
    assert set(moved) <= {5, LONELY}
    optimizer.finish(60)
    assert bool((model.table.weight != start.table.weight).all())
    once = model.table.weight.detach().clone()
    optimizer.finish(60)
    optimizer.ready(torch.arange(ROWS), 60)
    assert torch.equal(model.table.weight, once), "a row is moved once"


def test_rows_that_are_never_looked_up_only_decay() -> None:
    model, start = Model(sparse=True), Model(sparse=True)
    optimizer = AdamW(model, rates(), decay=0.1)
    for step, rows in enumerate(lookups(), 1):
        taken(model, optimizer, rows, step)
    optimizer.finish(STEPS)
    share = float(np.prod([1 - 0.1 * rate for rate in rates()]))
    assert share < 0.95
    expected = start.table.weight[UNSEEN:LONELY] * share
    assert torch.allclose(model.table.weight[UNSEEN:LONELY], expected, rtol=1e-12, atol=0.0)


def test_in_single_precision_it_is_the_same_but_for_rounding() -> None:
    ends = []
    for dtype in (torch.float32, torch.float64):
        model, start = Model(sparse=True, dtype=dtype), Model(sparse=True, dtype=dtype)
        optimizer = AdamW(model, rates(), decay=DECAY)
        for step, rows in enumerate(lookups(), 1):
            taken(model, optimizer, rows, step)
        optimizer.finish(STEPS)
        ends.append((model.table.weight.detach().double(), start.table.weight.detach().double()))
    (single, _), (double, began) = ends
    assert float((single - double).norm() / (double - began).norm()) < 1e-4


def test_dense_gradients_of_a_large_table_give_the_same() -> None:
    ends = []
    for sparse in (True, False):
        model = Model(sparse=sparse)
        optimizer = AdamW(model, rates(), decay=DECAY)
        for step, rows in enumerate(lookups()[:80], 1):
            optimizer.ready(rows.unique(), step - 1)
            model.pull(rows, step)
            assert model.table.weight.grad is not None
            assert model.table.weight.grad.is_sparse == sparse
            held = optimizer.gradients()
            assert max(len(grad) for grad in held) <= len(rows), "whoever takes the norm sees the rows of the batch"
            optimizer.step_to(step)
            assert model.table.weight.grad is None
        optimizer.finish(80)
        ends.append(model)
    assert torch.allclose(ends[0].table.weight, ends[1].table.weight, rtol=0.0, atol=1e-12)
    assert torch.allclose(ends[0].last.weight, ends[1].last.weight, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("sparse", [True, False])
def test_what_gradients_returns_is_what_the_step_takes(sparse: bool) -> None:
    """Two micro-batches look up the same row; what is scaled is scaled in the step."""
    model = Model(sparse=sparse)
    optimizer, rows = AdamW(model, rates(), decay=0.0), torch.tensor([3, 8, 3])
    for _ in range(2):
        model.table(rows).sum().backward()
    model.last.weight.sum().backward()
    held = optimizer.gradients()
    assert sorted(tuple(grad.shape) for grad in held) == [(2, WIDTH), (4, WIDTH)]
    norm = float(torch.nn.utils.get_total_norm(held))
    assert norm == pytest.approx((WIDTH * (4**2 + 2**2) + 4 * WIDTH) ** 0.5)
    for grad in held:
        grad.zero_()
    before = copy.deepcopy(model.state_dict())
    optimizer.step_to(1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_state_that_is_put_back_goes_on_with_the_same_bits(dtype: torch.dtype) -> None:
    model = Model(sparse=True, dtype=dtype)
    optimizer = AdamW(model, rates(), decay=DECAY)
    for step, rows in enumerate(lookups()[:150], 1):
        taken(model, optimizer, rows, step)
    weights, held = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    for step, rows in enumerate(lookups()[150:], 151):
        taken(model, optimizer, rows, step)
    optimizer.finish(STEPS)
    again = Model(sparse=True, dtype=dtype)
    again.load_state_dict(weights)
    other = AdamW(again, rates(), decay=DECAY)
    other.load_state_dict(held)
    for step, rows in enumerate(lookups()[150:], 151):
        taken(again, other, rows, step)
    other.finish(STEPS)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_which_tables_are_large() -> None:
    def tables(rows: int, *, frozen: bool = False) -> int:
        model = nn.Sequential(nn.Embedding(rows, 2), nn.Linear(2, optimizers.LARGE))
        model.requires_grad_(not frozen)
        model[1].requires_grad_(True)
        return len(AdamW(model, [1e-3], decay=0.0).tables)

    assert tables(optimizers.LARGE) == 1
    assert tables(optimizers.LARGE - 1) == 0
    assert tables(optimizers.LARGE, frozen=True) == 0


@pytest.mark.parametrize("tied", [True, False])
def test_a_table_that_is_the_output_matrix_is_moved_in_every_step(tied: bool) -> None:
    """Every row of it has a gradient in every step: to find and gather them is work for nothing."""
    config = LlamaConfig(
        vocab_size=optimizers.LARGE, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, tie_word_embeddings=tied,
    )  # fmt: skip
    optimizer = AdamW(LlamaForCausalLM(config), [1e-3], decay=0.0)
    assert len(optimizer.tables) == (0 if tied else 1)


def large(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    for module in (optimizers, bert_rows):
        monkeypatch.setattr(module, "LARGE", rows)


def model_of(*, positions: int = 16, dropout: float = 0.2) -> PreTrainedModel:
    """Return a BERT that has ``builders.VOCABULARY`` words, and so many places for them."""
    config = BertConfig(
        vocab_size=builders.VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=positions, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout, initializer_range=0.15,
    )  # fmt: skip
    config.num_labels = 3
    torch.manual_seed(2)
    return BertForSequenceClassification(config).train()


def loss_of(way: Computed) -> LossOf:
    def loss(batch: Batch, _step: int) -> Iterator[list[Term]]:
        total = F.cross_entropy(way(batch).logits, batch.labels, reduction="sum")
        yield [Term(name="labels", total=total, per="examples")]

    return loss


def trained(
    model: PreTrainedModel, part: Examples, keeper: Checkpoints | None = None, *, until: int = 18, room: int | None = 40
) -> tuple[dict[str, Tensor], list[Step]]:
    """Train up to a step, of 18; most of the words are in no batch of most steps."""
    recipe = builders.training(steps=18, batch_size=4, micro_batch=2, room=room, clip=0.5, learning_rate=3e-3)
    way, steps = builders.way(model), []
    torch.manual_seed(5)
    for step in train(model, part, recipe, loss_of(way), device=CPU, stage="distil", keeper=keeper):
        steps.append(step)
        if step.step == until:
            break
    return model.state_dict(), steps


@pytest.mark.parametrize("most", [0.5, 100.0])
@pytest.mark.parametrize("rows", [builders.VOCABULARY, 10**6])
def test_gradients_are_cut_as_torch_cuts_dense_ones(tmp_path, monkeypatch, rows: int, most: float) -> None:
    """Those of a large table, of which only some rows are there, too."""
    part, model, real = builders.examples(tmp_path, 4), model_of(dropout=0.0), AdamW.step_to
    taken: dict[str, Tensor] = {}

    def step_to(self: AdamW, step: int) -> None:
        taken.update({name: p.grad.to_dense().clone() for name, p in model.named_parameters() if p.grad is not None})
        real(self, step)

    large(monkeypatch, 10**6)
    twin = model_of(dropout=0.0)
    ((term,),) = loss_of(builders.way(twin))(part.batch(range(4)), 1)
    (term.total / 4).backward()
    norm = float(torch.nn.utils.clip_grad_norm_(twin.parameters(), most))
    assert 0.5 < norm < 100.0
    large(monkeypatch, rows)
    monkeypatch.setattr(AdamW, "step_to", step_to)
    recipe = builders.training(steps=1, batch_size=4, micro_batch=4, clip=most)
    (step,) = train(model, part, recipe, loss_of(builders.way(model)), device=CPU, stage="distil")
    assert step.grad_norm == pytest.approx(norm, rel=1e-5)
    for name, parameter in twin.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(taken[name], parameter.grad, rtol=1e-4, atol=1e-6), name


def moved_alike(ours: dict[str, Tensor], theirs: dict[str, Tensor], began: dict[str, Tensor]) -> None:
    for name, expected in theirs.items():
        apart, moved = float((ours[name] - expected).norm()), float((expected - began[name]).norm())
        # Attention does not see a key's bias: its gradient is rounding, which Adam blows up.
        assert "key.bias" in name or apart < 2e-3 * moved, name


@pytest.mark.parametrize("room", [None, 40])
def test_a_training_ends_where_one_without_large_tables_does(tmp_path, monkeypatch, room: int | None) -> None:
    """Both with dropout, whose random numbers are the same; a small batch leaves most rows alone."""
    part, ends = builders.examples(tmp_path), []
    for rows in (builders.VOCABULARY, 10**6):
        large(monkeypatch, rows)
        ends.append(trained(model_of(), part, room=room))
    (lazy, steps), (dense, others) = ends
    moved_alike(lazy, dense, model_of().state_dict())
    assert [step.grad_norm for step in steps] == pytest.approx([step.grad_norm for step in others], rel=2e-3)
    assert sum(step.grad_norm > 0.5 for step in steps) > 10, "the norm is cut"


@pytest.mark.parametrize("cut", [1, 11, 18])
def test_a_training_with_a_large_table_goes_on_with_the_same_bits(tmp_path, monkeypatch, cut: int) -> None:
    large(monkeypatch, builders.VOCABULARY)
    part = builders.examples(tmp_path)
    whole = trained(model_of(), part)
    trained(model_of(), part, checkpoints(tmp_path, every=1000)[0], until=cut)
    held = load_file(tmp_path / "checkpoints" / f"step-{cut:09d}" / "optimizer.safetensors")
    moved = [value for name, value in held.items() if name.endswith(".moved")]
    assert [len(value) for value in moved] == [builders.VOCABULARY]
    assert (len(moved[0].unique()) > 1) == (cut < 18)
    keeper, _ = checkpoints(tmp_path, every=1000)
    same(whole, trained(model_of(), part, keeper))
    assert keeper.resumed == (cut,)


@pytest.mark.parametrize("positions", [builders.VOCABULARY, builders.VOCABULARY - 10])
def test_a_large_table_that_is_not_of_words_ends_where_a_small_one_does(tmp_path, monkeypatch, positions: int) -> None:
    """What is looked up in a table of places is not named by the words of a batch."""
    part, ends = builders.examples(tmp_path), []
    for rows in (positions, 10**6):
        large(monkeypatch, rows)
        ends.append(trained(model_of(positions=positions, dropout=0.0), part)[0])
    moved_alike(ends[0], ends[1], model_of(positions=positions).state_dict())


class Signalled(TorchFunctionMode):
    """Lets a signal come right after the rows of a table were written for the n-th time."""

    def __init__(self, table: Tensor, number: int) -> None:
        super().__init__()
        self._table, self._left = table, number

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        done = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "__setitem__" and args[0] is self._table:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGINT)
        return done


@pytest.mark.parametrize("number", [12, 13])
def test_a_signal_while_rows_are_moved_leaves_a_state_that_goes_on_with_the_same_bits(
    tmp_path, monkeypatch, number: int
) -> None:
    """One of the two comes before the forward pass, where rows are made ready, and one in the step."""
    large(monkeypatch, builders.VOCABULARY)
    part = builders.examples(tmp_path)
    whole, model = trained(model_of(), part), model_of()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    keeper, _ = checkpoints(tmp_path, every=1000)
    try:
        with pytest.raises(KeyboardInterrupt), Signalled(model.get_parameter(bert_rows.WORDS), number):
            trained(model, part, keeper)
    finally:
        signal.signal(signal.SIGINT, before)
    assert keeper.last > 3
    keeper, _ = checkpoints(tmp_path, every=1000)
    same(whole, trained(model_of(), part, keeper))
    assert keeper.resumed != ()
