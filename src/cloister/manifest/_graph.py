"""The manifest as a graph: who produces, who consumes, whose data reaches where.

Every function expects a sound manifest (``require_sound``): one producer an output, every name in its place.
"""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

from cloister.errors import InputError
from cloister.manifest._model import Manifest, Release

__all__ = [
    "consumers_of",
    "contributors_of",
    "inputs_of",
    "producer_of",
    "reachable_images",
    "readers_of_findings",
    "required_signers",
    "stage_order",
]


def producer_of(manifest: Manifest, output: str) -> str | None:
    """The stage that writes ``output``, or None when no stage does."""
    return next((name for name, stage in manifest.stages.items() if output in stage.outputs), None)


def inputs_of(manifest: Manifest, consumer: str) -> tuple[str, ...]:
    """The names (images and outputs) that a stage or service reads; a stage's code image is the first."""
    if consumer in manifest.services:
        return (manifest.services[consumer].model,)
    stage = manifest.stages[consumer]
    return (stage.code, *stage.inputs)


def consumers_of(manifest: Manifest, output: str) -> tuple[Release, ...]:
    """The releases of ``output``."""
    return tuple(release for release in manifest.releases if release.output == output)


def stage_order(manifest: Manifest) -> tuple[str, ...]:
    """The stages, each after those whose outputs it reads; ties in order of name.

    Raises:
        InputError: 2310 when the graph has a cycle.
    """
    producers = _producers(manifest)
    graph = {
        name: {producers[read] for read in inputs_of(manifest, name) if read in producers} for name in manifest.stages
    }
    try:
        sorter = TopologicalSorter(graph)
        sorter.prepare()
    except CycleError as error:
        raise InputError(2310, f"stages form a cycle: {' → '.join(error.args[1])}") from None
    order: list[str] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        order += ready
        sorter.done(*ready)
    return tuple(order)


def reachable_images(manifest: Manifest, consumer: str) -> frozenset[str]:
    """The images whose content can reach a stage or service, directly or through earlier stages."""
    producers = _producers(manifest)
    found: set[str] = set()
    waiting, seen = [consumer], {consumer}
    while waiting:
        for read in inputs_of(manifest, waiting.pop()):
            producer = producers.get(read)
            if read in manifest.images:
                found.add(read)
            elif producer is not None and producer not in seen:
                seen.add(producer)
                waiting.append(producer)
    return frozenset(found)


def readers_of_findings(manifest: Manifest, stage: str) -> tuple[str, ...]:
    """The parties, sorted, who are told which product of a stage's workers was wrong.

    The owners of every dataset that can reach the stage, because what failed depends on it. Not those who operate one
    of its workers: reading what a lie did would tell them of the others' data.
    """
    images = (manifest.images[name] for name in reachable_images(manifest, stage))
    terms = manifest.stages[stage].offload
    operators = {manifest.workers[name].operator for name in (terms.workers if terms else ())}
    return tuple(sorted({image.owner for image in images if image.kind == "dataset"} - operators))


def contributors_of(manifest: Manifest, consumer: str) -> tuple[str, ...]:
    """The key managers, sorted, of every owner whose image can reach a stage or service.

    Each contributes to the keys of the stage's outputs, so that no output can be opened without all of them; a
    consumer asks the same ones. The registrar is always among them, since it numbers the attempt.
    """
    managers = {manifest.images[name].key_manager for name in reachable_images(manifest, consumer)}
    return tuple(sorted(managers | {manifest.registrar}))


def required_signers(manifest: Manifest) -> frozenset[str]:
    """The parties without whose signature nothing runs: every owner of an image that any stage or service reads.

    An image reaches a later stage only through one that reads it, so direct reads are all of them.
    """
    consumers = (*manifest.stages, *manifest.services)
    read = {name for consumer in consumers for name in inputs_of(manifest, consumer)}
    return frozenset(image.owner for name, image in manifest.images.items() if name in read)


def _producers(manifest: Manifest) -> dict[str, str]:
    """The producer of each output, found once: asking a stage at a time, a hostile manifest would cost minutes."""
    return {output: name for name, stage in manifest.stages.items() for output in stage.outputs}
