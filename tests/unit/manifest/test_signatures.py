"""A manifest is agreed when it is sound and every owner of what is read has signed exactly it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.manifest.full import FULL_MANIFEST, PEOPLE

from cloister.errors import CloisterError, InputError, IntegrityError, RefusedError
from cloister.manifest import (
    MANIFEST_LABEL,
    load_signed,
    merge,
    propose,
    require_pinned,
    require_signed,
    required_signers,
    sign,
    verify_signatures,
)
from cloister.party import Identity
from cloister.wire import canonical, parse_json

NEEDED = ("hospital-a", "hospital-b", "host")


def signed_by(*names, manifest=FULL_MANIFEST):
    signed = propose(manifest)
    for name in names:
        signed = sign(signed, PEOPLE[name])
    return signed


COMPLETE = signed_by(*NEEDED, "cloud-x")
RAW = COMPLETE.canonical()


def refused(error, code, function, *arguments):
    with pytest.raises(error) as caught:
        function(*arguments)
    assert caught.value.code == code, caught.value
    return caught.value


def test_the_owners_of_what_is_read_must_sign():
    assert required_signers(FULL_MANIFEST) == set(NEEDED)
    assert set(require_signed(signed_by(*NEEDED))) == set(NEEDED)


def test_others_may_sign_too():
    assert list(require_signed(COMPLETE)) == ["cloud-x", *NEEDED]


def test_a_signature_is_over_the_label_and_the_raw_id():
    party = FULL_MANIFEST.parties["host"]
    signature = COMPLETE.signatures["host"]
    from cloister.wire import VerifyKey, digest

    raw = bytes.fromhex(digest(FULL_MANIFEST.canonical()))
    VerifyKey.parse(party.sign).verify("cloister/manifest/v1", raw, signature)
    assert MANIFEST_LABEL == "cloister/manifest/v1"


def test_the_order_of_signing_does_not_matter():
    assert signed_by("host", "hospital-b", "hospital-a") == signed_by(*NEEDED)


def test_signing_twice_changes_nothing():
    assert sign(COMPLETE, PEOPLE["host"]) == COMPLETE


def test_copies_are_merged():
    one, two = signed_by("hospital-a"), signed_by("hospital-b", "host")
    assert merge(one, two) == merge(two, one) == signed_by(*NEEDED)


def test_copies_of_different_manifests_are_not():
    other = FULL_MANIFEST.model_copy(update={"purpose": "another"})
    refused(InputError, 2331, merge, signed_by("host"), signed_by("host", manifest=other))


def test_a_copy_with_a_bad_signature_is_not_merged():
    bad = signed_by("host").model_copy(update={"signatures": {"host": bytes(64)}})
    refused(IntegrityError, 5301, merge, signed_by("hospital-a"), bad)


def test_an_unsound_manifest_is_neither_proposed_nor_signed_nor_accepted():
    unsound = FULL_MANIFEST.model_copy(update={"registrar": "nobody"})
    refused(InputError, 2312, propose, unsound)
    raw = COMPLETE.model_copy(update={"manifest": unsound, "signatures": {}})
    refused(InputError, 2312, sign, raw, PEOPLE["host"])
    refused(InputError, 2312, require_signed, raw)


def test_a_stranger_cannot_sign():
    refused(RefusedError, 3305, sign, COMPLETE, Identity.generate("stranger"))


def test_a_namesake_with_other_keys_cannot_sign():
    refused(RefusedError, 3305, sign, COMPLETE, Identity.generate("host"))
    host = PEOPLE["host"]
    refused(RefusedError, 3305, sign, COMPLETE, Identity("host", host.signing_key, Identity.generate("x").opening_key))


def test_nobody_adds_a_signature_beside_a_forged_one():
    forged = COMPLETE.model_copy(update={"signatures": {"hospital-a": bytes(64)}})
    refused(IntegrityError, 5301, sign, forged, PEOPLE["host"])


@pytest.mark.parametrize("signature", [b"", b"x", bytes(64), bytes(65)])
def test_a_signature_of_any_length_is_a_named_refusal(signature):
    forged = COMPLETE.model_copy(update={"signatures": {"host": signature}})
    refused(IntegrityError, 5301, verify_signatures, forged)


def test_it_survives_the_file():
    assert load_signed(RAW) == COMPLETE
    assert load_signed(b" \n" + RAW + b"\n") == COMPLETE


def test_another_format_is_told_apart():
    value = parse_json(RAW, what="x")
    refused(InputError, 2004, load_signed, canonical(value | {"format": "cloister/signed-manifest/v2"}))


@pytest.mark.parametrize("data", [b"", b"[]", b"3", b"{}", b"\xff", b'{"format":"cloister/signed-manifest/v1"}'])
def test_what_is_not_one_is_a_named_refusal(data):
    with pytest.raises(InputError):
        load_signed(data)


def test_a_large_file_is_refused_unread():
    refused(InputError, 2003, load_signed, b" " * ((1 << 20) + 1))


@given(st.integers(0, len(RAW) - 1), st.integers(0, 7))
@settings(max_examples=250, deadline=None)
def test_any_flipped_bit_is_refused(at, bit):
    raw = bytearray(RAW)
    raw[at] ^= 1 << bit
    with pytest.raises(CloisterError):
        require_signed(load_signed(bytes(raw)))


def places(value, place=()):
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*place, key)
            yield from places(item, (*place, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield (*place, index)
            yield from places(item, (*place, index))


PLACES = list(places(parse_json(RAW, what="x")["manifest"]))


def without(place):
    value = parse_json(RAW, what="x")
    part = value["manifest"]
    for step in place[:-1]:
        part = part[step]
    del part[place[-1]]
    return canonical(value)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_leaving_out_any_part_is_refused(place):
    with pytest.raises(CloisterError) as caught:
        require_signed(load_signed(without(place)))
    assert caught.value.code in {
        2005,
        2310,
        2312,
        2313,
        2314,
        2315,
        2317,
        2318,
        2326,
        2332,
        2334,
        2335,
        3308,
        5301,
        5303,
    }


def test_a_default_left_out_is_not_put_back():
    refused(IntegrityError, 5303, load_signed, without(("images", "data-b", "uses")))


def test_an_absent_field_is_not_written_as_null():
    value = parse_json(RAW, what="x")
    value["manifest"]["images"]["data-b"]["until"] = None
    refused(IntegrityError, 5303, load_signed, canonical(value))


def test_pins_of_every_party_are_needed_and_compared():
    pins = {name: identity.public for name, identity in PEOPLE.items()}
    require_pinned(FULL_MANIFEST, pins)
    refused(RefusedError, 3303, require_pinned, FULL_MANIFEST, {n: p for n, p in pins.items() if n != "cloud-z"})
    for field in ("sign", "hpke"):
        swapped = pins["host"].model_copy(update={field: getattr(Identity.generate("host").public, field)})
        refused(RefusedError, 3302, require_pinned, FULL_MANIFEST, pins | {"host": swapped})
