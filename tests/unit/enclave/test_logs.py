import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.enclave import MAX_LOG_BYTES, SealedLog, open_log, seal_log
from cloister.errors import InputError, IntegrityError
from cloister.wire import Envelope, OpeningKey, SigningKey, parse_message, sign_envelope

SESSION = SigningKey.generate()
READERS = {name: OpeningKey.generate(post_quantum=False) for name in ("ann", "bob")}
ATTEMPT = "a" * 64


def sealed(text=b"line", attempt=ATTEMPT):
    return seal_log(text, readers={n: k.public for n, k in READERS.items()}, attempt=attempt, key=SESSION)


def opened(envelope, party="ann", **options):
    given = {"key": READERS[party], "session": SESSION.public, "attempt": ATTEMPT, **options}
    return open_log(envelope, party=party, **given)


@given(st.binary(max_size=500))
@settings(max_examples=25)
def test_each_reader_reads_what_was_written(text):
    assert {opened(sealed(text), party) for party in READERS} == {text}


def test_only_the_end_of_a_long_log_is_kept():
    text = b"x" * MAX_LOG_BYTES + b"end"
    assert opened(sealed(text)) == text[-MAX_LOG_BYTES:]


def test_the_length_says_nothing():
    assert len({len(sealed(text).payload) for text in (b"", b"x", b"x" * MAX_LOG_BYTES)}) == 1


def test_it_travels_as_json():
    assert opened(parse_message(Envelope, sealed().canonical(), what="log")) == b"line"


def test_a_party_that_is_no_reader_is_told_so():
    with pytest.raises(InputError) as caught:
        open_log(sealed(), party="eve", key=READERS["ann"], session=SESSION.public, attempt=ATTEMPT)
    assert caught.value.code == 2502


def test_another_readers_key_does_not_open_it():
    with pytest.raises(IntegrityError) as caught:
        opened(sealed(), key=READERS["bob"])
    assert caught.value.code == 5002


def test_the_log_of_another_attempt_is_refused():
    with pytest.raises(IntegrityError) as caught:
        opened(sealed(attempt="b" * 64))
    assert caught.value.code == 5506


def test_a_log_that_another_key_signed_is_refused():
    with pytest.raises(IntegrityError) as caught:
        opened(sealed(), session=SigningKey.generate().public)
    assert caught.value.code == 5001


def test_readers_cannot_be_exchanged():
    value = SealedLog.model_validate_json(sealed().payload)
    swapped = value.model_copy(update={"readers": {"ann": value.readers["bob"], "bob": value.readers["ann"]}})
    with pytest.raises(IntegrityError) as caught:
        opened(sign_envelope("cloister/log/v1", swapped.as_json(), SESSION), key=READERS["bob"])
    assert caught.value.code == 5002


def test_a_changed_box_is_refused():
    value = SealedLog.model_validate_json(sealed().payload)
    changed = value.model_copy(update={"sealed": bytes([value.sealed[0] ^ 1]) + value.sealed[1:]})
    with pytest.raises(IntegrityError) as caught:
        opened(sign_envelope("cloister/log/v1", changed.as_json(), SESSION))
    assert caught.value.code == 5002
