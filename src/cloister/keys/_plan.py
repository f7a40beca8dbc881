"""What one manifest means to one key manager: per consumer, whose keys, which inputs, who contributes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

from cloister.errors import IntegrityError, RefusedError
from cloister.keys._messages import AttemptGrant, RunGrant, open_signed
from cloister.manifest import (
    Manifest,
    Release,
    Tee,
    consumers_of,
    contributors_of,
    inputs_of,
    producer_of,
    reachable_images,
)
from cloister.wire import Envelope, VerifyKey

__all__ = ["Agreement", "Consumer"]

G = TypeVar("G", RunGrant, AttemptGrant)


@dataclass(frozen=True, slots=True)
class Consumer:
    """A stage or service, as seen by one key manager.

    Attributes:
        name: Of the stage or service.
        is_service: A service makes no outputs.
        tee: Where it must run.
        contributors: The key managers that it asks, sorted.
        images: Images it reads itself whose keys this key manager holds.
        reachable: Images of this key manager whose content reaches it, directly or through earlier stages.
        inputs: Output name → producing stage, for the earlier outputs it reads.
        outputs: What it makes.
    """

    name: str
    is_service: bool
    tee: Tee
    contributors: tuple[str, ...]
    images: tuple[str, ...]
    reachable: tuple[str, ...]
    inputs: dict[str, str]
    outputs: frozenset[str]

    @property
    def purpose(self) -> Literal["service", "stage"]:
        """What its evidence must say it is for."""
        return "service" if self.is_service else "stage"


@dataclass(frozen=True, slots=True)
class Agreement:
    """A manifest, the name it has for this key manager, and its consumers."""

    id: str
    manifest: Manifest
    name: str
    consumers: dict[str, Consumer]
    registrar: VerifyKey

    @classmethod
    def of(cls, manifest: Manifest, *, name: str) -> Agreement:
        """The plan of ``manifest`` for the key manager that it calls ``name``."""
        consumers = {each: _consumer(manifest, each, name) for each in (*manifest.stages, *manifest.services)}
        registrar = VerifyKey.parse(manifest.key_managers[manifest.registrar].sign)
        return cls(manifest.id, manifest, name, consumers, registrar)

    def consumer(self, name: str) -> Consumer:
        """The stage or service of this name.

        Raises:
            RefusedError: 3428 when the manifest has none; 3405 when this key manager has no part in it.
        """
        found = self.consumers.get(name)
        if found is None:
            raise RefusedError(3428, f"the manifest has no stage or service {name!r}")
        if self.name not in found.contributors:
            raise RefusedError(3405, f"key manager {self.name!r} has no part in {name!r}")
        return found

    def saves(self, consumer: str) -> bool:
        """Whether it is a stage that may save checkpoints."""
        stage = self.manifest.stages.get(consumer)
        return stage is not None and stage.checkpoint is not None

    def term(self, output: str, *, kind: Literal["stage", "service", "party"], name: str) -> Release:
        """The release of ``output`` to this recipient.

        Raises:
            RefusedError: 3418 when the manifest has none.
        """
        for release in consumers_of(self.manifest, output):
            if getattr(release, kind) == name:
                return release
        raise RefusedError(3418, f"output {output!r} is not released to {kind} {name!r}")

    def open_run(self, envelope: Envelope) -> RunGrant:
        """The run grant inside.

        Raises:
            IntegrityError: 5402 when the registrar did not sign it.
            RefusedError: 3424 when it is about another manifest.
        """
        return self._opened(RunGrant, envelope)

    def open_attempt(self, envelope: Envelope) -> AttemptGrant:
        """The attempt grant inside; the errors are those of :meth:`open_run`."""
        return self._opened(AttemptGrant, envelope)

    def _opened(self, cls: type[G], envelope: Envelope) -> G:
        try:
            grant = open_signed(cls, envelope, self.registrar)
        except IntegrityError as error:
            raise IntegrityError(5402, expected=f"the registrar's key {self.registrar}", got=error.what) from None
        if grant.manifest != self.id:
            raise RefusedError(3424, "the grant is of another manifest", expected=self.id, got=grant.manifest)
        return grant


def _consumer(manifest: Manifest, consumer: str, manager: str) -> Consumer:
    service = manifest.services.get(consumer)
    outputs = frozenset[str]() if service is not None else frozenset(manifest.stages[consumer].outputs)
    reads = inputs_of(manifest, consumer)
    producers = {name: producer_of(manifest, name) for name in reads}
    mine = sorted(name for name in reachable_images(manifest, consumer) if manifest.images[name].key_manager == manager)
    return Consumer(
        name=consumer,
        is_service=service is not None,
        tee=manifest.tees[service.tee if service is not None else manifest.stages[consumer].tee],
        contributors=contributors_of(manifest, consumer),
        images=tuple(sorted({name for name in reads if name in mine})),
        reachable=tuple(mine),
        inputs={name: stage for name, stage in producers.items() if stage is not None},
        outputs=outputs,
    )
