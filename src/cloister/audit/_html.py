"""The report as one self-contained HTML file: the verdict and why, the graph, who got what, every check."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from typing import Any

from cloister.attest import parse_time
from cloister.audit._check import AuditReport, Check, Ran
from cloister.audit._graph import draw_graph
from cloister.errors import CloisterError
from cloister.manifest import Manifest, reachable_images, require_sound

__all__ = ["render_html"]

_SIGNS = {"asserted": "✓ asserted", "refuted": "✗ refuted", "unknown": "? unknown"}


def render_html(report: AuditReport, manifest: Manifest) -> str:
    """The page. It loads nothing from anywhere, runs no script, and says trust state in words as well as colour.

    Args:
        report: What the audit found.
        manifest: The bundle's; one that breaks its own rules gets no graph.
    """
    import jinja2

    text = resources.files("cloister.audit").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    sound = _is_sound(manifest)
    open_questions = [check for check in report.checks if check.status == "unknown" and not check.required]
    return environment.from_string(text).render(
        report=report,
        facts=report.as_json(),
        manifest=manifest,
        against=[c for c in report.checks if c.status == "refuted" or (c.required and c.status == "unknown")],
        groups=_grouped(check for check in report.checks if check not in open_questions),
        open_questions=open_questions,
        signs=_SIGNS,
        graph=draw_graph(manifest) if sound else "",
        trust=_trust(manifest) if sound else [],
        ran=[_ran(row) for row in sorted(report.ran, key=lambda row: (row.started_at, row.stage))],
        released=_released(report),
    )


def _is_sound(manifest: Manifest) -> bool:
    try:
        require_sound(manifest)
    except CloisterError:
        return False
    return True


def _grouped(checks: Iterable[Check]) -> dict[str, list[Check]]:
    groups: dict[str, list[Check]] = {}
    for check in checks:
        groups.setdefault(check.group, []).append(check)
    return groups


def _ran(row: Ran) -> dict[str, Any]:
    took = parse_time(row.ended_at) - parse_time(row.started_at)
    by = f"{', '.join(row.workers) or 'itself'} ({row.mode}): {row.products:,} products" if row.mode else ""
    return row.as_json() | {"took": str(took), "size": f"{row.size_bytes:,} B", "multiplied_by": by}


def _released(report: AuditReport) -> list[dict[str, Any]]:
    """One row for each thing and recipient, parties first: what a party got, it got in the clear."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for each in report.released:
        party = each.to.startswith("party ")
        row = rows.setdefault(
            (each.to, each.what),
            {"what": each.what, "to": each.to.removeprefix("party "), "party": party, "by": set(), "at": each.at},
        )
        row["by"].add(each.by)
    parties_first = sorted(rows.values(), key=lambda row: not row["party"])
    return [row | {"by": ", ".join(sorted(row["by"]))} for row in parties_first]


def _trust(manifest: Manifest) -> list[dict[str, str]]:
    """One row a party: what it contributes, where that can reach, and what it may receive."""
    consumers = [*manifest.stages, *manifest.services]
    reachable = {consumer: reachable_images(manifest, consumer) for consumer in consumers}
    rows: list[dict[str, str]] = []
    for party in sorted(manifest.parties):
        images = sorted(name for name, image in manifest.images.items() if image.owner == party)
        reach = sorted(consumer for consumer in consumers if reachable[consumer] & set(images))
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
