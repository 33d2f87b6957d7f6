"""Which learning rate is best for which width: what stands behind rates proportional to 1 / width."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

import pandas as pd

from capgap_core import law, published_grid
from capgap_core.ladder import BASE, HEAD
from capgap_core.lm_recipes import ALONE, Sizes
from capgap_core.markdown import table
from capgap_core.method import Caller
from capgap_core.preflight import CheckedLaw
from capgap_core.stages import pretrain
from capgap_core.store import read_record
from capgap_core.training import Training

WIDTHS = (16, 32, 64, 128)
LAYERS = 2
RATES = tuple(0.04 / 2**i for i in range(6))
STEPS = 250
SEEDS = (1, 2)
Means = Mapping[int, Mapping[float, float]]
"""Width → learning rate → mean loss."""


def shape_of(width: int) -> Sizes:
    """Return two layers of a width."""
    heads = width // HEAD
    return Sizes(layers=LAYERS, hidden=width, heads=heads, kv_heads=heads, neurons=8 * round(width / 3))


def follow(checked: CheckedLaw, call: Caller) -> Iterator[dict[str, Any]]:
    """Train every width at every rate, with each seed, on as many steps; yield a published row for each."""
    grid, p = law.grid_of(checked), checked.parameters
    text = call("text", grid.text, {}, role="", execution=p.run)
    rows = law.rows_of(STEPS * p.training.batch_size * p.training.length, p.training.length, text)
    for seed, width, rate in itertools.product(SEEDS, WIDTHS, RATES):
        asked = p.training
        training = Training(
            steps=STEPS, learning_rate=rate, batch_size=asked.batch_size, room=None,
            per_epoch=-(-rows // asked.batch_size), micro_batch=asked.batch_size, weight_decay=asked.weight_decay,
            warmup=asked.warmup, clip=asked.clip, dtype=asked.dtype, seed=seed,
        )  # fmt: skip
        recipe = pretrain.Recipe(
            scratch=shape_of(width), length=asked.length, rows=rows, held_out_rows=asked.held_out_rows,
            objective=ALONE, training=training, seed=seed,
        )  # fmt: skip
        made = call("pretrain", recipe, {"text": text}, role=f"width {width} at {rate:g}", execution=p.run)
        yield {
            "flow": "law", "dataset": checked.text.name, "role": "alone", "width": width, "learning_rate": rate,
            "seed": seed, "steps": STEPS, "parameters": made.summary["non_embedding"],
            "nats": made.summary["nats_valid"], "seconds": made.seconds, "identity": made.identity, "code": made.code,
            "device": read_record(made.folder).provenance["device"],
        }  # fmt: skip


def readme_table(frame: pd.DataFrame) -> str:
    """Return the loss of each width over its rate, and what one rule for all widths costs each of them.

    A rule names one number for all widths: a rate, or a rate times the width. Its number is the one of the measured
    ones whose losses, summed over the widths, are least; a width that was not measured at it is not told of.
    """
    rows = published_grid.rows(frame)
    held: dict[int, dict[float, list[float]]] = {}
    for row in rows:
        held.setdefault(row["width"], {}).setdefault(row["learning_rate"], []).append(row["nats"])
    means = {width: {rate: fmean(own[rate]) for rate in sorted(own)} for width, own in sorted(held.items())}
    rates = sorted({rate for losses in means.values() for rate in losses})
    lines = []
    for width, losses in means.items():
        best = min(losses, key=lambda rate: losses[rate])
        cells = [f"**{losses[rate]:.3f}**" if rate == best else f"{losses[rate]:.3f}" for rate in rates]
        lines.append([str(width), *cells, f"{best:g}"])
    seeds = len({row["seed"] for row in rows})
    spread = fmean(pstdev(values) for own in held.values() for values in own.values())
    said = [
        f"{seeds} seeds, {rows[0]['steps']} steps, nats of the part valid; the standard deviation over seeds is "
        f"{spread:.3f} on average.",
        _rule("One rate for all widths, {:g}", means, lambda width, rate: rate),
        _rule(f"{{:g}} x {BASE} / width", means, lambda width, rate: rate * width / BASE),
    ]
    return table(["width", *(f"{rate:g}" for rate in rates), "best"], lines) + "\n\n" + " ".join(said)


def _rule(name: str, means: Means, number: Callable[[int, float], float]) -> str:
    """Return how much more than at its own best rate each width loses by a rule, at the rule's best number."""
    lost: dict[float, list[float]] = {}
    for width, losses in means.items():
        for rate, nats in losses.items():
            lost.setdefault(round(number(width, rate), 9), []).append(nats - min(losses.values()))
    whole = {key: values for key, values in lost.items() if len(values) == len(means)}
    best = min(whole, key=lambda key: sum(whole[key]))
    return f"{name.format(best)}: {_worst(whole[best])}."


def _worst(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3f} nats beyond each width's own best on average, {max(values):.3f} at most"
