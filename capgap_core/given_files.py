"""The files of a given checkpoint, and what they hold."""

from pathlib import Path

from capgap_core.identity import digest_of_files, sha256_file

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
TOKENIZERS = ("tokenizer.json", "vocab.txt")
_WORDS = (*TOKENIZERS, "tokenizer_config.json", "special_tokens_map.json")
FILES = ("config.json", *WEIGHTS, *_WORDS)
"""Every file that is read; nothing else in the folder matters."""


def content_of(folder: Path) -> str:
    """Return the digest of all files that matter."""
    return _digest(folder, FILES)


def tokenizer_of(folder: Path) -> str:
    """Return the digest of the tokenizer's files alone."""
    return _digest(folder, _WORDS)


def _digest(folder: Path, names: tuple[str, ...]) -> str:
    return digest_of_files({name: sha256_file(folder / name) for name in names if (folder / name).is_file()})
