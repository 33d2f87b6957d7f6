"""Draws the figures of a report as PNG: the tradeoff, the arms, the training curves.

Colours are Okabe and Ito's, which colour-blind readers tell apart; no mark is known by its colour alone.
"""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from capgap_core.facts import Candidate, Score

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"

ARMS = ("teacher", "assistant", "student", "direct_flops", "direct", "slimmed")

_POINTS = 300


def tradeoff(
    candidates: Sequence[Candidate], *, lam: float, metric: str, teacher: float | None = None, span: float = 1.0,
    best: str = "chosen TA",
) -> bytes:  # fmt: skip
    """Return m (left) and t (right) of each candidate and of the target, larger models left, as PNG.

    Parameters
    ----------
    candidates
        Rows as in the report; error bars are one standard error.
    teacher
        Its metric on the selection part, drawn as a line.
    span
        What the metric was divided by in t (teacher - chance where it is normalised), for the error bars of t.
    best
        The name of the candidate of the best t.
    """
    drawn, (left, right) = figure_of(1, 2)
    places = {c["scale"]: i for i, c in enumerate(sorted(candidates, key=lambda c: -c["scale"]))}
    for axes, key, unit in ((left, "metric", 1.0), (right, "tradeoff", span)):
        _candidates(axes, candidates, places, key, unit, best)
        axes.set_xticks(list(places.values()), [f"{scale:g}" for scale in places])
        axes.set_xlabel("scale (kept share)", fontsize=9)
        axes.margins(x=0.1, y=0.18)
    first = next(c for c in candidates if c["chosen"])
    if first["stderr"] is not None:
        floor = first["tradeoff"] - first["stderr"] / span
        right.axhspan(floor, first["tradeoff"], color=ORANGE, alpha=0.18, lw=0, label="within 1 standard error of it")
    if teacher is not None:
        left.axhline(teacher, color=GREY, lw=1, ls="--", label="teacher")
    left.set_title(f"m: {metric} on the selection part", fontsize=9)
    right.set_title(f"t = m{'' if span == 1.0 else chr(39)} + {lam:g}(1 - achieved scale)", fontsize=9)
    handles = {name: h for axes in (left, right) for h, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    drawn.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return png_of(drawn)


def arms(scores: Mapping[str, Score], *, constant: float, metric: str, split: str, n: int) -> bytes:
    """Return the evaluation metric of each role as a point with one standard error, and the constant answer, as PNG."""
    drawn, (axes,) = figure_of(1, 1)
    roles = [role for role in ARMS if role in scores]
    styles = {"student": (BLUE, "o"), "direct_flops": (ORANGE, "s"), "direct": (RED, "D"), "assistant": (GREEN, "^")}
    styles |= {"teacher": (GREY, "P"), "slimmed": (GREY, "v")}
    for i, role in enumerate(roles):
        colour, marker = styles[role]
        score = scores[role]
        axes.errorbar(
            score["value"], i, xerr=score["stderr"], fmt=marker, color=colour, ms=7, capsize=3, elinewidth=1.4
        )
        axes.annotate(
            f"{score['value']:.3f}", (score["value"], i), xytext=(0, 7), textcoords="offset points",
            ha="center", fontsize=8,
        )  # fmt: skip
    axes.axvline(constant, color=GREY, lw=1, ls=":")
    axes.annotate(
        "constant answer", (constant, 1), xycoords=("data", "axes fraction"), xytext=(4, -10),
        textcoords="offset points", fontsize=8, color=GREY,
    )  # fmt: skip
    axes.set_yticks(range(len(roles)), [_shown(role) for role in roles])
    axes.invert_yaxis()
    axes.margins(x=0.08, y=0.12)
    axes.set_xlabel(f"{metric} on {split} (n = {n:,}), ± 1 standard error", fontsize=9)
    axes.grid(axis="x", color="#dddddd", lw=0.6)
    return png_of(drawn)


def curves(stages: Mapping[str, Sequence[tuple[int, float]]]) -> bytes:
    """Return the loss over optimizer steps of each trained stage, a panel each, as PNG.

    Parameters
    ----------
    stages
        Name → (step, total loss), steps rising. Losses of different stages are different sums, so each has its axis.
    """
    columns = min(3, max(1, len(stages)))
    rows = max(1, math.ceil(len(stages) / columns))
    drawn, panels = figure_of(rows, columns)
    for axes, (name, points) in zip(panels, stages.items(), strict=False):
        steps, losses = _thinned(points)
        axes.plot(steps, losses, color=BLUE, lw=1.1)
        axes.set_title(_shown(name), fontsize=9)
        axes.margins(x=0.02)
        axes.grid(color="#dddddd", lw=0.6)
    for axes in panels[len(stages) :]:
        axes.set_visible(False)
    drawn.supxlabel("optimizer step", fontsize=9)
    drawn.supylabel("loss", fontsize=9)
    return png_of(drawn)


def _shown(role: str) -> str:
    return {"direct": "direct, equal epochs", "direct_flops": "direct, equal FLOPs"}.get(role, role)


def figure_of(rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    """Return a figure that no window system knows of, so that it may be drawn in any thread."""
    figure = Figure(figsize=(7.0, 3.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels: list[Axes] = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return figure, panels


def _candidates(
    axes: Axes, candidates: Sequence[Candidate], places: Mapping[float, int], key: str, unit: float, best: str
) -> None:
    """Draw one quantity of the candidates as a line, the best by t with a ring, the target as a mark of its own."""
    regular = [c for c in candidates if not c["target"]]
    regular.sort(key=lambda c: places[c["scale"]])
    spread = [0.0 if c["stderr"] is None else c["stderr"] / unit for c in regular]
    at = [places[c["scale"]] for c in regular]
    axes.errorbar(
        at, [_value(c, key) for c in regular], yerr=spread, fmt="o-", color=BLUE, ms=5, lw=1.2, capsize=3,
        label="candidate",
    )  # fmt: skip
    for c in candidates:
        place, value = places[c["scale"]], _value(c, key)
        if c["target"]:
            error = None if c["stderr"] is None else c["stderr"] / unit
            axes.errorbar(place, value, yerr=error, fmt="X", color=RED, ms=8, capsize=3, label="target (never chosen)")
        if c["chosen"]:
            axes.plot(place, value, "o", ms=13, mfc="none", mec=ORANGE, mew=2.2, ls="none", label=best)


def _value(candidate: Candidate, key: str) -> float:
    return candidate["metric"] if key == "metric" else candidate["tradeoff"]


def _thinned(points: Sequence[tuple[int, float]]) -> tuple[list[float], list[float]]:
    """Return means over neighbouring steps where there are more points than the figure has room for."""
    blocks = np.array_split(np.asarray(points, dtype=float).reshape(-1, 2), min(_POINTS, max(1, len(points))))
    means = [block.mean(axis=0) for block in blocks if len(block)]
    return [float(m[0]) for m in means], [float(m[1]) for m in means]


def png_of(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    stream = io.BytesIO()
    # Without a version string the bytes depend on the figure alone.
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
