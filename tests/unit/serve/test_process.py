"""A service opens its model only under a grant for itself, only the registered image, and leaves no file of it."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.manifests import KEY_MANAGERS, sign_all, two_hospitals

from cloister.attest import SessionClaims, SimulatedSite
from cloister.enclave import Job, Sandboxed
from cloister.errors import CloisterError
from cloister.keys import AttemptGrant, sign_message
from cloister.seal import seal_folder
from cloister.serve import InferenceClient, from_tensor, to_tensor
from cloister.serve.hosting import open_service
from cloister.wire import Envelope, OpeningKey, Secret, SigningKey

pytest.importorskip("onnx", reason="making a test model needs onnx (extra demo)")


@dataclass
class Keys:
    """What the key managers would release."""

    image: str
    key: Secret
    claims: SessionClaims
    evidence: Any
    sign: SigningKey = field(default_factory=SigningKey.generate)
    releases: dict[str, Envelope] = field(default_factory=dict)
    assurance: str = "simulated"

    def image_of(self, _: str) -> str:
        return self.image

    def key_of(self, _: str) -> Secret:
        return self.key


@dataclass
class World:
    job: Job
    keys: Keys
    site: SimulatedSite
    private: Path

    def open(self, job: Job | None = None) -> Any:
        return open_service(
            job or self.job,
            attester=lambda _: self.site.attester(bytes(48)),
            sandbox=lambda service: Sandboxed(service.limits),
            private=self.private,
            obtain=lambda *_: self.keys,
        )


def grant(consumer: str, signer: str = "keys-a") -> Envelope:
    manifest = sign_all(two_hospitals()).manifest
    facts = AttemptGrant(
        manifest=manifest.id, run="0" * 32, consumer=consumer, attempt=1, issued_at="2026-11-20T00:00:00Z"
    )
    return sign_message(facts, KEY_MANAGERS[signer].signing_key)


@pytest.fixture
def world(tmp_path: Path) -> World:
    from tests.unit.serve.models import linear

    model = tmp_path / "model"
    model.mkdir()
    (model / "model.onnx").write_bytes(linear())
    (model / "model.json").write_text(json.dumps({"features": ["a", "b", "c"], "classes": ["no", "yes"], "auc": 0.5}))
    sealed = seal_folder(model, str(tmp_path / "model.cloister"))
    site = SimulatedSite.create(tmp_path / "site")
    session = SessionClaims(
        purpose="service", nonces={"keys-a": bytes(32)}, hpke=str(OpeningKey.generate().public), sign="ed25519:x"
    )
    private = tmp_path / "private"
    private.mkdir()
    keys = Keys(sealed.id, sealed.key, session, site.attester(bytes(48)).attest(session.report_data()))
    job = Job(
        manifest=sign_all(two_hospitals()),
        stage="answers",
        grant=grant("answers"),
        key_managers={"keys-a": "http://a", "keys-b": "http://b"},
        inputs={"model": str(tmp_path / "model.cloister")},
        outputs={},
        site=str(tmp_path / "site"),
    )
    return World(job, keys, site, private)


def code_of(world: World, job: Job | None = None) -> int:
    with pytest.raises(CloisterError) as caught:
        world.open(job)
    assert not any(path.is_file() for path in world.private.rglob("*"))
    return caught.value.code


def test_the_model_is_served_and_its_files_are_gone(world: World) -> None:
    service = world.open()
    with closing(service.model):
        core = service.core
        assert (service.started.model, core.identity.model) == (world.keys.image, world.keys.image)
        assert not any(path.is_file() for path in world.private.rglob("*"))
        now = datetime.now(UTC)
        client = InferenceClient(world.job.manifest.manifest, "answers")
        claims = core.evidence(client.hello(), now).claims
        assert (claims.image, claims.purpose, claims.sign) == (world.keys.image, "service", str(world.keys.sign.public))
        assert core._card.features == ("a", "b", "c")
        (answer,) = core._predict((to_tensor("x", np.ones((1, 3), np.float32)),))
        assert from_tensor(answer).tolist() == [[3.0]]


def test_a_grant_for_something_else_or_by_another_opens_nothing(world: World) -> None:
    assert code_of(world, world.job.model_copy(update={"grant": grant("train")})) == 3502
    assert code_of(world, world.job.model_copy(update={"grant": grant("answers", "keys-b")})) == 5001


def test_a_service_that_the_manifest_does_not_name_is_refused(world: World) -> None:
    assert code_of(world, world.job.model_copy(update={"stage": "train"})) == 2501


def test_the_host_must_say_where_the_model_lies(world: World) -> None:
    assert code_of(world, world.job.model_copy(update={"inputs": {}})) == 2505


def test_another_image_than_the_registered_one_is_refused(world: World) -> None:
    world.keys.image = "0" * 64
    assert code_of(world) // 1000 == 5


def test_a_manifest_that_lacks_a_signature_opens_nothing(world: World) -> None:
    signed = world.job.manifest
    fewer = {name: value for name, value in signed.signatures.items() if name != "hospital-b"}
    job = world.job.model_copy(update={"manifest": signed.model_copy(update={"signatures": fewer})})
    assert code_of(world, job) // 1000 == 3


def test_an_image_without_a_model_is_refused(world: World, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "readme.txt").write_text("no model here")
    sealed = seal_folder(empty, str(tmp_path / "empty.cloister"))
    world.keys.image, world.keys.key = sealed.id, sealed.key
    job = world.job.model_copy(update={"inputs": {"model": str(tmp_path / "empty.cloister")}})
    assert code_of(world, job) == 2001
