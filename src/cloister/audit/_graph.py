"""The run as inline SVG: data from left to right, code named inside the stage that runs it.

Boxes stand in columns by depth. An edge that passes a column gets a waypoint there, so that none runs behind a box.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

from cloister.manifest import Manifest, consumers_of, producer_of, stage_order

__all__ = ["draw_graph"]

_WIDE, _HIGH, _LOW = 150, 50, 14  # a box; the height of a waypoint
_GAP_X, _GAP_Y, _EDGE = 92, 18, 6
_LABEL_CHARS = 14  # what fits between two columns


@dataclass(slots=True)
class _Node:
    """A box, or, without a kind, a waypoint of an edge."""

    column: int
    kind: str = ""
    title: str = ""
    detail: str = ""
    sources: list[str] = field(default_factory=list[str])
    x: float = 0
    y: float = 0

    @property
    def high(self) -> int:
        return _HIGH if self.kind else _LOW

    @property
    def middle(self) -> float:
        return self.y + self.high / 2


@dataclass(frozen=True, slots=True)
class _Edge:
    """From the first to the last of ``way``, through the waypoints between them."""

    way: tuple[str, ...]
    label: str


def draw_graph(manifest: Manifest) -> str:
    """The graph of a sound manifest: data images, stages, services, and the parties that receive an output."""
    nodes, links = _nodes(manifest)
    edges = [_edge(nodes, source, target, label) for source, target, label in links]
    columns: dict[int, list[str]] = {}
    for name, node in nodes.items():
        columns.setdefault(node.column, []).append(name)
    tallest = max(_height([nodes[name] for name in names]) for names in columns.values())
    for column in sorted(columns):
        names = sorted(columns[column], key=lambda name: (_pull(nodes, name), name))
        y = _EDGE + (tallest - _height([nodes[name] for name in names])) / 2
        for name in names:
            nodes[name].x, nodes[name].y = _EDGE + column * (_WIDE + _GAP_X), y
            y += nodes[name].high + _GAP_Y
    width = _EDGE * 2 + len(columns) * (_WIDE + _GAP_X) - _GAP_X
    return _svg(nodes, edges, width, tallest + 2 * _EDGE)


def _nodes(manifest: Manifest) -> tuple[dict[str, _Node], list[tuple[str, str, str]]]:
    """The boxes, each in its column, and (source, target, label) of every edge."""
    links: list[tuple[str, str, str]] = []
    nodes: dict[str, _Node] = {}
    for name in stage_order(manifest):
        stage = manifest.stages[name]
        sources = {read: producer_of(manifest, read) for read in stage.inputs}
        depth = 1 + max((nodes[s].column for s in sources.values() if s), default=0)
        nodes[name] = _Node(depth, "stage", name, f"code: {stage.code}")
        links += [(source or f"image {read}", name, read if source else "") for read, source in sources.items()]
    for name, service in sorted(manifest.services.items()):
        source = producer_of(manifest, service.model)
        nodes[f"service {name}"] = _Node(1 + (nodes[source].column if source else 0), "service", name, "service")
        links.append((source or f"image {service.model}", f"service {name}", service.model if source else ""))
    for name, stage in manifest.stages.items():
        for output in stage.outputs:
            for party in sorted({r.party for r in consumers_of(manifest, output) if r.party}):
                place = nodes.setdefault(f"party {party}", _Node(0, "party", party, "receives, in the clear"))
                place.column = max(place.column, 1 + nodes[name].column)
                links.append((name, f"party {party}", output))
    for name, image in manifest.images.items():
        used = [nodes[target].column for source, target, _ in links if source == f"image {name}"]
        if used:
            nodes[f"image {name}"] = _Node(min(used) - 1, "image", name, f"data of {image.owner}")
    return nodes, links


def _edge(nodes: dict[str, _Node], source: str, target: str, label: str) -> _Edge:
    way = [source]
    for column in range(nodes[source].column + 1, nodes[target].column):
        waypoint = f"{source} > {target} {label} @{column}"
        nodes[waypoint] = _Node(column, sources=[way[-1]])
        way.append(waypoint)
    nodes[target].sources.append(way[-1])
    return _Edge((*way, target), label)


def _height(nodes: list[_Node]) -> float:
    return sum(node.high + _GAP_Y for node in nodes) - _GAP_Y


def _pull(nodes: dict[str, _Node], name: str) -> float:
    """Where a node's sources lie, so that edges cross little; a node without sources goes by its name."""
    sources = nodes[name].sources
    return sum(nodes[each].middle for each in sources) / len(sources) if sources else 0.0


def _svg(nodes: dict[str, _Node], edges: list[_Edge], width: float, height: float) -> str:
    parts = [
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="the run as a graph" '
        f'style="max-width:{width:.0f}px">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z"/></marker></defs>',
    ]
    labels: list[str] = []
    for edge in edges:
        path, label = _drawn(nodes, edge)
        parts.append(path)
        labels.append(label)
    parts += [_box(node) for node in nodes.values() if node.kind]
    return "".join([*parts, *labels, "</svg>"])


def _drawn(nodes: dict[str, _Node], edge: _Edge) -> tuple[str, str]:
    first = nodes[edge.way[0]]
    x, y = first.x + _WIDE, first.middle
    path, label = f"M{x:.0f} {y:.0f}", ""
    for name in edge.way[1:]:
        node = nodes[name]
        bend = (x + node.x) / 2
        path += f"C{bend:.0f} {y:.0f} {bend:.0f} {node.middle:.0f} {node.x:.0f} {node.middle:.0f}"
        if not label and edge.label:
            shown = edge.label if len(edge.label) <= _LABEL_CHARS else edge.label[: _LABEL_CHARS - 1] + "…"
            at = (y + node.middle) / 2 - 5
            label = f'<text class="label" x="{bend:.0f}" y="{at:.0f}">{escape(shown)}</text>'
        x, y = node.x, node.middle
        if not node.kind:
            x += _WIDE
            path += f"H{x:.0f}"
    title = f"<title>{escape(edge.label)}</title>" if edge.label else ""
    return f'<path class="edge" marker-end="url(#tip)" d="{path}">{title}</path>', label


def _box(node: _Node) -> str:
    centre = node.x + _WIDE / 2
    return (
        f'<g class="{node.kind}"><title>{escape(node.title)}</title>'
        f'<rect x="{node.x:.0f}" y="{node.y:.0f}" width="{_WIDE}" height="{_HIGH}" rx="6"/>'
        f'<text x="{centre:.0f}" y="{node.y + 22:.0f}">{escape(_short(node.title, 20))}</text>'
        f'<text class="small" x="{centre:.0f}" y="{node.y + 38:.0f}">{escape(_short(node.detail, 25))}</text></g>'
    )


def _short(text: str, chars: int) -> str:
    return text if len(text) <= chars else text[: chars - 1] + "…"
