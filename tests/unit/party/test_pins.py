"""A pinned name never changes its keys; a pinned key never changes its name."""

import pytest

from cloister.errors import InputError, IntegrityError, RefusedError
from cloister.party import Identity, Pins, fingerprint, home_folder


@pytest.fixture
def pins(tmp_path):
    return Pins(tmp_path)


def _pin(pins, public):
    return pins.pin(public, words=fingerprint(public))


def test_a_pinned_identity_is_found_again(pins):
    public = Identity.generate("hospital-b").public
    assert _pin(pins, public)
    assert pins.get("hospital-b") == public
    assert list(pins.all()) == ["hospital-b"]


def test_pinning_the_same_again_changes_nothing(pins):
    public = Identity.generate("hospital-b").public
    _pin(pins, public)
    assert not _pin(pins, public)


def test_nothing_is_pinned_without_the_words(pins):
    with pytest.raises(InputError) as caught:
        pins.pin(Identity.generate("hospital-b").public, words="abandon " * 8)
    assert caught.value.code == 2012
    assert pins.all() == {}


def test_a_pinned_name_does_not_change_its_keys_even_with_the_words(pins):
    _pin(pins, Identity.generate("hospital-b").public)
    with pytest.raises(RefusedError) as caught:
        _pin(pins, Identity.generate("hospital-b").public)
    assert caught.value.code == 3001


def test_one_key_is_not_pinned_under_two_names(pins):
    first = Identity.generate("hospital-b")
    _pin(pins, first.public)
    with pytest.raises(RefusedError) as caught:
        _pin(pins, Identity("hospital-c", first.signing_key, first.opening_key).public)
    assert caught.value.code == 3002


def test_an_identity_not_signed_by_itself_is_not_pinned(pins):
    forged = Identity.generate("b").public.model_copy(update={"hpke": Identity.generate("c").public.hpke})
    with pytest.raises(IntegrityError) as caught:
        _pin(pins, forged)
    assert caught.value.code == 5001


def test_who_is_not_pinned_is_not_found(pins):
    with pytest.raises(InputError) as caught:
        pins.get("hospital-b")
    assert caught.value.code == 2013


def test_a_pin_renamed_on_disk_is_noticed(pins):
    _pin(pins, Identity.generate("hospital-b").public)
    (pins.folder / "hospital-b.pub").rename(pins.folder / "hospital-a.pub")
    with pytest.raises(InputError) as caught:
        pins.all()
    assert caught.value.code == 2005


def test_the_home_folder_is_the_flag_then_the_variable_then_the_user_s(monkeypatch, tmp_path):
    monkeypatch.setenv("CLOISTER_HOME", str(tmp_path / "variable"))
    assert home_folder(tmp_path / "flag") == tmp_path / "flag"
    assert home_folder() == tmp_path / "variable"
    monkeypatch.delenv("CLOISTER_HOME")
    assert home_folder().name == "cloister"
