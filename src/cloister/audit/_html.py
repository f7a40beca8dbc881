"""The report as one self-contained HTML file: the graph, who trusted what, every check."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib import resources
from typing import Any

from cloister.audit._check import AuditReport
from cloister.manifest import Manifest, producer_of, reachable_images, stage_order

__all__ = ["render_html"]

_SIGNS = {"asserted": "✓ asserted", "refuted": "✗ refuted", "unknown": "? unknown"}


def render_html(report: AuditReport, manifest: Manifest) -> str:
    """The page. It loads nothing from anywhere, runs no script, and says trust state in words as well as colour."""
    import jinja2

    text = resources.files("cloister.audit").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    groups: dict[str, list[Any]] = {}
    for check in report.checks:
        groups.setdefault(check.group, []).append(check)
    facts = report.as_json()
    return environment.from_string(text).render(
        report=report,
        facts=facts,
        manifest=manifest,
        groups=groups,
        signs=_SIGNS,
        graph=_graph(manifest),
        trust=_trust(manifest),
    )


def _trust(manifest: Manifest) -> list[dict[str, str]]:
    """One row a party: what it contributes, where that can reach, and what it receives."""
    consumers = [*manifest.stages, *manifest.services]
    rows: list[dict[str, str]] = []
    for party in sorted(manifest.parties):
        images = sorted(name for name, image in manifest.images.items() if image.owner == party)
        reach = sorted(c for c in consumers if reachable_images(manifest, c) & set(images))
        gets = sorted(release.output for release in manifest.releases if release.party == party)
        asks = sorted(name for name, service in manifest.services.items() if party in service.clients)
        rows.append(
            {
                "party": party,
                "images": ", ".join(images) or "nothing",
                "reach": ", ".join(reach) or "nowhere",
                "gets": ", ".join([*gets, *(f"answers of {name}" for name in asks)]) or "nothing",
            }
        )
    return rows


_BOX, _GAP_X, _GAP_Y, _HIGH = 156, 56, 22, 46


def _graph(manifest: Manifest) -> str:
    """The run as inline SVG: images, stages, services, in columns by depth."""
    depth: dict[str, int] = dict.fromkeys(manifest.images, 0)
    edges: list[tuple[str, str, str]] = []
    for stage in stage_order(manifest):
        reads = (manifest.stages[stage].code, *manifest.stages[stage].inputs)
        sources = [(read if read in manifest.images else producer_of(manifest, read) or read, read) for read in reads]
        depth[stage] = 1 + max(depth.get(source, 0) for source, _ in sources)
        edges += [(source, stage, "" if source == read else read) for source, read in sources]
    for name, service in sorted(manifest.services.items()):
        source = producer_of(manifest, service.model) or service.model
        depth[name] = 1 + depth.get(source, 0)
        edges.append((source, name, service.model))
    columns: dict[int, list[str]] = {}
    for name in sorted(depth, key=lambda n: (depth[n], n)):
        columns.setdefault(depth[name], []).append(name)
    tallest = max(len(names) for names in columns.values())
    place: dict[str, tuple[float, float]] = {}
    for column, names in columns.items():
        start = (tallest - len(names)) * (_HIGH + _GAP_Y) / 2
        for row, name in enumerate(names):
            place[name] = (column * (_BOX + _GAP_X) + 4, start + row * (_HIGH + _GAP_Y) + 4)
    width = len(columns) * (_BOX + _GAP_X) - _GAP_X + 8
    height = tallest * (_HIGH + _GAP_Y) - _GAP_Y + 8
    return _svg(manifest, place, edges, width, height)


def _svg(
    manifest: Manifest,
    place: Mapping[str, tuple[float, float]],
    edges: list[tuple[str, str, str]],
    width: float,
    height: float,
) -> str:
    parts = [
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="the run as a graph" '
        f'style="max-width:{width:.0f}px">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z"/></marker></defs>',
    ]
    for source, target, label in edges:
        (x1, y1), (x2, y2) = place[source], place[target]
        x1, y1, y2 = x1 + _BOX, y1 + _HIGH / 2, y2 + _HIGH / 2
        middle = (x1 + x2) / 2
        title = f"<title>{escape(label)}</title>" if label else ""
        parts.append(
            f'<path class="edge" marker-end="url(#tip)" d="M{x1:.0f} {y1:.0f}C{middle:.0f} {y1:.0f} '
            f'{middle:.0f} {y2:.0f} {x2:.0f} {y2:.0f}">{title}</path>'
        )
    for name, (x, y) in place.items():
        if name in manifest.images:
            kind, detail = "image", f"{manifest.images[name].kind} of {manifest.images[name].owner}"
        elif name in manifest.services:
            kind, detail = "service", "service"
        else:
            kind, detail = "stage", "stage"
        parts.append(
            f'<g class="{kind}"><rect x="{x:.0f}" y="{y:.0f}" width="{_BOX}" height="{_HIGH}" rx="6"/>'
            f'<text x="{x + _BOX / 2:.0f}" y="{y + 20:.0f}">{escape(name)}</text>'
            f'<text class="small" x="{x + _BOX / 2:.0f}" y="{y + 36:.0f}">{escape(detail)}</text></g>'
        )
    parts.append("</svg>")
    return "".join(parts)
