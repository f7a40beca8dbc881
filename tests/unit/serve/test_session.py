"""One session with a service: evidence first, one sealed request, one answer that only its asker opens."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import numpy as np
import pytest
from tests.manifests import two_hospitals

from cloister.attest import SimulatedSite
from cloister.errors import CloisterError, IntegrityError, RefusedError
from cloister.keys import LocalTransport
from cloister.manifest import Manifest, Service, Tee
from cloister.serve import (
    Connection,
    Identity,
    InferenceClient,
    ModelCard,
    SealedRequest,
    ServiceCore,
    Signer,
    Tensor,
    TensorSpec,
    create_app,
    from_tensor,
    to_tensor,
)
from cloister.serve import _core as core_module
from cloister.serve._messages import REQUEST_LABEL, context
from cloister.wire import SealingKey, SigningKey, VerifyKey

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
MEASUREMENT = bytes(range(48))
X = to_tensor("x", np.arange(6, dtype=np.float32).reshape(2, 3))
MODEL = "5" * 64


def double(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(to_tensor("y", from_tensor(tensor) * 2) for tensor in inputs)


@dataclass
class World:
    manifest: Manifest
    core: ServiceCore
    site: SimulatedSite


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> SimulatedSite:
    return SimulatedSite.create(tmp_path_factory.mktemp("site"), created=NOW - timedelta(days=1))


@pytest.fixture
def build(site: SimulatedSite) -> Callable[..., World]:
    def make(
        *, clients: dict[str, VerifyKey] | None = None, predict: Any = double, measurement: bytes = MEASUREMENT
    ) -> World:
        manifest = two_hospitals()
        tee = Tee(type="tdx", measurements=(MEASUREMENT.hex(),), simulated_root=site.root_spki)
        service = Service(tee="enclave", model="model")
        manifest = manifest.model_copy(
            update={"tees": {**manifest.tees, "enclave": tee}, "services": {"answers": service}}
        )
        identity = Identity(manifest.id, "r" * 32, "answers", 1, MODEL, clients or {})
        card = ModelCard(inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),))
        core = ServiceCore(
            identity,
            attester=site.attester(measurement, clock=lambda: NOW),
            signing=SigningKey.generate(),
            predict=predict,
            card=card,
        )
        return World(manifest, core, site)

    return make


def session(world: World, at: datetime = NOW, **options: Any) -> InferenceClient:
    client = InferenceClient(world.manifest, "answers", **options)
    client.verify(world.core.evidence(client.hello(), at), at)
    return client


def code_of(action: Callable[[], object]) -> int:
    with pytest.raises(CloisterError) as caught:
        action()
    return caught.value.code


def test_an_answer_comes_back_with_its_receipt(build: Callable[..., World]) -> None:
    world = build()
    client = session(world, model=MODEL)
    request, reply = client.ask((X,))
    prediction = client.read(world.core.answer(request, NOW), request, reply)
    assert from_tensor(prediction.outputs[0]).tolist() == (from_tensor(X) * 2).tolist()
    assert (prediction.receipt.model, prediction.receipt.assurance) == (MODEL, "simulated")


def test_without_inputs_the_card_comes_back(build: Callable[..., World]) -> None:
    world = build()
    client = session(world)
    request, reply = client.ask(())
    card = client.read(world.core.answer(request, NOW), request, reply).card
    assert card is not None
    assert card.inputs[0].name == "x"


def test_nothing_is_sealed_before_the_service_is_verified(build: Callable[..., World]) -> None:
    client = InferenceClient(build().manifest, "answers")
    assert code_of(lambda: client.ask((X,))) == 3606


def test_evidence_over_another_nonce_is_refused(build: Callable[..., World]) -> None:
    world = build()
    mine, other = InferenceClient(world.manifest, "answers"), InferenceClient(world.manifest, "answers")
    answer = world.core.evidence(other.hello(), NOW)
    assert code_of(lambda: mine.verify(answer, NOW)) == 4151


def test_a_key_put_in_place_of_the_attested_one_is_refused(build: Callable[..., World]) -> None:
    world = build()
    client = InferenceClient(world.manifest, "answers")
    answer = world.core.evidence(client.hello(), NOW)
    other = world.core.evidence(InferenceClient(world.manifest, "answers").hello(), NOW + timedelta(hours=1, minutes=1))
    swapped = answer.model_copy(update={"claims": answer.claims.model_copy(update={"hpke": other.claims.hpke})})
    assert code_of(lambda: client.verify(swapped, NOW)) == 4150


def test_a_service_with_another_measurement_is_refused(build: Callable[..., World]) -> None:
    world = build(measurement=bytes(48))
    assert code_of(lambda: session(world)) == 4402


def test_a_service_that_serves_another_model_is_refused(build: Callable[..., World]) -> None:
    assert code_of(lambda: session(build(), model="6" * 64)) == 3605


def test_a_service_that_the_manifest_does_not_name_is_refused(build: Callable[..., World]) -> None:
    world = build()
    assert code_of(lambda: InferenceClient(world.manifest, "other")) == 3604


def test_a_replayed_request_is_refused(build: Callable[..., World]) -> None:
    world = build()
    request, _ = session(world).ask((X,))
    world.core.answer(request, NOW)
    assert code_of(lambda: world.core.answer(request, NOW)) == 3602


def test_a_request_outlives_one_roll_of_the_keys_but_not_the_overlap(build: Callable[..., World]) -> None:
    world = build()
    client = session(world)
    late, _ = client.ask((X,))
    world.core.answer(late, NOW + timedelta(hours=1, minutes=5))
    later, _ = client.ask((X,))
    assert code_of(lambda: world.core.answer(later, NOW + timedelta(hours=1, minutes=11))) == 5002


def test_evidence_past_its_time_is_refused(build: Callable[..., World]) -> None:
    world = build()
    client = InferenceClient(world.manifest, "answers")
    answer = world.core.evidence(client.hello(), NOW)
    assert code_of(lambda: client.verify(answer, NOW + timedelta(hours=2))) == 4157


def test_one_request_cannot_open_anothers_answer(build: Callable[..., World]) -> None:
    world = build()
    client = session(world)
    first, first_reply = client.ask((X,))
    second, second_reply = client.ask((X,))
    answer = world.core.answer(first, NOW)
    assert code_of(lambda: client.read(answer, first, second_reply)) == 5002
    assert code_of(lambda: client.read(answer, second, first_reply)) == 5002


def test_a_request_bound_to_other_claims_does_not_open(build: Callable[..., World]) -> None:
    world = build()
    request, _ = session(world).ask((X,))
    moved = SealedRequest(claims="0" * 64, sealed=request.sealed)
    assert code_of(lambda: world.core.answer(moved, NOW)) == 5002


def test_who_may_not_ask_does_not_fill_the_replay_memory(build: Callable[..., World]) -> None:
    world = build(clients={"doctor": SigningKey.generate().public})
    request, _ = session(world).ask((X,))
    world.core.answer(request, NOW)
    world.core.answer(request, NOW)
    assert world.core._epochs[-1].seen == set()


def test_a_full_replay_memory_refuses_until_the_keys_roll(
    build: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_module, "MAX_SEEN", 2)
    world = build()
    client = session(world)
    asked = [client.ask((X,)) for _ in range(3)]
    for request, reply in asked[:2]:
        assert client.read(world.core.answer(request, NOW), request, reply).outputs
    request, reply = asked[2]
    answer = world.core.answer(request, NOW)
    assert code_of(lambda: client.read(answer, request, reply)) == 3603
    for request, _ in asked[:2]:  # it has forgotten none
        assert code_of(lambda sent=request: world.core.answer(sent, NOW)) == 3602
    later = NOW + timedelta(hours=1)
    fresh = session(world, later)
    request, reply = fresh.ask((X,))
    assert fresh.read(world.core.answer(request, later), request, reply).outputs


def test_a_sealed_message_that_is_no_request_tells_the_host_nothing(build: Callable[..., World]) -> None:
    world = build()
    claims = world.core.evidence(InferenceClient(world.manifest, "answers").hello(), NOW).claims
    info = context(REQUEST_LABEL, claims.digest())
    for plaintext in (b"private words", b'{"version":1,"inputs":[],"reply":"private"}', b'{"private":1}'):
        sealed = SealingKey.parse(claims.hpke).seal(plaintext, info=info)
        with pytest.raises(CloisterError) as caught:
            world.core.answer(SealedRequest(claims=claims.digest(), sealed=sealed), NOW)
        assert caught.value.code == 2605
        assert "private" not in str(caught.value.as_json())


def test_only_named_clients_are_answered(build: Callable[..., World]) -> None:
    doctor, stranger = SigningKey.generate(), SigningKey.generate()
    world = build(clients={"doctor": doctor.public})

    def ask(signer: Signer | None) -> object:
        client = session(world, signer=signer)
        request, reply = client.ask((X,))
        return client.read(world.core.answer(request, NOW), request, reply)

    assert ask(Signer("doctor", doctor))
    for signer in (None, Signer("doctor", stranger), Signer("nurse", doctor)):
        with pytest.raises(RefusedError) as caught:
            ask(signer)
        assert caught.value.code == 3601


def test_what_was_wrong_with_the_input_is_told_only_inside_the_answer(build: Callable[..., World]) -> None:
    def refuse(_: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        raise IntegrityError(5001, "private detail")

    world = build(predict=refuse)
    client = session(world)
    request, reply = client.ask((X,))
    answer = world.core.answer(request, NOW)
    assert b"private" not in answer.canonical()
    assert code_of(lambda: client.read(answer, request, reply)) == 5001


def test_a_receipt_of_other_outputs_is_refused(build: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    world = build()
    client = session(world)
    request, reply = client.ask((X,))
    honest = world.core._receipt
    monkeypatch.setattr(world.core, "_receipt", lambda asked, _, now: honest(asked, (X,), now))
    assert code_of(lambda: client.read(world.core.answer(request, NOW), request, reply)) == 5601


def test_the_same_over_http(build: Callable[..., World]) -> None:
    world = build()
    client = InferenceClient(world.manifest, "answers")
    transport = LocalTransport(create_app(world.core, now=lambda: NOW))
    with Connection("http://service", client, at=lambda: NOW, transport=transport) as connection:
        assert from_tensor(connection.ask((X,)).outputs[0]).sum() == 30


@pytest.mark.parametrize(("able", "status"), [(True, 200), (False, 503)])
def test_a_service_says_whether_it_can_answer(build: Callable[..., World], able: bool, status: int) -> None:
    transport = LocalTransport(create_app(build().core, ready=lambda: able))
    with httpx.Client(base_url="http://service", transport=transport) as client:
        said = client.get("/v2/health/ready")
        assert (said.status_code, said.json()) == (status, {"ready": able})
        assert client.get("/v2/health/live").json() == {"live": True}


def test_a_redirect_is_never_followed(build: Callable[..., World]) -> None:
    asked: list[str] = []

    def elsewhere(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(307, headers={"location": "http://evil/v1/evidence"})

    client = InferenceClient(build().manifest, "answers")
    transport = httpx.MockTransport(elsewhere)
    assert code_of(lambda: Connection("http://service", client, at=lambda: NOW, transport=transport)) == 6602
    assert asked == ["http://service/v1/evidence"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 200, 2002),
        (b"{}", 200, 2005),
        (b"nonsense", 500, 6601),
        (b'{"error":{"code":3602,"what":"x"}}', 403, 3602),
    ],
)
def test_nonsense_from_a_service_is_named(build: Callable[..., World], body: bytes, status: int, code: int) -> None:
    client = InferenceClient(build().manifest, "answers")
    transport = httpx.MockTransport(lambda _: httpx.Response(status, content=body))
    assert code_of(lambda: Connection("http://service", client, at=lambda: NOW, transport=transport)) == code


def test_a_tensor_whose_bytes_do_not_fit_its_shape_is_refused() -> None:
    bad = Tensor(name="x", datatype="FP32", shape=(2, 3), data=base64.b64decode("AAAA"))
    assert code_of(lambda: from_tensor(bad)) == 2604
