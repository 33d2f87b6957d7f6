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

FAMILIES = {"bert": "bert"}
"""``model_type`` of a config → the adapter in ``capgap_core/families``."""
HEADS = {"bert": "classifier.weight"}
"""Family → the parameter whose presence tells a fine-tuned checkpoint from a bare encoder."""
SIZES = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2,
}  # fmt: skip
"""What a config states, and what it means where it does not."""

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
    folder = _folder(teacher, cache)
    config = _config(teacher, folder)
    faults = []
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        known = ", ".join(FAMILIES)
        faults.append(
            fault("teacher", teacher, f"its model_type is {config.get('model_type')!r}", f"Families so far: {known}.")
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
    if faults or family is None or weights is None:
        raise InputFaults(faults)
    sizes, faults = _sizes(teacher, config)
    shapes = _shapes(teacher, weights)
    faults += _fitting(teacher, sizes, shapes, folder, corpus) if not faults else []
    head = shapes.get(HEADS[family])
    if mode == "accept" and head is None:
        faults.append(
            fault("teacher_recipe.mode", mode, "the teacher has no classification head", "Use auto or finetune.")
        )
    accepted = mode == "accept" or (mode == "auto" and _trained_for_sequences(config, shapes, head))
    if accepted and head is not None and corpus is not None:
        faults += _label_faults(teacher, head[0] if head else 0, config, corpus)
    if faults:
        raise InputFaults(faults)
    return GivenTeacher(
        folder=folder,
        family=family,
        hidden=sizes["hidden_size"],
        layers=sizes["num_hidden_layers"],
        positions=sizes["max_position_embeddings"],
        mode="accept" if accepted else "finetune",
        content=content_of(folder),
        tokenizer=tokenizer_of(folder),
    )


def _folder(teacher: str, cache: str | None) -> Path:
    path = Path(os.path.expanduser(teacher))
    if os.path.isdir(path):  # "no", where pathlib raises, for a name that is too long or holds NUL
        return path.absolute()
    looks_local = teacher.startswith((".", "/", "~")) or teacher.count("/") > 1 or "\0" in teacher
    if looks_local:
        raise InputFaults(
            [fault("teacher", teacher, "there is no such folder", "Give scratch, a folder, or a name on the hub.")]
        )
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


def _config(teacher: str, folder: Path) -> dict[str, Any]:
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


def _sizes(teacher: str, config: Mapping[str, Any]) -> tuple[dict[str, int], list[Fault]]:
    """Return the sizes that a config states, BERT's own for those it leaves out, and a fault for each wrong one."""
    sizes = {name: config.get(name, usual) for name, usual in SIZES.items()}
    faults = [
        fault("teacher", teacher, f"its config.json says {name} = {size!r}", "It has to be a whole number from 1.")
        for name, size in sizes.items()
        if not isinstance(size, int) or isinstance(size, bool) or size < 1
    ]
    return {} if faults else sizes, faults


def _shapes(teacher: str, weights: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a checkpoint, by its name without the encoder's prefix."""
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
    return {name.removeprefix("bert."): shape for name, shape in found.items()}


def _fitting(
    teacher: str, sizes: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]], folder: Path, corpus: Corpus | None
) -> list[Fault]:
    """Return the faults of a checkpoint that is not what its config and its tokenizer say."""
    hidden, last = sizes["hidden_size"], f"encoder.layer.{sizes['num_hidden_layers'] - 1}.output.dense.weight"
    wanted = {
        "embeddings.word_embeddings.weight": (sizes["vocab_size"], hidden),
        "embeddings.position_embeddings.weight": (sizes["max_position_embeddings"], hidden),
        last: (hidden, sizes["intermediate_size"]),
    }
    faults = []
    for name, shape in wanted.items():
        if shapes.get(name) != shape:
            held = "is missing" if name not in shapes else f"is {shapes[name]}"
            what = f"{name} {held} in its weights, where its config.json says {shape}"
            faults.append(fault("teacher", teacher, what, "Give a folder that BertForSequenceClassification loads."))
    try:
        known = _pieces(folder)
    except Exception as error:  # whatever a broken file raises is the file's fault
        what = f"its tokenizer cannot be read ({type(error).__name__})"
        return [*faults, fault("teacher", teacher, what, "Save it again: tokenizer.save_pretrained(folder).")]
    if known > sizes["vocab_size"]:
        what = f"its tokenizer knows {known} pieces, its embeddings {sizes['vocab_size']}"
        faults.append(fault("teacher", teacher, what, "Give the tokenizer that the model was trained with."))
    if corpus is not None and len(corpus.text_columns) > 1 and sizes["type_vocab_size"] < 2:
        faults.append(fault("teacher", teacher, "it tells no two texts apart (type_vocab_size = 1)", "Give another."))
    return faults


def _pieces(folder: Path) -> int:
    """Return one more than the highest id that a tokenizer gives."""
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer  # noqa: PLC0415 - only where there is one

        return 1 + max(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True).values())
    return len((folder / "vocab.txt").read_text(encoding="utf8").splitlines())


def _trained_for_sequences(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], head: tuple[int, ...] | None
) -> bool:
    """Return whether a head was trained on the pooled vector: one for tokens has the same name and shape."""
    made_for = [str(name) for name in config.get("architectures") or []]
    return head is not None and "pooler.dense.weight" in shapes and any("SequenceClass" in name for name in made_for)


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
