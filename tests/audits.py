"""One finished run for all tests of the audit, and how a test asks the auditor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.keyworld import IDENTITIES, World
from tests.runs import Place, served, with_logs

from cloister.audit import AuditReport, Check, verify
from cloister.errors import CloisterError
from cloister.receipt import Bundle
from cloister.wire import Envelope

__all__ = ["PINS", "Finished", "code_of_audit", "finished_run", "refuted"]

PINS = {name: identity.public for name, identity in IDENTITIES.items()}


@dataclass(frozen=True)
class Finished:
    """A run that ended well: two stages, a service, one prediction."""

    world: World
    place: Place
    receipt: Envelope
    bundle: Bundle
    heads: tuple[Envelope, ...]

    def audit(self, bundle: Bundle | None = None, **how: Any) -> AuditReport:
        return verify(bundle or self.bundle, **{"at": self.world.clock(), "pins": PINS, **how})


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """Read only: a test that makes a key manager decide something makes a world of its own."""
    folder = tmp_path_factory.mktemp("audit")
    world = World.make(folder, change=with_logs)
    world.install()
    place = Place.start(world, folder).run()
    receipt = served(place)
    bundle = place.bundle(inference=[receipt])
    yield Finished(world, place, receipt, bundle, tuple(client.head() for client in world.clients.values()))
    world.close()


def refuted(report: AuditReport) -> list[Check]:
    return [check for check in report.checks if check.status == "refuted"]


def code_of_audit(report: AuditReport) -> int:
    """The code with which the audit refuses; 0 when it accepts."""
    try:
        report.require()
    except CloisterError as error:
        return error.code
    return 0
