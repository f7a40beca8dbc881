"""What an audit found, drawn: SVG as text, without a library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

__all__ = ["canary_plot", "membership_plot"]

_WIDE, _HIGH = 640.0, 360.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 60.0, 20.0, 64.0, 46.0
_IN, _OUT = "#aa3377", "#4477aa"
_BINS = 40
_LEAST = 1e-4  # of a logarithmic axis


def canary_plot(scores: NDArray[np.float64], included: NDArray[np.bool_], lines: Sequence[str]) -> str:
    """Two histograms over one axis: scores of canaries that were in, and of those that were out.

    Args:
        scores: ``(m,)``.
        included: ``(m,)``.
        lines: What stands above.
    """
    low, high = float(scores.min()), float(scores.max())
    high = high if high > low else low + 1
    edges = np.linspace(low, high, _BINS + 1)
    counts = [np.histogram(scores[which], edges)[0] for which in (~included, included)]
    most = max(1, *(int(count.max()) for count in counts))
    bars = []
    width = (_WIDE - _LEFT - _RIGHT) / _BINS
    for count, colour in zip(counts, (_OUT, _IN), strict=True):
        for place, number in enumerate(count.tolist()):
            high_bar = (_HIGH - _TOP - _BOTTOM) * number / most
            x, y = _LEFT + place * width, _HIGH - _BOTTOM - high_bar
            bars.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{high_bar:.1f}" fill="{colour}" '
                'fill-opacity="0.55"/>'
            )
    across, up = (_WIDE - _LEFT - _RIGHT) / (high - low), (_HIGH - _TOP - _BOTTOM) / most
    ticks = [(_LEFT + across * (value - low), f"{value:.9g}") for value in _round(low, high)]
    heights = [(_HIGH - _BOTTOM - up * value, f"{value:g}") for value in _round(0, most, least=1)]
    legend = (("out", _OUT), ("in", _IN))
    return _picture(bars, lines, ticks, heights, "score, in clipping norms", "canaries", legend)


def membership_plot(
    curve: Sequence[tuple[float, float]], at: tuple[float, float, float, float], lines: Sequence[str]
) -> str:
    """True positives over false positives, both axes logarithmic, with the diagonal of guessing.

    Args:
        curve: Rates: (false positive, true positive), ascending.
        at: The false positive rate that is asked for, the true positive rate there, and its interval.
        lines: What stands above.
    """
    points = " ".join(f"{_across(x):.1f},{_up(y):.1f}" for x, y in curve)
    rate, shown, low, high = at
    drawn = [
        f'<line x1="{_across(_LEAST):.1f}" y1="{_up(_LEAST):.1f}" x2="{_across(1):.1f}" y2="{_up(1):.1f}" '
        'stroke="#999" stroke-dasharray="4 3"/>',
        f'<polyline points="{points}" fill="none" stroke="{_IN}" stroke-width="1.5"/>',
        f'<line x1="{_across(rate):.1f}" y1="{_up(low):.1f}" x2="{_across(rate):.1f}" y2="{_up(high):.1f}" '
        f'stroke="{_OUT}" stroke-width="2"/>',
        f'<circle cx="{_across(rate):.1f}" cy="{_up(shown):.1f}" r="4" fill="{_OUT}"/>',
    ]
    decades = [10.0**power for power in range(-4, 1)]
    across = [(_across(rate), f"{rate:g}") for rate in decades]
    up = [(_up(rate), f"{rate:g}") for rate in decades]
    legend = (("the test", _IN), (f"at {rate:g}", _OUT), ("guessing", "#999"))
    return _picture(drawn, lines, across, up, "false positive rate", "true positive rate", legend)


def _round(low: float, high: float, *, least: float = 0) -> list[float]:
    """Round numbers between two others, in eight steps at most, each of ``least`` or more."""
    apart = max((high - low) / 8, least)
    decade = 10.0 ** math.floor(math.log10(apart))
    step = next(some * decade for some in (1, 2, 5, 10) if some * decade >= apart)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _across(rate: float) -> float:
    return _LEFT + (_WIDE - _LEFT - _RIGHT) * _decades(rate)


def _up(rate: float) -> float:
    return _HIGH - _BOTTOM - (_HIGH - _TOP - _BOTTOM) * _decades(rate)


def _decades(rate: float) -> float:
    return 1 + math.log10(max(rate, _LEAST)) / -math.log10(_LEAST)


def _picture(
    drawn: Sequence[str],
    lines: Sequence[str],
    across: Sequence[tuple[float, str]],
    up: Sequence[tuple[float, str]],
    x_title: str,
    y_title: str,
    legend: Sequence[tuple[str, str]],
) -> str:
    floor, right = _HIGH - _BOTTOM, _WIDE - _RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE:.0f} {_HIGH:.0f}" role="img" '
        f'aria-label="{escape("; ".join(lines))}" font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDE:.0f}" height="{_HIGH:.0f}" fill="white"/>',
        *(f'<text x="{_LEFT:.0f}" y="{18 + 15 * row}">{escape(line)}</text>' for row, line in enumerate(lines)),
        *drawn,
        f'<path d="M{_LEFT:.0f} {_TOP:.0f}V{floor:.0f}H{right:.0f}" fill="none" stroke="black"/>',
        *(f'<path d="M{x:.1f} {floor:.0f}v4" stroke="black"/>' for x, _ in across),
        *(f'<text x="{x:.1f}" y="{floor + 17:.0f}" text-anchor="middle">{escape(text)}</text>' for x, text in across),
        *(f'<path d="M{_LEFT:.0f} {y:.1f}h-4" stroke="black"/>' for y, _ in up),
        *(f'<text x="{_LEFT - 8:.0f}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>' for y, text in up),
        f'<text x="{(_LEFT + right) / 2:.0f}" y="{_HIGH - 10:.0f}" text-anchor="middle">{escape(x_title)}</text>',
        f'<text x="{_LEFT:.0f}" y="{_TOP - 8:.0f}">{escape(y_title)}</text>',
    ]
    for place, (text, colour) in enumerate(legend):
        x = right - 90 * (len(legend) - place)
        parts.append(f'<rect x="{x:.0f}" y="{_TOP - 17:.0f}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 14:.0f}" y="{_TOP - 8:.0f}">{escape(text)}</text>')
    return "".join([*parts, "</svg>\n"])
