"""Draws what a grid says of teachers and students, as PNG."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from capgap_core import law_findings
from capgap_core.laws.apple_fit import REACH, AppleFit
from capgap_core.laws.fits import Fits
from capgap_core.laws.grid import Cells, Floats
from capgap_core.laws.line import PUBLISHED_RATIO, Power, budget_of
from capgap_core.laws.optimum import Optimum
from capgap_core.markdown import short
from capgap_core.plots import BLUE, GREEN, GREY, ORANGE, RED, figure_of, png_of

COLOURS = (BLUE, ORANGE, GREEN, RED, GREY)
LEVELS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
"""Nats of the surface's colours."""
MOST = 4
"""Budgets that have a panel of their own; those of a grid are few."""
MARKS = ("o", "s", "^", "D", "v")


@dataclass(frozen=True, kw_only=True)
class Words:
    """What stands beside the marks."""

    loss: str = "nats for a token"
    size: Callable[[float], str] = short
    student: Callable[[float, float], str] = lambda student, tokens: f"{short(student)} on {short(tokens)}"
    """Of a student's parameters and tokens."""
    budget: Callable[[float], str] = "{:g} tokens a parameter".format
    """Of tokens for each parameter of a student."""


OF_MODELS = Words()
"""Of language models, which sizes and tokens name."""


def words_of_scales(metric: str, sizes: Mapping[float, float]) -> Words:
    """Return the words of models that are slimmed, with scale → parameters, which all learn for as long."""
    scales = {size: scale for scale, size in sizes.items()}

    def named(size: float) -> str:
        return f"{short(size)} ({scales[size]:g})"

    return Words(
        loss=f"1 - {metric}", size=named, student=lambda student, _: named(student), budget=lambda _: "all students"
    )


def losses(fits: Fits, words: Words = OF_MODELS) -> bytes:
    """Return the loss of each student over the size of its teacher, a panel for each student and budget, as PNG.

    Bars are two standard errors of a mean over seeds, after what a seed does to all teachers alike.
    """
    curves = list(fits.cells.curves())
    whole, panels = _panels(len(curves), 5, 1.9)
    for axes, (student, tokens, curve), one in zip(panels, curves, fits.optima, strict=True):
        _curve(axes, fits, curve, one, words)
        axes.set_title(
            words.student(student, tokens) + ("" if one.found == "bracketed" else f"\n{one.found}"), fontsize=7
        )
    whole.supxlabel("parameters of the teacher", fontsize=9)
    whole.supylabel(words.loss, fontsize=9)
    _legend(whole, panels)
    return png_of(whole)


def _panels(count: int, most: int, inches: float) -> tuple[Figure, list[Axes]]:
    """Return a figure of so many panels, at most so many in a row, each about so many inches wide and high."""
    columns = min(most, max(1, count))
    rows = max(1, -(-count // columns))
    whole = Figure(figsize=(1.0 + inches * columns, 0.8 + inches * rows), dpi=100, layout="constrained")
    FigureCanvasAgg(whole)
    panels: list[Axes] = list(np.ravel(whole.subplots(rows, columns, squeeze=False)))
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    for axes in panels[max(1, count) :]:
        axes.set_visible(False)
    return whole, panels[: max(1, count)]


def _curve(axes: Axes, fits: Fits, curve: Cells, one: Optimum, words: Words) -> None:
    sizes, means, counts = _means(curve)
    student, tokens = one.student, one.tokens
    spread = 2 * np.sqrt(fits.noise.variance / counts)
    axes.errorbar(sizes, means, yerr=spread, fmt="o", color=BLUE, ms=4, lw=1.1, capsize=2, label="of a teacher")
    own = (fits.alone.parameters == student) & (fits.alone.tokens == tokens) & ~fits.alone.teaches
    if own.any():
        axes.axhline(float(fits.alone.loss[own].mean()), color=GREY, lw=1, ls="--", label="alone")
    if isinstance(fits.apple, AppleFit):
        along = fits.apple.sizes(sizes[0], sizes[-1], 60)
        axes.plot(along, fits.apple.curve(along, student, tokens), color=GREEN, lw=1, label="Apple's law")
    if one.found == "bracketed":
        held = one.interval()
        axes.axvline(held.value, color=ORANGE, lw=1.2, label="T*, 90% interval")
        axes.axvspan(held.low, held.high, color=ORANGE, alpha=0.18, lw=0)
    _by_size(axes, x=sizes, words=words)
    axes.tick_params(axis="y", labelsize=7)


def teachers(fits: Fits, words: Words = OF_MODELS) -> bytes:
    """Return the best teacher over the size of the student, with the laws, a panel for each budget, as PNG.

    A student without a bracketed optimum has a mark at the end that was best, or a cross where none was.
    """
    budgets = sorted(fits.powers)[:MOST] or [0.0]
    drawn, panels = _panels(len(budgets), 2, 3.3)
    theirs = np.unique(fits.cells.teacher) if len(fits.cells) else np.array([1.0])
    for axes, budget in zip(panels, budgets, strict=True):
        own = [one for one in fits.optima if budget_of(one.student, one.tokens) == budget]
        _best(axes, own, theirs)
        if own:
            _laws(axes, fits, own, budget)
        _by_size(axes, x=np.array(sorted({one.student for one in own})), y=theirs, words=words)
        axes.set_title(words.budget(budget), fontsize=9)
        axes.set_xlabel("parameters of the student", fontsize=9)
        axes.grid(color="#dddddd", lw=0.6)
    panels[0].set_ylabel("parameters of its best teacher", fontsize=9)
    _legend(drawn, panels)
    return png_of(drawn)


def _best(axes: Axes, own: Sequence[Optimum], theirs: Floats) -> None:
    for one in own:
        if one.found == "bracketed":
            held = one.interval()
            error = [[held.value - held.low], [held.high - held.value]]
            axes.errorbar(one.student, held.value, yerr=error, fmt="o", color=BLUE, capsize=3, label="T*, 90% interval")
            continue
        ends = {"the smallest teacher is best": (0, "v"), "the largest teacher is best": (-1, "^")}
        place, mark = ends.get(one.found, (len(theirs) // 2, "x"))
        said = one.found if one.found in ends else "not told by the data"
        axes.plot(one.student, theirs[place], mark, color=GREY, ms=7, ls="none", label=said)


def _laws(axes: Axes, fits: Fits, own: Sequence[Optimum], budget: float) -> None:
    sizes = np.geomspace(min(o.student for o in own), max(o.student for o in own), 40)
    axes.plot(sizes, PUBLISHED_RATIO * sizes, color=GREY, lw=1, ls="--", label=f"{PUBLISHED_RATIO:g} S (published)")
    power = fits.powers.get(budget)
    if isinstance(power, Power):
        axes.plot(sizes, [power.teacher(s).value for s in sizes], color=ORANGE, lw=1.2, label="power")
        axes.plot(sizes, [power.teacher_by_ratio(s).value for s in sizes], color=RED, lw=1.2, label="constant ratio")
    if isinstance(fits.apple, AppleFit):
        named = [law_findings.told(fits.apple, float(s), budget * float(s)) for s in sizes]
        axes.plot(sizes, [one.value for one in named], color=GREEN, lw=1.2, label="Apple's law")
        low, high = fits.apple.teachers[0] / REACH, fits.apple.teachers[1] * REACH
        ends = np.clip([[one.low, one.high] for one in named], low, high)
        axes.fill_between(sizes, ends[:, 0], ends[:, 1], color=GREEN, alpha=0.15, lw=0)


def residuals(fits: Fits) -> bytes | None:
    """Return what Apple's law misses of each cell, over its teacher and over its student, as PNG; null without it."""
    if not isinstance(fits.apple, AppleFit):
        return None
    cells = fits.cells
    said = fits.apple.distilled.loss(cells.student, cells.tokens, cells.teacher_loss, fits.apple.supervised)
    missed = 100 * np.log(cells.loss / said)
    drawn, panels = figure_of(1, 2)
    for axes, (x, name) in zip(panels, ((cells.teacher, "teacher"), (cells.student, "student")), strict=True):
        for i, budget in enumerate(sorted({budget_of(s, d) for s, d, _ in cells.curves()})):
            own = np.array([budget_of(s, d) == budget for s, d in zip(cells.student, cells.tokens, strict=True)])
            axes.plot(
                x[own], missed[own], ls="none", ms=4, mfc="none", color=COLOURS[i % 5], marker=MARKS[i % 5],
                label=f"{budget:g} tokens a parameter",
            )  # fmt: skip
        axes.axhline(0.0, color=GREY, lw=1)
        _by_size(axes, x=np.unique(x))
        axes.set_xlabel(f"parameters of the {name}", fontsize=9)
        axes.grid(color="#dddddd", lw=0.6)
    panels[0].set_ylabel("measured over predicted loss, %", fontsize=9)
    _legend(drawn, panels)
    return png_of(drawn)


def surface(fits: Fits) -> bytes | None:
    """Return the loss by Apple's law over student and teacher, beyond the best of each student, as PNG."""
    if not isinstance(fits.apple, AppleFit):
        return None
    budgets = sorted({budget_of(s, d) for s, d, _ in fits.cells.curves()})[:MOST]
    drawn, panels = _panels(len(budgets), 2, 3.3)
    students = np.geomspace(fits.cells.student.min(), fits.cells.student.max(), 40)
    sizes = fits.apple.sizes(fits.cells.teacher.min(), fits.cells.teacher.max(), 40)
    for axes, budget in zip(panels, budgets, strict=True):
        table = np.stack([fits.apple.curve(sizes, float(s), budget * float(s)) for s in students], axis=1)
        beyond = np.maximum(table - table.min(axis=0), LEVELS[0])
        shown = axes.contourf(students, sizes, beyond, levels=LEVELS, norm=LogNorm(), cmap="viridis_r", extend="max")
        axes.plot(students, sizes[table.argmin(axis=0)], color=RED, lw=1.2)
        axes.plot(fits.cells.student, fits.cells.teacher, ".", color="black", ms=3, ls="none")
        _by_size(axes, x=np.unique(fits.cells.student), y=np.unique(fits.cells.teacher))
        axes.set_title(f"{budget:g} tokens a parameter", fontsize=9)
        axes.set_xlabel("parameters of the student", fontsize=9)
        drawn.colorbar(shown, ax=axes, format="%g").ax.tick_params(labelsize=7)
    panels[0].set_ylabel("parameters of the teacher", fontsize=9)
    drawn.suptitle("Apple's law: nats beyond the best teacher (line) of each student; points: cells", fontsize=9)
    return png_of(drawn)


def _by_size(axes: Axes, *, x: Floats | None = None, y: Floats | None = None, words: Words = OF_MODELS) -> None:
    """Mark axes by these sizes, in their logarithm."""
    if x is not None:
        axes.set_xscale("log")
        axes.set_xticks(x, [words.size(size) for size in x], fontsize=7, rotation=45)
    if y is not None:
        axes.set_yscale("log")
        axes.set_yticks(y, [words.size(size) for size in y], fontsize=7)
    axes.minorticks_off()


def _legend(whole: Figure, panels: Sequence[Axes]) -> None:
    """Name each mark once, whichever panel it stands in."""
    handles = {name: h for axes in panels for h, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    whole.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, frameon=False, fontsize=8)


def _means(curve: Cells) -> tuple[Floats, Floats, Floats]:
    """Return teachers, the mean loss of each, and over how many seeds."""
    sizes, which = np.unique(curve.teacher, return_inverse=True)
    counts = np.bincount(which)
    return sizes, np.bincount(which, curve.loss) / counts, counts.astype(np.float64)
