"""The demo's manifest, from what the roles have said so far."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from importlib import resources
from typing import Any, Literal, NamedTuple

__all__ = ["Contribution", "contributions", "manifest_text"]

_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


class Contribution(NamedTuple):
    """A sealed image of the demo: the folder that its owner seals, and how often its key may be used."""

    owner: str
    kind: Literal["dataset", "code"]
    folder: str
    uses: int


_SCRIPTS = {"scripts": Contribution("lab", "code", "scripts", 16)}
_OPEN = {
    "biopsies-a": Contribution("hospital-a", "dataset", "data", 4),
    "biopsies-b": Contribution("hospital-b", "dataset", "data", 4),
}
_PRIVATE = {
    "biopsies-a": Contribution("hospital-a", "dataset", "records", 8),
    "biopsies-b": Contribution("hospital-b", "dataset", "records", 8),
    "program": Contribution("lab", "code", "program", 8),
}


def contributions(*, private: bool) -> dict[str, Contribution]:
    """Every image by its name."""
    return (_PRIVATE if private else _OPEN) | _SCRIPTS


def manifest_text(facts: Mapping[str, Any], *, people: Mapping[str, Any]) -> str:
    """The manifest in YAML, as the host proposes it.

    Args:
        facts: Of the story: ``images``, ``measurements``, ``site``, ``keys``, ``workers``, and ``terms`` where the
            training is private.
        people: Identities by name.
    """
    import jinja2

    now = datetime.now(UTC)
    terms = facts.get("terms")
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
        private=terms,
        clients=["doctor"] if terms is None else ["doctor", "hospital-a", "hospital-b"],
        images=[
            {"name": name, "id": facts["images"][name]["id"], **image._asdict()}
            for name, image in contributions(private=terms is not None).items()
        ],
    )
