"""Look at a teacher that was given, without loading it: its family, whether it is fine-tuned, and for what."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from capgap_core.corpus import Corpus
from capgap_core.errors import InputFaults, fault
from capgap_core.identity import digest_of_files, sha256_file

FAMILIES = {"bert": "bert"}
"""``model_type`` of a config → the adapter in ``capgap_core/families``."""
HEADS = {"bert": "classifier.weight"}
"""Family → the parameter whose presence tells a fine-tuned checkpoint from a bare encoder."""
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
TOKENIZERS = ("tokenizer.json", "vocab.txt")
FILES = ("config.json", *WEIGHTS, *TOKENIZERS, "tokenizer_config.json", "special_tokens_map.json")

Mode = Literal["auto", "finetune", "accept"]


@dataclass(frozen=True, kw_only=True)
class GivenTeacher:
    """What a teacher's folder says of itself."""

    folder: Path
    family: str
    hidden: int
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
        ``auto`` accepts a teacher with a trained head and fine-tunes any other.
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
    labels = _labels_of(teacher, weights, HEADS[family])
    if mode == "accept" and labels is None:
        faults.append(
            fault("teacher_recipe.mode", mode, "the teacher has no classification head", "Use auto or finetune.")
        )
    accepted = labels is not None and mode != "finetune"
    if accepted and corpus is not None:
        faults += _label_faults(teacher, labels or 0, config, corpus)
    if faults:
        raise InputFaults(faults)
    present = {name: sha256_file(folder / name) for name in FILES if (folder / name).is_file()}
    return GivenTeacher(
        folder=folder,
        family=family,
        hidden=int(config["hidden_size"]),
        mode="accept" if accepted else "finetune",
        content=digest_of_files(present),
        tokenizer=digest_of_files({k: v for k, v in present.items() if k not in ("config.json", *WEIGHTS)}),
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
    if not isinstance(config, dict) or not isinstance(config.get("hidden_size", 0), int):
        raise InputFaults(
            [fault("teacher", teacher, "its config.json is not a model's", "Give a folder that from_pretrained loads.")]
        )
    return config


def _labels_of(teacher: str, weights: Path, head: str) -> int | None:
    """Return how many labels the trained head has; nothing where there is no head."""
    try:
        if weights.suffix == ".safetensors":
            with safe_open(weights, framework="numpy") as held:
                return held.get_slice(head).get_shape()[0] if head in held.keys() else None
        import torch  # noqa: PLC0415 - only old checkpoints need it

        state = torch.load(weights, map_location="cpu", mmap=True, weights_only=True)
        return state[head].shape[0] if head in state else None
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
        why = f"{weights.name} cannot be read ({type(error).__name__})"
        raise InputFaults([fault("teacher", teacher, why, "Save the weights again as safetensors.")]) from error


def _label_faults(teacher: str, labels: int, config: dict[str, Any], corpus: Corpus) -> list[Any]:
    wanted = max(1, len(corpus.labels))
    if labels != wanted:
        what = f"it was fine-tuned for {labels} labels, the data set has {wanted}"
        return [fault("teacher", teacher, what, "Set teacher_recipe.mode=finetune to give it a new head.")]
    names = [str(name) for _, name in sorted((config.get("id2label") or {}).items(), key=lambda item: int(item[0]))]
    if names != list(corpus.labels) and set(names) == set(corpus.labels):
        what = f"its labels are in another order: {names} where the data set has {list(corpus.labels)}"
        return [fault("teacher", teacher, what, "Set teacher_recipe.mode=finetune.")]
    return []
