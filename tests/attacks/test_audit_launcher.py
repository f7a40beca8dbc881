"""A launcher that was attested, and registers something else than its own attempt."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.audits import PINS, refuted
from tests.keyworld import NOW, World
from tests.runs import Place, edit

from cloister.audit import verify
from cloister.keys import Registration, StageSession, open_signed, sign_message


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World.make(tmp_path)
    made.install()
    yield made
    made.close()


@pytest.mark.parametrize("field", ["manifest", "run", "claims"])
def test_registration_about_something_else(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    """No key manager takes it; a runner puts it into the bundle in the other's place."""
    real, kept = StageSession.registration, {}

    def registration(self, *, outputs, receipt_digest):
        envelope = real(self, outputs=outputs, receipt_digest=receipt_digest)
        said = open_signed(Registration, envelope, self.sign.public)
        other = "0" * 32 if field == "run" else "0" * 64
        kept[said.stage] = sign_message(said.model_copy(update={field: other}), self.sign)
        return envelope

    monkeypatch.setattr(StageSession, "registration", registration)
    bundle = Place.start(world, tmp_path).run().bundle()
    report = verify(edit(bundle, "train", registration=kept["train"]), at=NOW, pins=PINS)
    found = {check.what: (check.code, check.reason) for check in refuted(report)}
    assert found["outputs registered by the attested key, once, everywhere"] == (
        5361,
        "the registration is of something else",
    )
