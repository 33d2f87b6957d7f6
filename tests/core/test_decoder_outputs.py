"""What decoders say of batches: read at the last real token, with words looked up before, and of mixtures."""

from dataclasses import replace
from typing import Any

import builders
import numpy as np
import pytest
import torch
from decoder_models import family_of
from torch import Tensor
from torch.nn.functional import pad

from capgap_core import slimming
from capgap_core.batches import Batch
from capgap_core.distillation import Distillation, Objective
from capgap_core.families import capgap_gpt2, llama
from capgap_core.mixup import Mixture, Mixtures, Mixup, Pupil, mixed
from capgap_core.outputs import Computed, Stock, computed
from capgap_core.targets import live

CPU = torch.device("cpu")
LENGTHS = (9, 4, 1, 7, 9)
KINDS: dict[str, dict[str, Any]] = {
    "llama": {}, "mistral": {"group": 4}, "qwen2": {"group": 1, "keys": 4}, "qwen3": {"head_dim": 16}, "gpt_neox": {},
    "gpt2": {},
}  # fmt: skip


def batch_of(*, more: int = 0, ids: Tensor | None = None) -> Batch:
    """Return five texts, and so many places of padding more than the longest needs."""
    draw, n, t = torch.Generator().manual_seed(4), len(LENGTHS), max(LENGTHS)
    real = (torch.arange(t)[None] < torch.tensor(LENGTHS)[:, None]).long()
    drawn = torch.randint(1, builders.VOCABULARY, (n, t), generator=draw)
    ids, mask = (pad(x, (0, more)) for x in ((drawn if ids is None else ids) * real, real))
    answers = torch.randint(3, (n,), generator=draw)
    return Batch(
        index=np.arange(n), input_ids=ids, attention_mask=mask, token_type_ids=0 * ids, labels=answers,
        room=n * (t + more),
    )  # fmt: skip


def mixture(mix: float | list[float]) -> Mixture:
    n = len(LENGTHS)
    return Mixture(partner=torch.roll(torch.arange(n), 2), mix=torch.as_tensor(mix).float().expand(n), seed=0)


def said(way: Computed, model: Any, batch: Batch, chosen: Mixture, mask: Any = "soft") -> Tensor:
    pupil = Pupil.of(way, model, llama.TYPES)
    with torch.no_grad():
        return way(mixed(batch, chosen, mask), words=pupil.embeddings.of(batch, chosen, "mixture")).logits


def plain(way: Computed, batch: Batch, *, words: bool = False) -> Tensor:
    with torch.no_grad():
        return way(batch, words=way.look_up(batch) if words else None).logits


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest) -> tuple[Any, Computed]:
    model = builders.decoder(request.param, **KINDS[request.param])
    if request.param == "gpt2":
        capgap_gpt2.following(model)
    return model, computed(family_of(model), model, "float32", CPU)


def alone(model: Any) -> Tensor:
    """A second source: each text by itself, without padding, its last state times the head."""
    batch = batch_of()
    with torch.no_grad():
        states = [
            model.base_model(input_ids=row[:n][None]).last_hidden_state[0, -1]
            for row, n in zip(batch.input_ids, LENGTHS, strict=True)
        ]
    return torch.stack(states) @ model.score.weight.detach().T


@pytest.mark.parametrize("more", [0, 5])
@pytest.mark.parametrize("words", [False, True])
def test_padding_and_neighbours_change_nothing(case: tuple[Any, Computed], more: int, words: bool) -> None:
    model, way = case
    assert isinstance(way, Stock)
    assert torch.allclose(plain(way, batch_of(more=more), words=words), alone(model), atol=1e-5)


def test_at_the_ends_a_mixture_is_one_of_the_two_examples(case: tuple[Any, Computed]) -> None:
    model, way = case
    for more in (0, 3):
        batch, own = batch_of(more=more), alone(model)
        assert torch.allclose(said(way, model, batch, mixture(1.0)), own, atol=1e-5)
        assert torch.allclose(said(way, model, batch, mixture(0.0)), own[mixture(0.0).partner], atol=1e-5)
        for mix in (1.0, 0.0):
            near = said(way, model, batch, mixture(abs(mix - 1e-6)))
            assert torch.allclose(near, said(way, model, batch, mixture(mix)), atol=1e-3)
    assert not torch.allclose(said(way, model, batch, mixture(1.0), "union"), own, atol=1e-2)


def test_padding_changes_no_mixture(case: tuple[Any, Computed]) -> None:
    model, way = case
    chosen = mixture([0.1, 0.5, 0.9, 0.3, 0.7])
    for mask in ("soft", "union"):
        one, other = (said(way, model, batch_of(more=more), chosen, mask) for more in (0, 6))
        assert torch.allclose(one, other, atol=1e-5)


def test_a_mixture_is_read_at_both_ends_and_no_token_sees_a_later_one(case: tuple[Any, Computed]) -> None:
    """Mixed with its own beginning a text has whole tokens up to there: what is said there is what that text says."""
    model, way = case
    batch = batch_of()
    ids = batch.input_ids.clone()
    ids[1, :4], ids[3, :7] = ids[4, :4], ids[0, :7]  # the partners of 1 and 3 begin like them
    batch = batch_of(ids=ids)
    chosen = Mixture(partner=torch.tensor([3, 4, 0, 0, 1]), mix=torch.full((5,), 0.3), seed=0)
    whole, found = plain(way, batch), said(way, model, batch, chosen)
    for long, short in ((0, 3), (4, 1)):
        both = mixed(batch, chosen, "soft")
        pupil = Pupil.of(way, model, None)
        words = pupil.embeddings.of(batch, chosen, "mixture")
        with torch.no_grad():
            states = way(both, words=words).hidden[-1].view(5, -1, 32)[long]
            at_end = states[LENGTHS[long] - 1] @ model.score.weight.T
            at_middle = states[LENGTHS[short] - 1] @ model.score.weight.T
        assert torch.allclose(at_middle, whole[short], atol=1e-5)
        assert not torch.allclose(at_end, whole[long], atol=1e-3)
        assert torch.allclose(found[long], 0.3 * at_end + 0.7 * whole[short], atol=1e-5)


def test_a_sub_network_answers_as_the_slim_model_from_words_that_were_looked_up(case: tuple[Any, Computed]) -> None:
    model, way = case
    family = family_of(model)
    shape = family.shape_of(model.config)
    keep = builders.kept([1, 0], [24, 8])
    leaves = slimming.prefix(family, dict(model.named_parameters()), shape, keep)
    small = slimming.slim(family, model, shape, keep).eval()
    batch = batch_of(more=2)
    found = way(batch, weights=leaves, words=way.look_up(batch))
    expected = computed(family, small, "float32", CPU)(batch)
    assert torch.allclose(found.logits, expected.logits, atol=1e-5)
    assert len(found.hidden) == shape.layers + 1
    for ours, theirs in zip(found.hidden, expected.hidden, strict=True):
        assert torch.allclose(ours[batch.keep], theirs[batch.keep], atol=1e-5)


@pytest.mark.parametrize("kind", ["mixture", "noise"])
def test_where_nothing_is_mixed_the_losses_are_those_of_the_examples(kind: Any) -> None:
    ours, theirs = (builders.decoder(seed=seed) for seed in (0, 1))
    ways = [computed(llama, model, "float32", CPU) for model in (ours, theirs.requires_grad_(False))]
    asked = Objective(labels=1.0, hidden=0.0, prediction=1.0)
    distance = Distillation(live(ways[1], layers=()), layers=2, regression=False, objective=asked)
    how = Mixup(samples=1, alpha=0.4, mix=None, per="pair", mask="soft", labels=0.7, teacher=0.4, seed=3, kind=kind)
    pupils = [Pupil.of(way, model, llama.TYPES) for way, model in zip(ways, (ours, theirs), strict=True)]
    found = Mixtures(how, pupils[0], pupils[1], distance, regression=False).terms(batch_of(), mixture(1.0))
    (expected,) = distance.loss_of(ways[0])(batch_of(), 1)
    assert [term.weight for term in found] == [0.7, 0.4]
    for one, other in zip(found, expected, strict=True):
        assert one.total.item() == pytest.approx(other.total.item(), rel=1e-5, abs=1e-5)
    torch.stack([term.total for term in found]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())


def test_in_bfloat16_the_answers_are_nearly_the_same(case: tuple[Any, Computed]) -> None:
    model, way = case
    rough = computed(family_of(model), model, "bfloat16", CPU)
    chosen = mixture([0.1, 0.5, 0.9, 0.3, 0.7])
    for words in (False, True):
        assert torch.allclose(plain(rough, batch_of(), words=words).float(), plain(way, batch_of()), atol=0.1)
    found = said(rough, model, batch_of(), chosen).float()
    assert torch.allclose(found, said(way, model, batch_of(), chosen), atol=0.1)


def test_which_token_is_padding_is_no_matter_but_to_transformers() -> None:
    """Words that were looked up are read where the mask ends; ids where the padding of the config begins."""
    model = builders.decoder()
    way, batch = computed(llama, model, "float32", CPU), batch_of(more=2)
    unused = next(i for i in range(1, builders.VOCABULARY) if not (batch.input_ids == i).any())
    other = replace(batch, input_ids=torch.where(batch.attention_mask.bool(), batch.input_ids, unused))
    assert torch.allclose(plain(way, other, words=True), alone(model), atol=1e-5)
    assert not torch.allclose(plain(way, other), alone(model), atol=1e-3)
    model.config.pad_token_id = unused
    assert torch.allclose(plain(way, other), alone(model), atol=1e-5)
