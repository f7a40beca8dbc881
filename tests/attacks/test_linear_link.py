"""On the links of a linear fit nobody passes for a party, speaks in its name, or brings words from elsewhere."""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID
from tests.linear_people import NAMES, PEOPLE, agreed, linked, together

from cloister.errors import CloisterError, PeerError
from cloister.linear import _peers
from cloister.linear._agreement import Agreement, endpoint
from cloister.linear._frames import frame
from cloister.linear._link import TlsChannel
from cloister.linear._meeting import connect, meet
from cloister.linear._session_hello import _HELLO, PROTOCOL_VERSION, SESSION_LABEL, greet, plan_digest
from cloister.linear._transcript import labelled
from cloister.wire import SigningKey

TWO = NAMES[:2]
SHORT = {"connect_s": 2, "answer_s": 3}


def come(agreement: Agreement, place: int, key: SigningKey) -> str:
    with connect(agreement, place, key, listen=agreement.parties[place].address) as channel:
        channel.begin("online")
        return channel.swap("open", [b"secret"] * channel.parties, 6)[1 - place].decode()


def code_of(found: Any) -> int:
    assert isinstance(found, CloisterError), found
    return found.code


# ---- impersonation -------------------------------------------------------------------------------------------


def test_nobody_who_calls_passes_for_a_party() -> None:
    agreement = agreed(TWO, timeouts=SHORT)
    host, stranger = together(
        lambda: come(agreement, 0, PEOPLE["bank-a"].signing_key),
        lambda: come(agreement, 1, PEOPLE["stranger"].signing_key),
    )
    assert (code_of(host), code_of(stranger)) == (6901, 6901)
    assert "refused us" in str(stranger.got)


def test_nobody_who_listens_passes_for_a_party() -> None:
    agreement = agreed(TWO, timeouts=SHORT)
    stranger, caller = together(
        lambda: come(agreement, 0, PEOPLE["stranger"].signing_key),
        lambda: come(agreement, 1, PEOPLE["bank-b"].signing_key),
    )
    assert (code_of(stranger), code_of(caller)) == (6901, 6908)
    assert "'bank-a'" in caller.what


def test_a_party_does_not_pass_for_another_one() -> None:
    """bank-c, a party itself, calls in the place of bank-b: it is taken for bank-c, and bank-b is still missed."""
    agreement = agreed(timeouts=SHORT)

    def hears() -> Any:
        met = meet(agreement, 0, PEOPLE["bank-a"].signing_key, timeout_s=2, listen=agreement.parties[0].address)
        met.close()
        return met

    def calls() -> Any:
        met = meet(agreement, 1, PEOPLE["bank-c"].signing_key, timeout_s=2, listen=agreement.parties[1].address)
        met.close()
        return met

    met, _ = together(hears, calls)
    assert sorted(met.links) == [2]
    assert met.missing[1].code == 6901


def _certified(issuer: str, signer: Ed25519PrivateKey, key: Ed25519PrivateKey) -> Callable[..., x509.Certificate]:
    """A certificate that names a party's key as its issuer, and that somebody else signed."""

    def made(*_: Any, **__: Any) -> x509.Certificate:
        real = _peers_certificate
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)])
        link = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a link")])
        return real(link, name, key.public_key(), signer, authority=False)

    return made


_peers_certificate = _peers._certificate


def _hand_made(path: Any, own: SigningKey, peers: list[Any], issuer: str, *, listening: bool) -> ssl.SSLContext:
    """A context of a cheater: its certificate names ``issuer``, its own key signed it."""
    context = _peers.context(own, peers, listening=listening)
    signer, key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    certificate = _certified(issuer, signer, key)()
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context.load_cert_chain(path)
    return context


def test_a_certificate_that_only_names_a_key_is_none(tmp_path: Any) -> None:
    bank_a, bank_b = PEOPLE["bank-a"].signing_key, PEOPLE["bank-b"].signing_key
    ours, theirs = socket.socketpair()
    hearing = _peers.context(bank_a, [bank_b.public], listening=True)
    calling = _hand_made(
        tmp_path / "cheat.pem", PEOPLE["stranger"].signing_key, [bank_a.public], bank_b.public.id, listening=False
    )

    def hear() -> int:
        with hearing.wrap_socket(ours, server_side=True) as link:
            return _peers.whose(link, {1: bank_b.public})

    def call() -> None:
        with calling.wrap_socket(theirs) as link:
            link.recv(1)

    heard, _ = together(hear, call)
    assert isinstance(heard, ssl.SSLCertVerificationError), heard


def test_who_somebody_is_does_not_rest_on_openssl_alone(tmp_path: Any) -> None:
    """Even a context that trusts a stranger's authority gives no link to it."""
    bank_a, bank_b = PEOPLE["bank-a"].signing_key, PEOPLE["bank-b"].signing_key
    stranger = PEOPLE["stranger"].signing_key
    ours, theirs = socket.socketpair()
    hearing = _peers.context(bank_a, [bank_b.public, stranger.public], listening=True)
    calling = _peers.context(stranger, [bank_a.public], listening=False)

    def hear() -> int:
        with hearing.wrap_socket(ours, server_side=True) as link:
            return _peers.whose(link, {1: bank_b.public})

    def call() -> None:
        with calling.wrap_socket(theirs) as link:
            link.recv(1)

    heard, _ = together(hear, call)
    assert code_of(heard) == 6908
    forged = _certified(bank_b.public.id, Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate())()

    class Link:
        def getpeercert(self, *, binary_form: bool) -> bytes:
            assert binary_form
            return forged.public_bytes(serialization.Encoding.DER)

    with pytest.raises(PeerError) as caught:
        _peers.whose(Link(), {1: bank_b.public})  # type: ignore[arg-type]
    assert caught.value.code == 6908


def test_a_certificate_cannot_certify_others(tmp_path: Any) -> None:
    """bank-b's link key is no authority: what it signs in turn proves nothing."""
    certificate = _peers_certificate(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a link")]),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")]),
        Ed25519PrivateKey.generate().public_key(),
        Ed25519PrivateKey.generate(),
        authority=False,
    )
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca


def test_the_pinned_key_is_not_written_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    key = SigningKey.generate()
    written: list[bytes] = []
    real = ssl.SSLContext.load_cert_chain

    def watched(self: ssl.SSLContext, path: Any, password: bytes) -> None:
        data = path.read_bytes()
        written.append(data)
        assert path.stat().st_mode & 0o077 == 0
        loaded = serialization.load_pem_private_key(data[data.index(b"-----BEGIN ENC") :], password)
        assert isinstance(loaded, Ed25519PrivateKey)
        assert loaded.private_bytes_raw() != key.seed().reveal()
        places.append(path)
        real(self, path, password=password)

    places: list[Any] = []
    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", watched)
    _peers.context(key, [key.public], listening=True)
    assert b"ENCRYPTED PRIVATE KEY" in written[0]
    assert not places[0].exists()


# ---- downgrade -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listening", [True, False], ids=["caller", "listener"])
def test_nothing_below_tls_1_3_is_spoken(listening: bool) -> None:
    bank_a, bank_b = PEOPLE["bank-a"].signing_key, PEOPLE["bank-b"].signing_key
    old = _peers.context(bank_b, [bank_a.public], listening=not listening)
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    honest = _peers.context(bank_a, [bank_b.public], listening=listening)
    ours, theirs = socket.socketpair()

    def shake(plain: socket.socket, context: ssl.SSLContext, *, server: bool) -> str | None:
        with context.wrap_socket(plain, server_side=server) as link:
            return link.version()

    found = together(lambda: shake(ours, honest, server=listening), lambda: shake(theirs, old, server=not listening))
    assert all(isinstance(one, OSError) for one in found), found


def test_words_without_tls_are_not_heard(caplog: pytest.LogCaptureFixture) -> None:
    agreement = agreed(TWO, timeouts=SHORT)
    caplog.set_level(logging.INFO, logger="cloister.linear")

    def shout() -> bytes:
        time.sleep(0.3)
        with socket.create_connection(endpoint(agreement.parties[0].address), timeout=2) as plain:
            plain.sendall(frame("open", 1, b"secret"))
            return plain.recv(100)

    host, _ = together(lambda: come(agreement, 0, PEOPLE["bank-a"].signing_key), shout)
    assert code_of(host) == 6901
    assert "came to nothing" in caplog.text


# ---- words from elsewhere ------------------------------------------------------------------------------------


def cheating(second: Callable[[TlsChannel, ssl.SSLSocket], None]) -> Any:
    """What an honest bank-a's two steps end with, when bank-b is right in the first and then cheats."""
    agreement = agreed(TWO, timeouts={"connect_s": 20, "answer_s": 3})

    def work(channel: TlsChannel) -> Any:
        channel.begin("online")
        channel.swap("open", [b"first!"] * 2, 6)
        if channel.party == 0:
            return channel.swap("open", [b"again!"] * 2, 6)
        link = channel._links[0].socket
        link.settimeout(5)
        second(channel, link)
        return None

    return linked(agreement, work)[0]


def test_a_frame_that_was_sent_before_is_not_taken_again() -> None:
    found = cheating(lambda channel, link: link.sendall(frame("open", 1, b"first!")))
    assert code_of(found) == 6903


def test_a_frame_of_a_later_step_is_not_taken_early() -> None:
    found = cheating(lambda channel, link: link.sendall(frame("open", 3, b"later!")))
    assert code_of(found) == 6903


def test_a_frame_of_another_kind_is_not_taken() -> None:
    found = cheating(lambda channel, link: link.sendall(frame("coin", 2, b"later!")))
    assert code_of(found) == 6903


def test_bytes_of_another_link_break_the_link() -> None:
    """What was recorded on one connection means nothing on another: the records are of other keys."""

    def inject(channel: TlsChannel, link: ssl.SSLSocket) -> None:
        plain = socket.socket(fileno=link.detach())
        plain.sendall(b"\x17\x03\x03\x00\x40" + bytes(64))
        plain.close()

    assert code_of(cheating(inject)) == 6902


def test_a_hello_of_another_session_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """bank-b repeats everything that it said in a session before, nonce and signature: the name differs."""
    agreement = agreed(TWO, timeouts={"connect_s": 20, "answer_s": 5})
    said: list[tuple[str, bytes]] = []

    def before(channel: TlsChannel) -> bytes:
        if channel.party == 1:
            real = channel.swap

            def recorded(kind: str, bodies: Any, size_bytes: int) -> list[bytes]:
                said.append((kind, bodies[0]))
                return real(kind, bodies, size_bytes)

            monkeypatch.setattr(channel, "swap", recorded)
        return greet(channel, agreement, PEOPLE[NAMES[channel.party]])

    def after(channel: TlsChannel) -> Any:
        if channel.party == 1:
            return [channel.swap(kind, [body] * 2, len(body)) for kind, body in said]
        return greet(channel, agreement, PEOPLE["bank-a"])

    assert all(isinstance(found, bytes) for found in linked(agreement, before))
    assert [kind for kind, _ in said] == ["hello", "hello signature"]
    found = linked(agreement, after)[0]
    assert code_of(found) == 5909
    assert "bank-b" in found.what


def test_different_nonces_for_different_parties_are_noticed() -> None:
    """bank-c tells bank-a and bank-b different nonces: it cannot sign both names, and nobody goes on."""
    agreement = agreed()

    def work(channel: TlsChannel) -> Any:
        if channel.party < 2:
            return greet(channel, agreement, PEOPLE[NAMES[channel.party]])
        real = channel.swap

        def two_faced(kind: str, bodies: Any, size_bytes: int) -> list[bytes]:
            if kind == "hello":
                bodies = [bodies[0], bodies[1][:-1] + bytes([bodies[1][-1] ^ 1]), bodies[2]]
            return real(kind, bodies, size_bytes)

        channel.swap = two_faced  # type: ignore[method-assign]
        return greet(channel, agreement, PEOPLE["bank-c"])

    codes = [code_of(found) for found in linked(agreement, work)]
    assert 5909 in codes
    assert set(codes) <= {5909, 6905}


def test_another_party_cannot_sign_a_hello_for_somebody_else() -> None:
    """Should a link ever be somebody else's, the session's name is not signed with the pinned key."""
    agreement = agreed(TWO)

    def work(channel: TlsChannel) -> Any:
        if channel.party == 0:
            return greet(channel, agreement, PEOPLE["bank-a"])
        digests = (bytes.fromhex(agreement.id), plan_digest(*agreement.plans()))
        own = _HELLO.pack(PROTOCOL_VERSION, *digests, bytes(32))
        said = channel.swap("hello", [own] * 2, len(own))
        session = labelled("session", PROTOCOL_VERSION, *digests, said[0][-32:], bytes(32))
        key = PEOPLE[signer].signing_key
        return channel.swap("hello signature", [key.sign(SESSION_LABEL, session)] * 2, 64)

    signer = "bank-b"
    assert isinstance(linked(agreement, work)[0], bytes)
    signer = "stranger"
    found = linked(agreement, work)[0]
    assert code_of(found) == 5909
