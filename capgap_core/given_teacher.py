"""Look at a teacher that was given, without loading it: its family, whether it is fine-tuned, and for what."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open

from capgap_core.corpus import Corpus
from capgap_core.errors import Fault, InputFaults, fault
from capgap_core.given_files import FILES, TOKENIZERS, WEIGHTS, content_of, tokenizer_of
from capgap_core.given_forms import FORMS, OPEN, Form, Tensors

Mode = Literal["auto", "finetune", "accept"]


@dataclass(frozen=True, kw_only=True)
class GivenTeacher:
    """What a teacher's folder says of itself."""

    folder: Path
    family: str
    hidden: int
    layers: int
    positions: int
    """Tokens of the longest example it can take."""
    mode: Literal["finetune", "accept"]
    content: str
    """Digest of the files that matter."""
    tokenizer: str
    """Digest of the tokenizer's files alone."""


def inspect(teacher: str, mode: Mode, corpus: Corpus | None, *, cache: str | None) -> GivenTeacher:
    """Return what a run has to know of its teacher.

    Parameters
    ----------
    teacher
        A folder, or a name on the hub, which is fetched.
    mode
        ``auto`` accepts a teacher with a head trained for sequence classification and fine-tunes any other.
    corpus
        The data set, to hold the labels against; null where it could not be read.

    Raises
    ------
    InputFaults
        With every fault found.
    """
    folder = folder_of(teacher, cache)
    config = config_of(teacher, folder)
    faults = []
    form = FORMS.get(str(config.get("model_type")))
    if form is None:
        known = ", ".join(FORMS)
        faults.append(
            fault("teacher", teacher, f"its model_type is {config.get('model_type')!r}", f"Known so far: {known}.")
        )
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        faults.append(
            fault("teacher", teacher, "the folder holds no weights", f"It needs one of {', '.join(WEIGHTS)}.")
        )
    if not any((folder / name).is_file() for name in TOKENIZERS):
        faults.append(
            fault("teacher", teacher, "the folder holds no tokenizer", f"It needs one of {', '.join(TOKENIZERS)}.")
        )
    if faults or form is None or weights is None:
        raise InputFaults(faults)
    sizes, faults = sizes_of(teacher, config, form)
    shapes = shapes_of(teacher, weights, form.prefix)
    faults += _fitting(teacher, form, sizes, shapes, folder, corpus) if not faults else []
    head = shapes.get(form.head)
    if mode == "accept" and head is None:
        faults.append(
            fault("teacher_recipe.mode", mode, "the teacher has no classification head", "Use auto or finetune.")
        )
    accepted = mode == "accept" or (mode == "auto" and _trained_for_sequences(config, form, shapes, head))
    if accepted and head is not None and corpus is not None:
        faults += _label_faults(teacher, head[0] if head else 0, config, corpus)
    if faults:
        raise InputFaults(faults)
    return GivenTeacher(
        folder=folder,
        family=form.family,
        hidden=sizes["hidden_size"],
        layers=sizes["num_hidden_layers"],
        positions=_positions(sizes, config),
        mode="accept" if accepted else "finetune",
        content=content_of(folder),
        tokenizer=tokenizer_of(folder),
    )


def folder_of(
    teacher: str, cache: str | None, *, remedy: str = "Give scratch, a folder, or a name on the hub."
) -> Path:
    """Return the folder that is meant, or into which a name on the hub is fetched; raises ``InputFaults``."""
    path = Path(os.path.expanduser(teacher))
    if os.path.isdir(path):  # "no", where pathlib raises, for a name that is too long or holds NUL
        return path.absolute()
    looks_local = teacher.startswith((".", "/", "~")) or teacher.count("/") > 1 or "\0" in teacher
    if looks_local:
        raise InputFaults([fault("teacher", teacher, "there is no such folder", remedy)])
    return _fetched(teacher, cache)


def _fetched(teacher: str, cache: str | None) -> Path:
    """Fetch a teacher from the hub; weights as safetensors where the hub has them."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only where the hub is asked
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415

    name, _, revision = teacher.partition("@")
    place = str(Path(cache) / "cache" / "hub") if cache else None
    try:
        found = snapshot_download(
            name, revision=revision or None, cache_dir=place, allow_patterns=list(FILES), etag_timeout=5
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        why = f"neither a folder here nor to be had from the hub ({type(error).__name__})"
        raise InputFaults(
            [fault("teacher", teacher, why, "Check the name and the network, or give a folder.")]
        ) from error
    return Path(found)


def config_of(teacher: str, folder: Path) -> dict[str, Any]:
    """Return what the config.json in a folder says; raises ``InputFaults``."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf8"))
    except FileNotFoundError as error:
        raise InputFaults(
            [fault("teacher", teacher, "the folder holds no config.json", "Give a folder that from_pretrained loads.")]
        ) from error
    except (OSError, ValueError) as error:
        raise InputFaults(
            [fault("teacher", teacher, "its config.json cannot be read", "It has to be JSON in UTF-8.")]
        ) from error
    if not isinstance(config, dict):
        raise InputFaults(
            [fault("teacher", teacher, "its config.json is not a model's", "Give a folder that from_pretrained loads.")]
        )
    return config


def sizes_of(teacher: str, config: Mapping[str, Any], form: Form) -> tuple[dict[str, Any], list[Fault]]:
    """Return the sizes that a config states, the usual ones for those it leaves out, and a fault for each wrong one."""
    names = {name: form.names.get(name, name) for name in form.sizes}
    sizes = {name: config.get(names[name], size) for name, size in form.sizes.items()}
    faults = [
        fault(
            "teacher", teacher, f"its config.json says {names[name]} = {size!r}", "It has to be a whole number from 1."
        )
        for name, size in sizes.items()
        if not (size is None and name in OPEN) and (not isinstance(size, int) or isinstance(size, bool) or size < 1)
    ]
    return {} if faults else sizes, faults


def _positions(sizes: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """Return the tokens that every token of an example may see: of a sliding window no more than it has."""
    window = sizes.get("sliding_window") if config.get("use_sliding_window", True) else None
    return min(sizes["max_position_embeddings"], window or sizes["max_position_embeddings"])


def shapes_of(teacher: str, weights: Path, prefix: str) -> Tensors:
    """Return the shape of every tensor of a checkpoint, by its name without the prefix."""
    try:
        if weights.suffix == ".safetensors":
            with safe_open(weights, framework="numpy") as held:
                found = {name: tuple(held.get_slice(name).get_shape()) for name in held.keys()}
        else:
            import torch  # noqa: PLC0415 - only old checkpoints need it

            state = torch.load(weights, map_location="cpu", mmap=True, weights_only=True)
            found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    except Exception as error:  # whatever a broken file raises is the file's fault
        why = f"{weights.name} cannot be read ({type(error).__name__})"
        raise InputFaults([fault("teacher", teacher, why, "Save the weights again as safetensors.")]) from error
    return {name.removeprefix(prefix): shape for name, shape in found.items()}


def _fitting(
    teacher: str, form: Form, sizes: Mapping[str, Any], shapes: Tensors, folder: Path, corpus: Corpus | None
) -> list[Fault]:
    """Return the faults of a checkpoint that is not what its config and its tokenizer say."""
    faults = []
    for name, shape in form.tensors(sizes).items():
        if shapes.get(name) != shape:
            held = "is missing" if name not in shapes else f"is {shapes[name]}"
            what = f"{name} {held} in its weights, where its config.json says {shape}"
            faults.append(fault("teacher", teacher, what, f"Give a folder that {form.classifier} loads."))
    try:
        known, unpadded = _pieces(folder), []
        if form.causal:
            known, unpadded = _padding(teacher, folder)
    except Exception as error:  # whatever a broken file raises is the file's fault
        what = f"its tokenizer cannot be read ({type(error).__name__})"
        return [*faults, fault("teacher", teacher, what, "Save it again: tokenizer.save_pretrained(folder).")]
    if known > sizes["vocab_size"]:
        what = f"its tokenizer knows {known} pieces, its embeddings {sizes['vocab_size']}"
        faults.append(fault("teacher", teacher, what, "Give the tokenizer that the model was trained with."))
    faults += unpadded
    if corpus is not None and len(corpus.text_columns) > 1 and sizes.get("type_vocab_size", 2) < 2:
        faults.append(fault("teacher", teacher, "it tells no two texts apart (type_vocab_size = 1)", "Give another."))
    return faults


def _pieces(folder: Path) -> int:
    """Return one more than the highest id that a tokenizer gives."""
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer  # noqa: PLC0415 - only where there is one

        return 1 + max(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True).values())
    return len((folder / "vocab.txt").read_text(encoding="utf8").splitlines())


def _padding(teacher: str, folder: Path) -> tuple[int, list[Fault]]:
    """Return what ``_pieces`` does, and a fault where a decoder cannot tell the last token of a text from padding.

    Only transformers knows what the class of a tokenizer adds to its files.
    """
    from capgap_core import tokens  # noqa: PLC0415 - seconds to import, and only a decoder needs it

    tokenizer = tokens.given(str(folder))
    known = 1 + max(tokenizer.get_vocab().values())
    if tokenizer.pad_token_id is None:
        what, remedy = "its tokenizer has no token that could be padding", "Name one: tokenizer.pad_token = ..."
    elif tokenizer.pad_token_id == tokens.last_of(tokenizer):
        what = f"its tokenizer ends every text with {tokenizer.pad_token}, which is padding, too"
        remedy = "Name another: tokenizer.pad_token = ..."
    else:
        return known, []
    return known, [fault("teacher", teacher, what, f"{remedy}; tokenizer.save_pretrained(folder).")]


def _trained_for_sequences(
    config: Mapping[str, Any], form: Form, shapes: Tensors, head: tuple[int, ...] | None
) -> bool:
    """Return whether a head was trained on what stands for a whole text: one for tokens has the same name and shape."""
    made_for = [str(name) for name in config.get("architectures") or []]
    pooled = form.pooler is None or form.pooler in shapes
    return head is not None and pooled and any("SequenceClass" in name for name in made_for)


def _label_faults(teacher: str, labels: int, config: dict[str, Any], corpus: Corpus) -> list[Fault]:
    wanted = max(1, len(corpus.labels))
    if labels != wanted:
        what = f"it was fine-tuned for {labels} labels, the data set has {wanted}"
        return [fault("teacher", teacher, what, "Set teacher_recipe.mode=finetune to give it a new head.")]
    try:
        stated = sorted((int(number), str(name)) for number, name in (config.get("id2label") or {}).items())
    except (AttributeError, TypeError, ValueError):
        what = f"its config.json says id2label = {config['id2label']!r}"
        return [fault("teacher", teacher, what, 'It has to be numbers and names: {"0": "no", "1": "yes"}.')]
    names = [name for _, name in stated]
    if names != list(corpus.labels) and set(names) == set(corpus.labels):
        what = f"its labels are in another order: {names} where the data set has {list(corpus.labels)}"
        return [fault("teacher", teacher, what, "Set teacher_recipe.mode=finetune.")]
    return []
