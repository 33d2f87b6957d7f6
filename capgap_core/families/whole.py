"""A given checkpoint, loaded whole or not at all."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from capgap_core.errors import StageFailed


def load(
    kind: type[PreTrainedModel], folder: Path | str, *, lacking: tuple[str, ...], stage: str = "teacher", **config: Any
) -> PreTrainedModel:
    """Load a checkpoint in fp32, in which only weights may be missing whose names begin as ``lacking`` says.

    Raises
    ------
    StageFailed
        Where others are missing or do not fit the config: from_pretrained would draw them at random.
    """
    loaded: Any = kind.from_pretrained(
        folder, dtype="float32", output_loading_info=True, ignore_mismatched_sizes=True, **config
    )
    model, found = loaded
    missing = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    missing = [name for name in missing if not name.startswith(lacking)]
    if missing:
        names = f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}"
        why = f"{len(missing)} weights are missing in {folder} or do not fit its config: {names}"
        raise StageFailed(stage, why, f"Give a folder that {kind.__name__} loads whole.")
    return model
