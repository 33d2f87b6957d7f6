"""A small published language model, slimmed and distilled from itself: what each step gives, on text that it wrote.

Three arms have one shape: what slimming alone leaves, that after it has learned from the text, and that after it has
learned from the whole model, on the same rows in the same order. Each seed has a text of its own, which moves the
held-out part, the units that are kept and the order in which rows are seen.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capgap_core import llama2c, lm_parts, lm_samples, machine, models, tables
from capgap_core.given_files import content_of, tokenizer_of
from capgap_core.llama2c_tokens import BOS
from capgap_core.lm_recipes import ALONE, LmObjective
from capgap_core.lm_samples import Sampling
from capgap_core.lm_text import read_text
from capgap_core.loading import Cache
from capgap_core.method import Caller
from capgap_core.recipes import Execution
from capgap_core.records import Input, ModelInput, Reference
from capgap_core.stages import given_lm, lm_evaluate, lm_importance, pretrain, text as text_stage
from capgap_core.training import Training

FAMILY = "llama"
PART = "test"
"""The part that is reported."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is asked of a model; the learning rate was tried on a text of seed 0, which is not published."""

    scale: float = 0.5
    length: int = 128
    """Tokens of a row."""
    rows: int = 512
    """Rows that units are scored on."""
    steps: int = 400
    batch_size: int = 16
    learning_rate: float = 4e-3
    rounds: int = 4
    """Of documents that the model writes (``lm_samples``)."""
    at_once: int = 256


def convert(weights: Path, folder: Path) -> None:
    """Write stories260K of llama2.c as a folder whose tokenizer ends a text as the model has learned it: with BOS."""
    llama2c.convert(weights / "stories260K.bin", weights / "tok512.bin", folder)
    tokenizer = models.load_tokenizer(folder)
    tokenizer.eos_token = BOS
    tokenizer.save_pretrained(folder)


def write_text(folder: Path, path: Path, study: Study, *, seed: int, execution: Execution) -> None:
    """Have the model of a folder write documents."""
    with machine.ready(execution) as device:
        model = models.moved(models.family(FAMILY).load_language(folder, stage="given_lm"), device)
        tokenizer = models.load_tokenizer(folder)
        begin = tokenizer.eos_token_id  # what parts texts stands before the first of them, too
        assert isinstance(begin, int)
        how = Sampling(
            first=begin, ends=(begin,), longest=model.config.max_position_embeddings, rounds=study.rounds,
            at_once=study.at_once, seed=seed,
        )  # fmt: skip
        lm_samples.write(path, [str(tokenizer.decode(ids)) for ids in lm_samples.documents(model, how)])


def follow(
    folder: Path, path: Path, study: Study, call: Caller, *, seed: int, execution: Execution
) -> list[dict[str, Any]]:
    """Run the chain for one text; return the published rows of its arms.

    Parameters
    ----------
    folder
        Of the model.
    path
        Of the text that it wrote.
    """
    text = call("text", _text(folder, path, seed, execution), {}, role="", execution=execution)
    given = given_lm.Recipe(
        family=FAMILY, content=content_of(folder), length=study.length, source=str(folder.absolute())
    )
    teacher = call("given_lm", given, {"text": text}, role="teacher", execution=execution)
    asked = lm_importance.Recipe(family=FAMILY, scales=(study.scale,), length=study.length, rows=study.rows)
    scored = call("lm_importance", asked, {"text": text, "teacher": teacher}, role="", execution=execution)
    start = ModelInput(reference=scored, scale=study.scale)
    measure = lm_evaluate.Recipe(family=FAMILY, length=study.length)
    slimmed = call("lm_evaluate", measure, {"text": text, "model": start}, role="slimmed", execution=execution)
    arms = {"teacher": teacher, "slimmed": slimmed}
    for role, objective, more in (("trained", ALONE, {}), ("distilled", LmObjective(), {"teacher": teacher})):
        inputs: dict[str, Input] = {"text": text, "start": start, **more}
        arms[role] = call("pretrain", _learning(study, text, objective, seed), inputs, role=role, execution=execution)
    small = scored.summary["achieved"][str(study.scale)]
    found = [_row(role, seed, 1.0 if role == "teacher" else small, arm, text) for role, arm in arms.items()]
    return [{**row, "device": str(machine.device_of(execution))} for row in found]


def _text(folder: Path, path: Path, seed: int, execution: Execution) -> text_stage.Recipe:
    cache = Path(execution.root or ".") / "cache"
    content = read_text(str(path), seed=seed, cache=Cache(cache)).digest
    source = text_stage.Source(dataset=str(path), splits=None, cache=str(cache), tokenizer=str(folder))
    return text_stage.Recipe(
        content=content, column=None, tokenizer=tokenizer_of(folder), vocabulary=None, seed=seed, source=source
    )


def _learning(study: Study, text: Reference, objective: LmObjective, seed: int) -> pretrain.Recipe:
    """Return how an arm learns: alike, whatever from."""
    rows = len(lm_parts.rows(text, "train", study.length))
    training = Training(
        steps=study.steps, learning_rate=study.learning_rate, batch_size=study.batch_size, room=None,
        per_epoch=-(-rows // study.batch_size), micro_batch=study.batch_size, weight_decay=0.0, warmup=0.05, clip=1.0,
        dtype="float32", seed=seed,
    )  # fmt: skip
    keep = "float32" if objective.prediction else None
    return pretrain.Recipe(
        scratch=None, length=study.length, rows=rows, keep=keep, objective=objective, training=training, seed=seed
    )


def _row(role: str, seed: int, scale: float, arm: Reference, text: Reference) -> dict[str, Any]:
    """Return what a stage says of its model."""
    (lost,) = [row for row in tables.read(arm.table("held_out")) if row["part"] == PART and row["source"] is None]
    return {
        "flow": "slimmed_lm", "dataset": "stories260K's own text", "role": role, "seed": seed, "scale": scale,
        "parameters": arm.summary["parameters"], "non_embedding": arm.summary["non_embedding"], "nats": lost["nats"],
        "stderr": lost["stderr"], "n": lost["tokens"], "n_train": text.summary["tokens"]["train"],
        "seconds": arm.seconds, "identity": arm.identity, "code": arm.code,
    }  # fmt: skip
