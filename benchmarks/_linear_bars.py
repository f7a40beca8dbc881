"""Stacked bars: where a linear fit's time goes, a bar a session, a colour a phase."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["plot"]

_COLOURS = {
    "start": ("#dddddd", ("start", "connect", "session")),
    "reading a file": ("#ccbb44", ("read",)),
    "groups and their proofs": ("#4477aa", ("groups",)),
    "answers": ("#66ccee", ("answers",)),
    "checks": ("#aa3377", ("checks",)),
    "inputs": ("#ee6677", ("inputs",)),
    "online": ("#228833", ("online", "release")),
}


def plot(path: Path, panels: Mapping[str, Mapping[str, Mapping[str, Any]]], *, subtitle: str) -> None:
    """Draws it.

    Args:
        path: SVG or PNG, by its suffix.
        panels: By title: sessions by their label, each with ``phases``.
        subtitle: The machine, the sizes, and whatever a reader must know not to misread it.
    """
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "cloister"
    from matplotlib import pyplot

    bars = [len(rows) for rows in panels.values()]
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(2.2 + 0.85 * sum(bars), 4.6), squeeze=False, width_ratios=bars
    )
    for axis, (title, rows) in zip(axes[0], panels.items(), strict=True):
        below = [0.0] * len(rows)
        for name, (colour, phases) in _COLOURS.items():
            values = [sum(row["phases"].get(phase, {}).get("wall_s", 0) for phase in phases) for row in rows.values()]
            if max(values) > 0.01 * max(row["wall_s"] for row in rows.values()) or name == "online":
                axis.bar(list(rows), values, bottom=below, label=name, color=colour, width=0.7)
            below = [a + b for a, b in zip(below, values, strict=True)]
        for place, total in enumerate(below):
            axis.annotate(f"{total:.0f}" if total >= 10 else f"{total:.1f}", (place, total), ha="center", va="bottom")
        axis.set_title(title, fontsize=10)
        axis.tick_params(axis="x", labelsize=8)
        axis.margins(y=0.08)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("seconds")
    legend = {
        label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    ordered = [name for name in _COLOURS if name in legend]
    figure.legend(
        [legend[name] for name in ordered], ordered, loc="upper center", ncols=len(ordered), fontsize=8, frameon=False
    )
    figure.text(0.5, 0.01, subtitle, ha="center", fontsize=7)
    figure.tight_layout(rect=(0, 0.04, 1, 0.93))
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
