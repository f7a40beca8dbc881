"""Accuracy of several trainings, epoch by epoch: over steps, and over the processor's time."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["plot"]

_COLOURS = ("#aa3377", "#4477aa", "#66ccee", "#228833", "#ccbb44")
_STYLES = ("-", "--", ":", "-.")


def plot(path: Path, runs: Sequence[Mapping[str, Any]], *, subtitle: str) -> None:
    """Draws it.

    Args:
        path: SVG or PNG, by its suffix.
        runs: Each with ``variant``, which has a colour, ``epsilon``, which has a style of line, and ``curve``: of every
            epoch its ``accuracy`` in percent, its ``steps`` so far and its own ``cpu_s``.
        subtitle: The network, the machine, and whatever a reader must know not to misread it.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9.6, 4.4), sharey=True)
    variants, budgets = ([*dict.fromkeys(run[name] for run in runs)] for name in ("variant", "epsilon"))
    for run in (run for run in runs if run["curve"]):
        minutes = itertools.accumulate(each["cpu_s"] / 60 for each in run["curve"])
        accuracy = [each["accuracy"] for each in run["curve"]]
        for axis, across in zip(axes, ([each["steps"] for each in run["curve"]], [*minutes]), strict=True):
            axis.plot(
                across,
                accuracy,
                color=_COLOURS[variants.index(run["variant"]) % len(_COLOURS)],
                linestyle=_STYLES[budgets.index(run["epsilon"]) % len(_STYLES)],
                marker="o",
                markersize=3,
                label=f"{run['variant']}, ε = {run['epsilon']}",
            )
    for axis, title in zip(axes, ("steps", "minutes of CPU time"), strict=True):
        axis.set_xlabel(title)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("accuracy, %")
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="upper center", ncols=3, fontsize=8, frameon=False)
    figure.text(0.5, 0.01, subtitle, ha="center", fontsize=7)
    figure.tight_layout(rect=(0, 0.03, 1, 0.88))
    figure.savefig(path)
    pyplot.close(figure)
