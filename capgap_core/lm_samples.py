"""What a language model writes by itself: a text to learn from, and to be measured on, where its own is not at hand."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import DynamicCache, PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How documents are drawn: token by token from the whole prediction, at temperature 1."""

    first: int
    """The token that stands before a document."""
    ends: tuple[int, ...]
    """The tokens any of which ends one."""
    longest: int
    """Tokens of a document at most, its first and its end among them: one that does not end by then is left out."""
    rounds: int
    """How often documents are written, ``at_once`` of them."""
    seed: int
    at_once: int = 256
    """Documents that are written side by side; another number draws other documents."""


def documents(model: PreTrainedModel, how: Sampling) -> Iterator[list[int]]:
    """Yield the token ids of one document after another, without its first and its end.

    Those of a round come in the order in which they end: whoever stops within one has more short documents than the
    model writes.
    """
    draw = torch.Generator().manual_seed(how.seed)
    for _ in range(how.rounds):
        yield from _round(model, how, draw)


@torch.inference_mode()
def _round(model: PreTrainedModel, how: Sampling, draw: torch.Generator) -> list[list[int]]:
    """Return the documents of one round that have an end."""
    ends, cache = torch.tensor(how.ends), DynamicCache(config=model.config)
    last = torch.full((how.at_once, 1), how.first)
    written, whole = last[:, :0], []
    for _ in range(how.longest - 1):
        logits = model(input_ids=last.to(model.device), past_key_values=cache, use_cache=True).logits[:, -1]
        last = torch.multinomial(logits.float().cpu().softmax(dim=-1), 1, generator=draw)
        ended = torch.isin(last[:, 0], ends)
        whole += written[ended].tolist()
        written = torch.cat([written, last], dim=1)
        if ended.any():
            going = (~ended).nonzero()[:, 0]
            cache.batch_select_indices(going.to(model.device))
            written, last = written[going], last[going]
        if not len(last):
            break
    return whole


def write(path: Path, texts: Iterable[str]) -> None:
    """Write texts as json lines that the stage ``text`` reads."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf8")
