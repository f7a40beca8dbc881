"""An identity survives the disk, and nothing else about it does."""

import json
import os
import pickle
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import CloisterError, InputError, IntegrityError
from cloister.party import Identity, PublicIdentity, create, fingerprint, require_fingerprint
from cloister.party._keyfile import KeyFile, lock, unlock
from cloister.wire import Secret, canonical


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home") / "identities"
    identity = create("hospital-a", folder, "correct horse")
    return identity, folder / "hospital-a.key"


@pytest.fixture(scope="module")
def locked():
    identity = Identity.generate("hospital-a")
    return lock(identity.public, Secret(b"s" * 64), "correct horse")


def test_loading_gives_back_both_keys(saved):
    identity, path = saved
    loaded = Identity.load(path, "correct horse")
    assert loaded.public == identity.public
    sealed = identity.opening_key.public.seal(b"hello", info=b"test")
    assert loaded.opening_key.open(sealed, info=b"test") == b"hello"
    identity.signing_key.public.verify("x", b"y", loaded.signing_key.sign("x", b"y"))


def test_a_post_quantum_identity_survives_the_disk(tmp_path):
    identity = create("bank", tmp_path, "pass", post_quantum=True)
    assert identity.public.hpke.startswith("mlkem768-x25519:")
    assert Identity.load(tmp_path / "bank.key", "pass").public == identity.public


def test_the_key_file_is_private_and_the_public_file_is_not(saved):
    _, path = saved
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert PublicIdentity.parse(path.with_suffix(".pub").read_bytes()).name == "hospital-a"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620, 0o601])
def test_a_key_file_that_others_can_touch_is_refused(saved, mode, tmp_path):
    copy = tmp_path / "hospital-a.key"
    copy.write_bytes(saved[1].read_bytes())
    os.chmod(copy, mode)
    with pytest.raises(InputError) as caught:
        Identity.load(copy, "correct horse")
    assert caught.value.code == 2014


def test_the_passphrase_is_asked_for_only_once_the_file_is_known_to_be_usable(tmp_path):
    bad = tmp_path / "bad.key"
    bad.write_bytes(b"{}")
    bad.chmod(0o600)
    with pytest.raises(InputError) as caught:
        Identity.load(bad, lambda: pytest.fail("asked"))
    assert caught.value.code == 2005


def test_a_wrong_passphrase_is_refused(saved):
    with pytest.raises(InputError) as caught:
        Identity.load(saved[1], "wrong horse")
    assert caught.value.code == 2011


def test_one_passphrase_in_two_unicode_forms_is_one_passphrase():
    identity = Identity.generate("hospital-a")
    file = lock(identity.public, Secret(b"s" * 64), "caf\u00e9")
    assert unlock(file, "cafe\u0301").reveal() == b"s" * 64


@pytest.mark.parametrize("passphrase", ["", "  ", "\t"])
def test_an_empty_passphrase_is_refused(passphrase, tmp_path):
    with pytest.raises(InputError) as caught:
        create("hospital-a", tmp_path, passphrase)
    assert caught.value.code == 2017
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"n": 1 << 14},
        {"n": 1 << 19},
        {"n": (1 << 15) + 1},
        {"n": 0},
        {"n": -1},
        {"r": 1 << 20},
        {"p": 1 << 20},
        {"salt": b""},
    ],
    ids=str,
)
def test_a_hostile_derivation_is_refused_before_it_runs(locked, change):
    hostile = locked.model_copy(update={"kdf": locked.kdf.model_copy(update=change)})
    with pytest.raises(InputError) as caught:
        unlock(hostile, "correct horse")
    assert caught.value.code == 2016


@pytest.mark.parametrize("field", ["public", "nonce", "sealed"])
def test_the_whole_header_is_authenticated(locked, field):
    other = lock(Identity.generate("hospital-b").public, Secret(b"t" * 64), "correct horse")
    with pytest.raises(InputError) as caught:
        unlock(locked.model_copy(update={field: getattr(other, field)}), "correct horse")
    assert caught.value.code == 2011


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_key_file_is_a_named_refusal(locked, data):
    raw = bytearray(locked.canonical())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    path = _private(bytes(raw))
    try:
        # Whatever still parses fails at the passphrase: none is offered, so no derivation is paid for here.
        with pytest.raises((CloisterError, AskedError)):
            Identity.load(path, _ask)
    finally:
        path.unlink()


def test_an_identity_is_not_overwritten(saved):
    with pytest.raises(InputError) as caught:
        create("hospital-a", saved[1].parent, "other")
    assert caught.value.code == 2007


def test_a_later_format_is_told_apart_from_a_broken_file(saved, tmp_path):
    value = json.loads(saved[1].read_text())
    path = tmp_path / "a.key"
    path.write_text(json.dumps(value | {"format": "cloister/party-key/v2"}))
    path.chmod(0o600)
    with pytest.raises(InputError) as caught:
        Identity.load(path, "correct horse")
    assert caught.value.code == 2004
    with pytest.raises(InputError) as caught:
        PublicIdentity.parse(canonical(value["public"] | {"format": "cloister/party/v2"}))
    assert caught.value.code == 2004


def test_no_secret_shows_in_a_repr_or_a_pickle(saved):
    identity, _ = saved
    assert repr(identity) == "<Identity hospital-a>"
    with pytest.raises(TypeError):
        pickle.dumps(identity)


@pytest.mark.parametrize("name", ["", "Hospital", "a_b", "-a", "a/../b", "a b", "hôpital", "a\n", "x" * 65])
def test_a_name_that_is_not_one_is_refused(name):
    with pytest.raises(InputError) as caught:
        Identity.generate(name)
    assert caught.value.code == 2005


def test_a_public_identity_with_another_s_hpke_key_is_refused():
    mine, theirs = Identity.generate("a").public, Identity.generate("b").public
    with pytest.raises(IntegrityError) as caught:
        PublicIdentity.parse(mine.model_copy(update={"hpke": theirs.hpke}).canonical())
    assert caught.value.code == 5001


def test_a_public_identity_under_another_name_is_refused():
    mine = Identity.generate("a").public
    with pytest.raises(IntegrityError):
        PublicIdentity.parse(mine.model_copy(update={"name": "b"}).canonical())


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_flipped_bit_of_a_public_file_is_refused(data):
    raw = bytearray(_PUBLIC.canonical())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CloisterError):
        PublicIdentity.parse(bytes(raw))


def test_the_fingerprint_covers_name_and_both_keys():
    public, other = Identity.generate("a").public, Identity.generate("a").public
    words = fingerprint(public)
    for field in ("sign", "hpke"):
        assert fingerprint(public.model_copy(update={field: getattr(other, field)})) != words
    assert fingerprint(public.model_copy(update={"name": "b"})) != words


def test_the_fingerprint_of_a_known_identity_never_changes():
    public = PublicIdentity.model_construct(name="hospital-a", sign="ed25519:x", hpke="x25519:y", signature=b"")
    assert fingerprint(public) == "oxygen subway industry pool boost lounge thank cousin"


def test_spoken_words_are_read_as_people_write_them():
    words = fingerprint(_PUBLIC)
    require_fingerprint(_PUBLIC, f"  {words.upper().replace(' ', '-')}  ")


@pytest.mark.parametrize("change", [lambda w: w[:-1], lambda w: [*w, w[0]], lambda w: w[::-1], lambda w: []])
def test_other_words_are_refused_and_the_right_ones_stay_unsaid(change):
    words = fingerprint(_PUBLIC).split()
    with pytest.raises(InputError) as caught:
        require_fingerprint(_PUBLIC, " ".join(change(words)))
    assert caught.value.code == 2012
    assert caught.value.expected is None


_PUBLIC = Identity.generate("hospital-a").public


class AskedError(Exception):
    pass


def _ask():
    raise AskedError


def _private(data):
    import tempfile
    from pathlib import Path

    handle, name = tempfile.mkstemp(suffix=".key")
    os.write(handle, data)
    os.close(handle)
    return Path(name)


def test_a_key_file_holding_other_keys_than_it_names_is_refused(tmp_path):
    identity = Identity.generate("hospital-a")
    path = tmp_path / "hospital-a.key"
    path.write_bytes(lock(identity.public, Secret(b"s" * 64), "p").canonical())
    path.chmod(0o600)
    with pytest.raises(InputError) as caught:
        Identity.load(path, "p")
    assert caught.value.code == 2011
    assert isinstance(lock(identity.public, Secret(b"s"), "p"), KeyFile)


def test_a_guess_at_a_passphrase_costs_128_mebibytes():
    """The cost that files are written with; tests lower it, so the source is asked."""
    import importlib.resources

    source = importlib.resources.files("cloister.party").joinpath("_keyfile.py").read_text(encoding="utf-8")
    assert "\n_COST = 1 << 17 " in source
