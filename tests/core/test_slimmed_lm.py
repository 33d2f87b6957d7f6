"""What a language model writes, and that a published one, slimmed, gets better by learning from the whole of itself."""

import json
import math
from pathlib import Path

import builders
import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel

from capgap_core import chain, lm_samples, published_lm, slimmed_lm
from capgap_core.lm_samples import Sampling
from capgap_core.progress import Silent
from capgap_core.recipes import Execution

ENDS = tuple(range(2, 12))
HOW = Sampling(first=1, ends=ENDS, longest=100, rounds=2, seed=3, at_once=64)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return builders.decoder(language=True, group=2)


def test_what_is_written_has_the_chances_that_the_model_gives_it(model: PreTrainedModel) -> None:
    """Of a token drawn from p, -log p is on average p's entropy; the model is asked about whole texts, one by one."""
    apart, variance = 0.0, 0.0
    for ids in lm_samples.documents(model, HOW):
        with torch.no_grad():
            said = model(torch.tensor([[HOW.first, *ids]])).logits[0].double().log_softmax(dim=-1)
        ended = (said[-1].exp()[list(ENDS)].sum()).item()
        assert 0.0 < ended < 1.0
        own = said[:-1]
        own[:, list(ENDS)] = -math.inf  # none of them ended it
        own = own.log_softmax(dim=-1)
        lost = -own.gather(1, torch.tensor(ids, dtype=torch.long)[:, None])[:, 0]
        entropy = -(own.exp() * own.clamp(min=-1e9)).sum(dim=1)
        apart += float((lost - entropy).sum())
        variance += float(((own.exp() * own.clamp(min=-1e9) ** 2).sum(dim=1) - entropy**2).sum())
    assert variance > 100
    assert abs(apart) < 4 * math.sqrt(variance)


def test_documents_are_whole_and_the_same_again(model: PreTrainedModel) -> None:
    found = list(lm_samples.documents(model, HOW))
    assert found == list(lm_samples.documents(model, HOW))
    assert len(found) == 128, "each ends well before the longest"
    assert all(not set(ids) & set(ENDS) for ids in found)
    assert {len(ids) for ids in found} >= {0, 1, 2, 3}
    short = Sampling(**{**vars(HOW), "longest": 4})
    few = list(lm_samples.documents(model, short))
    assert {len(ids) for ids in few} == {0, 1, 2}
    assert 0 < len(few) < 128, "those without an end are left out"


def test_texts_are_lines_of_json(tmp_path: Path) -> None:
    lm_samples.write(tmp_path / "a.jsonl", ["one\ntwo", "Ünder"])
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf8").splitlines()
    assert [json.loads(line) for line in lines] == [{"text": "one\ntwo"}, {"text": "Ünder"}]


def test_a_published_model_slimmed_and_distilled_beats_what_slimming_leaves(shared: Path, tmp_path: Path) -> None:
    """With few steps on little text the gap is some 1.5 nats."""
    execution = Execution(root=str(tmp_path), threads=1)
    study = slimmed_lm.Study(length=64, rows=64, steps=40, batch_size=16, rounds=1, at_once=40)
    slimmed_lm.convert(shared / "weights" / "stories260K", tmp_path / "model")
    path = tmp_path / "text.jsonl"
    slimmed_lm.write_text(tmp_path / "model", path, study, seed=5, execution=execution)
    call = chain.in_this_process(Silent())
    rows = slimmed_lm.follow(tmp_path / "model", path, study, call, seed=5, execution=execution)
    frame = published_lm.joined(None, pd.DataFrame(rows))
    assert list(frame["role"]) == list(published_lm.ARMS)
    nats = dict(zip(frame["role"], frame["nats"], strict=True))
    assert nats["teacher"] < nats["distilled"] < nats["slimmed"] - 0.7
    assert nats["trained"] < nats["slimmed"] - 0.7
    assert frame["non_embedding"].nunique() == 2
    assert (frame[frame["role"] != "teacher"]["scale"] < 0.6).all()
    again = slimmed_lm.follow(tmp_path / "model", path, study, call, seed=5, execution=execution)
    assert [row["identity"] for row in again] == [row["identity"] for row in rows]
