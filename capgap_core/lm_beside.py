"""Holds a language model that is given against a text: what of the two does not go together, as small files say."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from capgap_core.errors import Fault, fault
from capgap_core.given_forms import FORMS
from capgap_core.given_teacher import sizes_of
from capgap_core.shapes import SLIMMED

OWN = "Read the text with the model's own tokenizer"


@dataclass(frozen=True, kw_only=True)
class Read:
    """How a text is read."""

    pieces: Mapping[str, int] | None
    """Each token and its id; null where they are not known."""
    ids: int | None
    """How many there may be; null where that is not known."""
    length: int | None
    """Tokens of a row; null where that is not known."""
    remedy: str = f"{OWN}."
    """How it is read with another tokenizer."""
    fields: tuple[str, str] = ("model", "length")
    """Where the model and the length are given."""


def kinds(family: str | None = None) -> list[str]:
    """Return each ``model_type`` of a causal language model that is known, or those of one family."""
    return [kind for kind, form in FORMS.items() if form.causal and family in (None, form.family)]


def misfits(folder: Path, config: Mapping[str, Any], read: Read, *, family: str | None = None) -> list[Fault]:
    """Return everything in which a model does not go with a text.

    Parameters
    ----------
    config
        What its config.json says.
    family
        Of which it has to be; null: any that is known.
    """
    field, length = read.fields
    kind = str(config.get("model_type"))
    if kind.removeprefix(SLIMMED) not in kinds(family):
        rule = f"is a {kind}, none of {', '.join(kinds(family))}"
        return [fault(field, str(folder), rule, "Give a model of one of these.")]
    sizes, faults = sizes_of(str(folder), config, FORMS[kind.removeprefix(SLIMMED)])
    if faults:
        return [replace(one, field=field) for one in faults]
    known, enough = sizes["vocab_size"], read.ids is None or sizes["vocab_size"] >= read.ids
    if read.ids is not None and not enough:
        rule = f"its embeddings have {known} entries, and the text has ids up to {read.ids - 1}"
        faults.append(fault(field, str(folder), rule, read.remedy))
    if read.length is not None and (positions := sizes["max_position_embeddings"]) < read.length:
        rule = f"rows have so many tokens, and the model {folder.name} has {positions} positions"
        faults.append(fault(length, read.length, rule, f"Give {positions} or fewer."))
    own = folder / "tokenizer.json"
    if read.pieces is not None and own.is_file() and enough and pieces_of(own) != read.pieces:
        rule = "its tokenizer has other pieces than the one that the text is read with"
        faults.append(fault(field, str(folder), rule, read.remedy))
    return faults


def pieces_of(path: Path) -> dict[str, int]:
    """Return each token of a tokenizer.json and its id."""
    return Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
