"""Who can finally learn what, from whose data: a walk of releases, logs, services and networks to their ends.

What a stage does with its inputs is not looked into: an output, a log line, an answer may hold anything that can reach
the stage. So each leak names every image that can reach it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cloister.manifest._graph import producer_of, reachable_images
from cloister.manifest._model import Manifest

__all__ = ["ANYONE", "COLLUSION", "MODE_LEAKS", "NETWORK_LEAK", "Leak", "leaks_of"]

ANYONE = "ANYONE"
"""The recipient when a service names no clients."""

NETWORK_LEAK = "whatever the script sends"
MODE_LEAKS = {
    "enclave": "nothing: no layer leaves the enclave",
    "verify": "inputs, weights and gradients of the layers it computes, in the clear; a wrong result is caught",
    "blind": "weights in the clear (taken to be public); inputs and gradients only masked",
    "blind2": "weights in the clear (taken to be public); inputs and gradients only masked, unless the two collude",
    "shared3": "nothing but shapes and timing, unless two of the three collude",
    "shared5": "nothing but shapes and timing, unless two of the three collude",
}
COLLUSION = {
    "blind2": "the inputs and gradients of every layer that is offloaded",
    "shared3": "the inputs, weights and gradients of every layer that is offloaded",
    "shared5": "the inputs, weights and gradients of every layer that is offloaded",
}
"""What any two operators learn who put together what their workers saw."""


@dataclass(frozen=True, slots=True)
class Leak:
    """Something that leaves the enclaves.

    Attributes:
        recipient: The party that learns it; :data:`ANYONE` for a service without named clients.
        role: As what: it gets an output, asks a service, reads logs, or operates a worker.
        what: The output, service or stage.
        shows: What it learns, in words.
        images: Every image, code included, that it may be derived from.
        owners: The owners of those images that are datasets.
    """

    recipient: str
    role: Literal["output", "client", "log", "operator"]
    what: str
    shows: str
    images: tuple[str, ...]
    owners: tuple[str, ...]


def leaks_of(manifest: Manifest) -> tuple[Leak, ...]:
    """Every leak of a sound manifest, in order of role, thing and recipient."""
    return tuple(_leaks(manifest))


def _leaks(manifest: Manifest) -> Iterator[Leak]:
    for release in manifest.releases:
        producer = producer_of(manifest, release.output)
        if release.party is not None and producer is not None:
            yield _leak(manifest, release.party, "output", release.output, "the whole output, in the clear", producer)
    for name, service in manifest.services.items():
        for client in service.clients or (ANYONE,):
            yield _leak(manifest, client, "client", name, f"answers computed with '{service.model}'", name)
    for name, stage in manifest.stages.items():
        for reader in stage.logs:
            yield _leak(manifest, reader, "log", name, "everything the script prints", name)
        for worker in stage.network:
            offload = stage.offload if stage.offload and worker in stage.offload.workers else None
            shows = MODE_LEAKS[offload.mode] if offload else NETWORK_LEAK
            yield _leak(manifest, manifest.workers[worker].operator, "operator", worker, shows, name)


def _leak(
    manifest: Manifest,
    recipient: str,
    role: Literal["output", "client", "log", "operator"],
    what: str,
    shows: str,
    source: str,
) -> Leak:
    images = tuple(sorted(reachable_images(manifest, source)))
    owners = {manifest.images[name].owner for name in images if manifest.images[name].kind == "dataset"}
    return Leak(recipient, role, what, shows, images, tuple(sorted(owners)))
