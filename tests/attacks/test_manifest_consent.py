"""The host wants a run that not every owner agreed to."""

from __future__ import annotations

import pytest
from tests.unit.manifest.full import FULL_MANIFEST, PEOPLE

from cloister.errors import CloisterError, IntegrityError, RefusedError
from cloister.manifest import (
    MANIFEST_LABEL,
    Output,
    Release,
    load_signed,
    propose,
    require_pinned,
    require_signed,
    sign,
)
from cloister.party import Identity
from cloister.wire import canonical, parse_json

OWNERS = ("hospital-a", "hospital-b", "host")


def signed_by(*names, manifest=FULL_MANIFEST):
    signed = propose(manifest)
    for name in names:
        signed = sign(signed, PEOPLE[name])
    return signed


def refused(signed, code, error):
    with pytest.raises(error) as caught:
        require_signed(load_signed(signed.canonical()))
    assert caught.value.code == code, caught.value
    return caught.value


AGREED = signed_by(*OWNERS)


def test_the_agreed_manifest_is_accepted():
    assert set(require_signed(load_signed(AGREED.canonical()))) == set(OWNERS)


@pytest.mark.parametrize("absent", OWNERS)
def test_signed_by_a_subset(absent):
    error = refused(signed_by(*(name for name in OWNERS if name != absent)), 3301, RefusedError)
    assert absent in error.what


def test_signed_by_nobody():
    refused(propose(FULL_MANIFEST), 3301, RefusedError)


def test_signed_by_the_idle_in_place_of_an_owner():
    refused(signed_by("hospital-a", "host", "cloud-x", "cloud-y", "cloud-z"), 3301, RefusedError)


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.model_copy(update={"purpose": m.purpose + "."}),
        lambda m: m.model_copy(update={"releases": (*m.releases, Release(output="clean", party="host"))}),
        lambda m: _stage(m, "train", argv=("python", "steal.py")),
        lambda m: _stage(m, "train", logs=("host",)),
        lambda m: _stage(m, "prepare", env={"SEED": "8"}),
        lambda m: _stage(m, "train", outputs={**m.stages["train"].outputs, "report": Output(max_bytes=1 << 40)}),
        lambda m: m.model_copy(update={"tees": {**m.tees, "launcher": _tee(m, measurements=("e" * 96,))}}),
        lambda m: m.model_copy(update={"tees": {**m.tees, "launcher": _tee(m, simulated_root="e" * 64)}}),
        lambda m: m.model_copy(update={"images": {**m.images, "data-b": _image(m, uses=11)}}),
        lambda m: m.model_copy(update={"valid": m.valid.model_copy(update={"not_after": "2099-01-01T00:00:00Z"})}),
    ],
    ids=["purpose", "release", "argv", "logs", "env", "size", "measurement", "simulated", "uses", "validity"],
)
def test_edited_after_signing(edit):
    refused(AGREED.model_copy(update={"manifest": edit(FULL_MANIFEST)}), 5301, IntegrityError)


def _stage(manifest, name, **update):
    return manifest.model_copy(
        update={"stages": {**manifest.stages, name: manifest.stages[name].model_copy(update=update)}}
    )


def _tee(manifest, **update):
    return manifest.tees["launcher"].model_copy(update=update)


def _image(manifest, **update):
    return manifest.images["data-b"].model_copy(update=update)


def test_the_owner_replaced_by_one_who_would_sign():
    """The host calls the hospital's image its own: it has no key to install for it, and the old consent is void."""
    records = FULL_MANIFEST.images["records"].model_copy(update={"owner": "host"})
    images = {**FULL_MANIFEST.images, "data-b": _image(FULL_MANIFEST, owner="host"), "records": records}
    taken = FULL_MANIFEST.model_copy(update={"images": images})
    signed = signed_by("hospital-a", "host", manifest=taken)
    assert "hospital-b" not in require_signed(signed)
    refused(AGREED.model_copy(update={"manifest": taken}), 5301, IntegrityError)


def test_a_signature_from_another_manifest():
    other = signed_by(*OWNERS, manifest=FULL_MANIFEST.model_copy(update={"purpose": "another"}))
    refused(AGREED.model_copy(update={"signatures": other.signatures}), 5301, IntegrityError)


@pytest.mark.parametrize("label", ["cloister/party/v1", "cloister/key-install/v1", "cloister/manifest/v2", ""])
def test_a_signature_for_another_purpose(label):
    forged = PEOPLE["host"].signing_key.sign(label, bytes.fromhex(FULL_MANIFEST.id))
    assert label != MANIFEST_LABEL
    refused(AGREED.model_copy(update={"signatures": {**AGREED.signatures, "host": forged}}), 5301, IntegrityError)


def test_a_signature_over_the_text_of_the_id():
    forged = PEOPLE["host"].signing_key.sign(MANIFEST_LABEL, FULL_MANIFEST.id.encode())
    refused(AGREED.model_copy(update={"signatures": {**AGREED.signatures, "host": forged}}), 5301, IntegrityError)


def test_one_owner_s_signature_under_another_s_name():
    copied = {**AGREED.signatures, "hospital-b": AGREED.signatures["hospital-a"]}
    refused(AGREED.model_copy(update={"signatures": copied}), 5301, IntegrityError)


def test_a_signature_by_somebody_who_is_no_party():
    stranger = Identity.generate("stranger")
    forged = stranger.signing_key.sign(MANIFEST_LABEL, bytes.fromhex(FULL_MANIFEST.id))
    refused(AGREED.model_copy(update={"signatures": {**AGREED.signatures, "stranger": forged}}), 5302, IntegrityError)


def test_a_bad_signature_of_somebody_who_need_not_sign_spoils_the_file():
    refused(AGREED.model_copy(update={"signatures": {**AGREED.signatures, "cloud-x": bytes(64)}}), 5301, IntegrityError)


def test_the_key_of_a_pinned_party_swapped():
    """The host writes its own key under the hospital's name, and signs in its place."""
    impostor = Identity.generate("hospital-b")
    party = FULL_MANIFEST.parties["hospital-b"].model_copy(
        update={"sign": impostor.public.sign, "hpke": impostor.public.hpke}
    )
    forged = FULL_MANIFEST.model_copy(update={"parties": {**FULL_MANIFEST.parties, "hospital-b": party}})
    signed = sign(signed_by("hospital-a", "host", manifest=forged), impostor)
    require_signed(signed)  # complete, by the keys that it names itself
    with pytest.raises(RefusedError) as caught:
        require_pinned(signed.manifest, {name: identity.public for name, identity in PEOPLE.items()})
    assert caught.value.code == 3302


def test_only_the_hpke_key_swapped():
    """The signing key stays, so the signature would be real: but results would be sealed to the host."""
    impostor = Identity.generate("hospital-b")
    party = FULL_MANIFEST.parties["hospital-b"].model_copy(update={"hpke": impostor.public.hpke})
    forged = FULL_MANIFEST.model_copy(update={"parties": {**FULL_MANIFEST.parties, "hospital-b": party}})
    with pytest.raises(RefusedError) as caught:
        require_pinned(forged, {name: identity.public for name, identity in PEOPLE.items()})
    assert caught.value.code == 3302
    with pytest.raises(RefusedError) as caught:
        sign(propose(forged), PEOPLE["hospital-b"])
    assert caught.value.code == 3305


def test_one_person_as_two_owners():
    party = FULL_MANIFEST.parties["host"]
    forged = FULL_MANIFEST.model_copy(update={"parties": {**FULL_MANIFEST.parties, "hospital-b": party}})
    refused(AGREED.model_copy(update={"manifest": forged}), 2322, CloisterError)


def test_a_default_left_out_after_signing():
    value = parse_json(AGREED.canonical(), what="x")
    del value["manifest"]["stages"]["train"]["limits"]
    with pytest.raises(IntegrityError) as caught:
        load_signed(canonical(value))
    assert caught.value.code == 5303


@pytest.mark.parametrize(
    "place", [(), ("manifest",), ("manifest", "stages", "train"), ("manifest", "tees", "launcher")]
)
def test_an_unknown_field_slipped_in(place):
    value = parse_json(AGREED.canonical(), what="x")
    part = value
    for step in place:
        part = part[step]
    part["debug"] = True
    with pytest.raises(CloisterError) as caught:
        load_signed(canonical(value))
    assert caught.value.code == 2005


def test_a_field_given_twice():
    raw = AGREED.canonical().replace(b'"name":"full"', b'"name":"full","name":"other"')
    with pytest.raises(CloisterError) as caught:
        load_signed(raw)
    assert caught.value.code == 2002
