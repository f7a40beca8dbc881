"""Signatures, envelopes, HPKE, secrets: each bound to its purpose, none of them printable."""

import copy
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import CloisterError, InputError, IntegrityError
from cloister.wire import (
    Envelope,
    OpeningKey,
    SealingKey,
    Secret,
    SigningKey,
    VerifyKey,
    open_envelope,
    parse_message,
    sign_envelope,
)

KEY, OTHER = SigningKey(Secret(bytes([1]) * 32)), SigningKey(Secret(bytes([2]) * 32))
ENVELOPE = sign_envelope("test/v1", {"a": 1}, KEY)
OPENING = {suite: OpeningKey.generate(post_quantum=suite) for suite in (True, False)}


def test_an_envelope_gives_back_its_value() -> None:
    assert open_envelope(parse_message(Envelope, ENVELOPE.canonical(), what="envelope"), "test/v1", KEY.public) == {
        "a": 1
    }


@pytest.mark.parametrize(("label", "key"), [("test/v2", KEY), ("test/v1", OTHER)])
def test_an_envelope_for_another_purpose_or_key_is_refused(label: str, key: SigningKey) -> None:
    with pytest.raises(IntegrityError) as caught:
        open_envelope(ENVELOPE, label, key.public)
    assert caught.value.code == 5001


@given(st.integers(0, 8 * len(ENVELOPE.canonical()) - 1))
def test_any_flipped_bit_of_an_envelope_is_refused(position: int) -> None:
    data = bytearray(ENVELOPE.canonical())
    data[position // 8] ^= 1 << position % 8
    with pytest.raises(CloisterError) as caught:
        open_envelope(parse_message(Envelope, bytes(data), what="envelope"), "test/v1", KEY.public)
    assert caught.value.code in (2002, 2005, 5001)


@pytest.mark.parametrize(
    "text", ["", "ed25519:", "ed25519:AAAA", str(KEY.public)[:-1], "x25519:AAAA", "mlkem768-x25519:AAAA"]
)
def test_a_malformed_public_key_is_refused(text: str) -> None:
    for parse in (VerifyKey.parse, SealingKey.parse):
        with pytest.raises(InputError) as caught:
            parse(text)
        assert caught.value.code == 2005


def test_a_key_of_one_kind_is_not_read_as_another() -> None:
    with pytest.raises(InputError):
        SealingKey.parse(str(KEY.public))
    with pytest.raises(InputError):
        VerifyKey.parse(str(OPENING[False].public))


@pytest.mark.parametrize("post_quantum", [True, False])
def test_hpke_opens_only_for_its_key_and_context(post_quantum: bool) -> None:
    key = OPENING[post_quantum]
    sealed = SealingKey.parse(str(key.public)).seal(b"hello", info=b"context")
    assert OpeningKey(key.seed()).open(sealed, info=b"context") == b"hello"
    flipped = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for reader, message, info in (
        (key, sealed, b"other"),
        (key, flipped, b"context"),
        (key, sealed[:20], b"context"),
        (key, b"", b"context"),
        (OpeningKey.generate(post_quantum=post_quantum), sealed, b"context"),
    ):
        with pytest.raises(IntegrityError) as caught:
            reader.open(message, info=info)
        assert caught.value.code == 5002


def test_a_sealed_message_needs_a_context() -> None:
    with pytest.raises(InputError):
        OPENING[False].public.seal(b"x", info=b"")


def test_secrets_have_no_text_no_equality_no_copy() -> None:
    secret = Secret(b"the key itself")
    assert "key itself" not in f"{secret!r} {secret} {KEY!r} {OPENING[True]!r}"
    with pytest.raises(TypeError):
        assert secret == secret
    for leak in (pickle.dumps, copy.copy, json.dumps, hash):
        with pytest.raises(TypeError):
            leak(secret)
    for key in (KEY, OPENING[True]):
        with pytest.raises(TypeError):
            pickle.dumps(key)
    assert secret.matches(Secret(b"the key itself"))
    assert not secret.matches(Secret(b"another key"))
