"""The demo's manifest, from what the roles have said so far."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from importlib import resources
from typing import Any

__all__ = ["manifest_text"]

_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
_IMAGES = {
    "hospital-a": ("biopsies-a", "dataset", 4),
    "hospital-b": ("biopsies-b", "dataset", 4),
    "lab": ("scripts", "code", 16),
}  # name, kind and uses of each owner's image


def manifest_text(facts: Mapping[str, Any], *, people: Mapping[str, Any]) -> str:
    """The manifest in YAML, as the host proposes it.

    Args:
        facts: Of the story: ``images``, ``measurements``, ``site``, ``keys`` and ``workers``.
        people: Identities by name.
    """
    import jinja2

    now = datetime.now(UTC)
    template = resources.files("cloister.demo").joinpath("manifest.yaml.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, autoescape=True)
    return environment.from_string(template).render(
        not_before=(now - timedelta(minutes=5)).strftime(_FORMAT),
        not_after=(now + timedelta(days=30)).strftime(_FORMAT),
        parties=[{"name": name, **identity} for name, identity in sorted(people.items())],
        tees=facts["measurements"],
        root=facts["site"]["root_spki"],
        keys_sign=facts["keys"]["sign"],
        keys_url=facts["keys"]["url"],
        workers=facts["workers"],
        images=[
            {"name": name, "id": facts["images"][owner]["id"], "kind": kind, "owner": owner, "uses": uses}
            for owner, (name, kind, uses) in _IMAGES.items()
        ],
    )
