"""Pictures of what an audit found: axes that can be read, whatever was measured."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from cloister.privacy._audit_plots import canary_plot, membership_plot

_LETTER = 6.5  # of eleven pixels
SPREADS = [(0.0, 1.0), (0.007, 31.7), (0.0, 5e-4), (0.0, 1e7), (1000.0, 1e-3), (-2.0, 1.3), (3.0, 0.0)]


def texts(svg: str) -> list[tuple[float, float, str, str]]:
    """Where each text is, its anchor and what it says."""
    root = ElementTree.fromstring(svg)  # noqa: S314 - our own
    return [
        (float(each.attrib["x"]), float(each.attrib["y"]), each.attrib.get("text-anchor", "start"), each.text or "")
        for each in root.iter("{http://www.w3.org/2000/svg}text")
    ]


def axes(svg: str) -> tuple[list[tuple[float, str]], list[tuple[float, str]]]:
    """Labels along the horizontal axis, and along the vertical one, by place."""
    rows: dict[float, list[tuple[float, str]]] = defaultdict(list)
    for x, y, anchor, text in texts(svg):
        if anchor == "middle":
            rows[y].append((x, text))
    up = [(y, text) for _, y, anchor, text in texts(svg) if anchor == "end"]
    return max(rows.values(), key=len), sorted(up)


@pytest.mark.parametrize(("middle", "spread"), SPREADS)
@pytest.mark.parametrize("count", [1, 40, 3000])
def test_labels_are_round_numbers_that_do_not_meet(middle: float, spread: float, count: int) -> None:
    rng = np.random.default_rng(0)
    included = rng.random(count) < 0.5
    across, up = axes(canary_plot(middle + spread * rng.normal(size=count), included, ["a verdict"]))
    values = [float(text) for _, text in across]
    assert 3 <= len(values) <= 9
    assert values == sorted(set(values))
    steps = np.diff(values)
    assert np.allclose(steps, steps[0], rtol=1e-3)
    assert f"{steps[0]:.0e}"[0] in "125"
    for (x, text), (other, following) in pairwise(across):
        assert other - x > _LETTER * (len(text) + len(following)) / 2
    assert all(text.isdecimal() for _, text in up)  # canaries are counted
    assert 2 <= len(up) <= 9
    assert min(np.diff([y for y, _ in up])) > 11


def test_the_labels_of_two_axes_do_not_meet_in_their_corner() -> None:
    across, up = axes(membership_plot([(1e-4, 1e-3), (1, 1)], (0.001, 0.01, 0.005, 0.02), ["a verdict"]))
    assert [text for _, text in across] == [text for _, text in reversed(up)] == ["0.0001", "0.001", "0.01", "0.1", "1"]
    svg = membership_plot([(1, 1)], (0.001, 0.01, 0.005, 0.02), [])
    assert max(y for _, y, anchor, _ in texts(svg) if anchor == "end") + 11 < next(
        y for _, y, anchor, text in texts(svg) if (anchor, text) == ("middle", "0.0001")
    )
