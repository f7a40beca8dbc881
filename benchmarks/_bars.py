"""Stacked bars: where a step's time goes, a bar a contender, a panel a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["plot"]

Rows = Mapping[str, Mapping[str, Any]]

_COLOURS = {
    "PRG": "#4477aa",
    "quantise": "#66ccee",
    "transfer": "#ccbb44",
    "GEMM": "#bbbbbb",
    "verify": "#aa3377",
    "non-linear": "#228833",
}
_LINES = ((0, (4, 2)), (0, (1, 1)))


def plot(path: Path, panels: Mapping[str, Rows], *, total: str, lines: Sequence[str], subtitle: str) -> None:
    """Draws it.

    Args:
        path: SVG or PNG, by its suffix.
        panels: By title: rows by contender, each with ``stages_s`` where it has stages.
        total: Name of a row's seconds.
        lines: Contenders without stages that are drawn as a line: the baselines.
        subtitle: The machine, the sizes, and whatever a reader must know not to misread it.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(max(8.0, 4.2 * len(panels)), 4.4), squeeze=False)
    for axis, (title, rows) in zip(axes[0], panels.items(), strict=True):
        names = [name for name in rows if "stages_s" in rows[name]]
        below = [0.0] * len(names)
        for stage, colour in _COLOURS.items():
            values = [rows[name]["stages_s"][stage] for name in names]
            axis.bar(names, values, bottom=below, label=stage, color=colour)
            below = [a + b for a, b in zip(below, values, strict=True)]
        for name, style in zip([name for name in lines if name in rows], _LINES, strict=False):
            axis.axhline(rows[name][total], color="black", linewidth=1, linestyle=style, label=f"{name}, alone")
        axis.set_title(title, fontsize=10)
        axis.set_ylabel("seconds")
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(labels), fontsize=8, frameon=False)
    figure.text(0.5, 0.01, subtitle, ha="center", fontsize=7)
    figure.tight_layout(rect=(0, 0.04, 1, 0.93))
    figure.savefig(path)
    pyplot.close(figure)
