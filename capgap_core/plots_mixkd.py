"""Draws the arms of MixKD over the size of the training set, as PNG."""

from collections.abc import Mapping, Sequence
from typing import Any

from capgap_core.plots import BLUE, GREEN, GREY, ORANGE, RED, figure_of, png_of

STYLES = {
    "finetune": (GREY, "v", ":"), "kd": (ORANGE, "s", "-"), "kd_sm": (GREEN, "^", "-"),
    "kd_tmkd": ("#CC79A7", "D", "-"), "mixkd": (BLUE, "o", "-"),
    "kd_unlabelled": (ORANGE, "P", ":"), "mixkd_unlabelled": (BLUE, "P", ":"),
    "repeats": (ORANGE, "x", "--"), "noise": (RED, "+", "--"),
}  # fmt: skip
PANELS = (("value", "{metric}, evaluation part"), ("gap", "training minus evaluation"), ("calibration_error", "ECE"))


def arms(rows: Sequence[Mapping[str, Any]], *, metric: str) -> bytes:
    """Return the metric, its gap and the calibration error of each arm over training rows, as PNG.

    Parameters
    ----------
    rows
        Of the table ``ablation``.
    """
    whole, axes = figure_of(1, len(PANELS))
    names = list(dict.fromkeys(row["role"].split()[0] for row in rows))
    sizes = sorted({row["n_train"] for row in rows})
    for panel, (column, title) in zip(axes, PANELS, strict=True):
        for name in names:
            own = sorted((r for r in rows if r["role"].split()[0] == name), key=lambda r: r["n_train"])
            points = [(r["n_train"], r[column], r["stderr"]) for r in own if r[column] is not None]
            colour, mark, line = STYLES[own[0]["arm"]]
            tokens = own[0]["matched"] == "tokens"
            spread = [p[2] or 0.0 for p in points] if column == "value" else None
            panel.errorbar(
                [p[0] for p in points], [p[1] for p in points], yerr=spread, color=colour, marker=mark,
                ls="-." if tokens else line, ms=5, lw=1.1, capsize=2, mfc="none" if tokens else colour, label=name,
            )  # fmt: skip
        if column == "value":
            taught = sorted({(row["n_train"], row["teacher_value"]) for row in rows})
            panel.plot(*zip(*taught, strict=True), color=GREY, lw=1, ls="--", marker="_", label="teacher")
        panel.set_xscale("log")
        panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
        panel.minorticks_off()
        panel.margins(x=0.15)
        panel.set_title(title.format(metric=metric), fontsize=9)
        panel.grid(color="#dddddd", lw=0.6)
    axes[1].set_xlabel(f"training rows (n = {rows[0]['n']:,} to evaluate, ± 1 standard error)", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    whole.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return png_of(whole)
