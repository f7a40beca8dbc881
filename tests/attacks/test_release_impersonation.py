"""A host that answers in the key manager's place, and what a client believes of it."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from tests.keyworld import World, code_of

from cloister.errors import CloisterError
from cloister.keys import KeyManagerClient, ServiceEvidence, open_signed, sign_message, verify_service

Handler = Callable[[httpx.Request], httpx.Response]


def answering(world: World, handler: Handler) -> KeyManagerClient:
    return KeyManagerClient("http://keys.test", world.clients["keys-a"].key, transport=httpx.MockTransport(handler))


def raw(status: int, body: bytes, **headers: str) -> httpx.Response:
    return httpx.Response(status, headers=headers, stream=httpx.ByteStream(body))


def test_host_that_impersonates_the_key_manager(key_world: World) -> None:
    """Another genuine enclave of the same code, with its own key, answers at the address."""
    client = KeyManagerClient("http://keys.test", key_world.clients["keys-a"].key, transport=key_world.transports[1])
    verify = {"at": key_world.clock(), "allow_simulated": True}
    assert code_of(lambda: verify_service(client, key_world.manifest, "keys-a", **verify)) == 4408


def test_owner_asks_with_another_key_than_the_manifests(key_world: World) -> None:
    client = key_world.clients["keys-b"]
    verify = {"at": key_world.clock(), "allow_simulated": True}
    assert code_of(lambda: verify_service(client, key_world.manifest, "keys-a", **verify)) == 4408


def test_evidence_over_an_older_nonce(key_world: World) -> None:
    old = key_world.clients["keys-a"].evidence(b"o" * 32)
    client = answering(key_world, lambda _: raw(200, old.canonical()))
    assert code_of(lambda: client.evidence(b"n" * 32)) == 5407


def test_evidence_that_binds_another_hpke_key(key_world: World) -> None:
    """The signing key was stolen, the enclave was not: evidence over other claims does not carry over."""
    nonce, key = b"n" * 32, key_world.services["keys-a"].desk.core._sign
    said = open_signed(ServiceEvidence, key_world.clients["keys-a"].evidence(nonce), key.public)

    def handler(request: httpx.Request) -> httpx.Response:
        import base64

        fresh = base64.b64decode(json.loads(request.read())["nonce"])
        claims = said.claims.model_copy(update={"nonces": {"relying-party": fresh}})
        return raw(200, sign_message(said.model_copy(update={"claims": claims}), key).canonical())

    client = answering(key_world, handler)
    verify = {"at": key_world.clock(), "allow_simulated": True}
    assert code_of(lambda: verify_service(client, key_world.manifest, "keys-a", **verify)) == 4150


def test_answer_to_another_question(key_world: World) -> None:
    head = key_world.clients["keys-a"].head()
    client = answering(key_world, lambda _: raw(200, head.canonical()))
    assert code_of(lambda: client.start_run(key_world.manifest.id)) == 5001


def test_answer_edited_on_the_way(key_world: World) -> None:
    run = key_world.run()
    edited = run.model_copy(update={"payload": run.payload.replace(b"keys-a", b"keys-b")})
    client = answering(key_world, lambda _: raw(200, edited.canonical()))
    assert code_of(lambda: client.start_run(key_world.manifest.id)) == 5001


def test_grant_of_another_manifest(key_world: World) -> None:
    run = key_world.run()
    client = answering(key_world, lambda _: raw(200, run.canonical()))
    assert code_of(lambda: client.start_run("0" * 64)) == 5407


def test_client_never_follows_a_redirect(key_world: World) -> None:
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return raw(307, b"", location="http://elsewhere.test/v1/runs")

    assert code_of(lambda: answering(key_world, handler).start_run(key_world.manifest.id)) == 6404
    assert asked == ["http://keys.test/v1/runs"]


def test_unsigned_refusal_is_only_somebodys_word(key_world: World) -> None:
    body = json.dumps({"error": {"code": 3404, "what": "suspended", "hint": ""}}).encode()
    assert code_of(lambda: answering(key_world, lambda _: raw(403, body)).start_run(key_world.manifest.id)) == 6403


def test_refusal_signed_by_somebody_else(key_world: World) -> None:
    refused: list[Any] = []

    def record(request: httpx.Request) -> httpx.Response:
        answer = key_world.transports[1].handle_request(request)
        refused.append(answer)
        return answer

    client = answering(key_world, record)
    assert code_of(lambda: client.start_run("0" * 64)) == 5001
    assert refused[0].status_code == 404


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"error":[]}', b'{"a":1,"a":2}', b"\xff", b"[" * 1000])
@pytest.mark.parametrize("status", [200, 400, 500])
def test_nonsense_answer(key_world: World, body: bytes, status: int) -> None:
    client = answering(key_world, lambda _: raw(status, body))
    assert code_of(lambda: client.head()) == 6402


def test_endless_answer(key_world: World) -> None:
    class Endless(httpx.SyncByteStream):
        def __iter__(self) -> Any:
            while True:
                yield b" " * (1 << 20)

    client = answering(key_world, lambda _: httpx.Response(200, stream=Endless()))
    assert code_of(lambda: client.head()) == 6402


def test_nobody_answers(key_world: World) -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    assert code_of(lambda: answering(key_world, handler).head()) == 6401


# ---- what anybody may send to a key manager ------------------------------------------------------------------------


def send(world: World, method: str, path: str, body: bytes = b"") -> tuple[int, dict[str, Any]]:
    with httpx.Client(transport=world.transports[0]) as http:
        answer = http.request(method, f"http://keys.test{path}", content=body)
    return answer.status_code, answer.json()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", 2002),
        (b"{}", 2005),
        (b'{"manifest":"0","manifest":"1"}', 2002),
        (b'{"manifest":"' + b"0" * 64 + b'","more":1}', 2005),
        (b'{"manifest":1.5}', 2002),
        (b"[" * 100, 2002),
        (b"\xff\xfe", 2002),
    ],
)
def test_malformed_request(key_world: World, body: bytes, code: int) -> None:
    size = key_world.stores["keys-a"].size()
    status, answer = send(key_world, "POST", "/v1/runs", body)
    assert (status, answer["error"]["code"]) == (400, code)
    assert "signed" in answer
    assert key_world.stores["keys-a"].size() == size


def test_oversized_request(key_world: World) -> None:
    status, answer = send(key_world, "POST", "/v1/releases", b" " * ((3 << 20) + 1))
    assert (status, answer["error"]["code"]) == (413, 2003)


@pytest.mark.parametrize("asked", ["GET /", "GET /v1/runs", "POST /v1/log/head", "PUT /docs", "GET /openapi.json"])
def test_unknown_page(key_world: World, asked: str) -> None:
    status, answer = send(key_world, *asked.split())
    assert (status, answer["error"]["code"]) == (404, 2401)


@pytest.mark.parametrize("query", ["", "?from=x", "?from=1&from=2", "?from=1&to=2", "?from=-1", "?from=%C2%B2"])
def test_odd_query(key_world: World, query: str) -> None:
    status, answer = send(key_world, "GET", f"/v1/log/proof{query}")
    assert (status, answer["error"]["code"]) == (400, 2005)


def test_bug_says_nothing_about_itself(key_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a secret in a message")

    monkeypatch.setattr(key_world.services["keys-a"].desk, "head", broken)
    with httpx.Client(transport=key_world.transports[0]) as http:
        answer = http.get("http://keys.test/v1/log/head")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, 9001)
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


def test_bug_in_a_decision_neither_commits_nor_stops_the_desk(
    key_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = key_world.services["keys-a"].desk.core
    size = core.size

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(core, "decide", broken)
    with pytest.raises(CloisterError) as raised:
        key_world.run()
    assert raised.value.code in (6403, 9001)
    key_world.run()
    assert key_world.services["keys-a"].desk.core.size == size + 1


def test_strangers_are_throttled(tmp_path: Any) -> None:
    from cloister.keys import Settings

    world = World.make(tmp_path, settings=Settings(free_entries=11, free_entries_per_s=1))
    world.install()
    codes = [code_of(lambda: world.registrar.start_run("0" * 64)) for _ in range(15)]
    assert codes == [3401] * 10 + [3425] * 5
    world.clock.turn(seconds=5)
    assert world.run()
    world.close()


def test_sessions_are_bounded(tmp_path: Any) -> None:
    from cloister.keys import Settings

    world = World.make(tmp_path, settings=Settings(open_sessions=3))
    world.install()
    attempt = world.attempt(world.run(), "prepare")
    for _ in range(3):
        world.registrar.challenge(attempt.grant)
    assert code_of(lambda: world.registrar.challenge(attempt.grant)) == 3425
    world.clock.turn(seconds=world.settings.session_s + 1)
    assert world.registrar.challenge(attempt.grant)
    world.close()


def test_endless_request_is_not_read_to_its_end(key_world: World) -> None:
    app, sent, answers = key_world.transports[0]._inner.app, [0], list[dict[str, Any]]()

    async def receive() -> dict[str, Any]:
        sent[0] += 1
        if sent[0] > 1000:
            raise AssertionError("read far beyond the limit")
        return {"type": "http.request", "body": b" " * 65536, "more_body": True}

    async def send_back(message: dict[str, Any]) -> None:
        answers.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/releases",
        "raw_path": b"/v1/releases",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-length", b"10")],
        "client": ("127.0.0.1", 1),
        "server": ("keys.test", 80),
    }
    asyncio.run(app(scope, receive, send_back))
    assert answers[0]["status"] == 413
    assert sent[0] <= 60
