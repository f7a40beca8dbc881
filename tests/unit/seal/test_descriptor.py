"""An image's id fixes its shape, not only its root."""

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import CloisterError, InputError, IntegrityError
from cloister.seal import ImageDescriptor, check_image_id
from cloister.seal._descriptor import TRAILER_BYTES, decode_trailer, encode_trailer
from cloister.wire import canonical

FIELDS = {
    "root": "aa" * 32,
    "salt": "bb" * 32,
    "data_blocks": 24,
    "offset": 32768,
    "length": 65536,
    "hash_offset": 98304,
    "header": "cc" * 32,
}
DESCRIPTOR = ImageDescriptor(**FIELDS)


def test_id_is_sha256_of_the_canonical_json() -> None:
    assert DESCRIPTOR.id == hashlib.sha256(canonical(DESCRIPTOR.as_json())).hexdigest()
    assert json.loads(DESCRIPTOR.canonical())["format"] == "cloister-image"


@pytest.mark.parametrize("field", ["root", "salt", "data_blocks", "offset", "length", "hash_offset", "header"])
def test_every_field_changes_the_id(field: str) -> None:
    value = FIELDS[field]
    other = value + 4096 if isinstance(value, int) else "dd" * 32
    assert ImageDescriptor(**{**FIELDS, field: other}).id != DESCRIPTOR.id


def test_size_counts_every_area() -> None:
    assert DESCRIPTOR.size == 98304 + 4096 + 4096 + 4096  # data, superblock, one hash block, descriptor


def test_trailer_returns_the_descriptor_to_who_knows_its_id() -> None:
    block = encode_trailer(DESCRIPTOR)
    assert len(block) == TRAILER_BYTES
    assert decode_trailer(block, image_id=DESCRIPTOR.id) == DESCRIPTOR


def test_trailer_of_another_image_is_refused_without_being_read() -> None:
    with pytest.raises(IntegrityError) as caught:
        decode_trailer(encode_trailer(DESCRIPTOR), image_id="0" * 64)
    assert caught.value.code == 5203


@pytest.mark.parametrize(
    "change",
    [
        {"data_blocks": 25},
        {"hash_offset": 98304 + 4096},
        {"offset": 32769, "length": 65535},
        {"offset": 0},
        {"offset": 1 << 21, "hash_offset": (1 << 21) + 65536, "data_blocks": 528},
        {"length": 0},
        {"data_blocks": 2**36 + 1},
        {"version": 2},
        {"sector_size": 512},
        {"algorithm": "sha1"},
        {"surprise": 1},
    ],
)
def test_an_authentic_descriptor_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    body = canonical({**DESCRIPTOR.as_json(), **change})
    block = (b"cloister-image/1" + len(body).to_bytes(4, "little") + body).ljust(TRAILER_BYTES, b"\0")
    with pytest.raises(IntegrityError) as caught:
        decode_trailer(block, image_id=hashlib.sha256(body).hexdigest())
    assert caught.value.code == 5204


@settings(max_examples=60)
@given(st.binary(max_size=TRAILER_BYTES))
def test_no_bytes_make_the_trailer_raise_anything_else(data: bytes) -> None:
    block = (b"cloister-image/1" + data).ljust(TRAILER_BYTES, b"\0")[:TRAILER_BYTES]
    with pytest.raises(CloisterError):
        decode_trailer(block, image_id=DESCRIPTOR.id)


@settings(max_examples=60)
@given(st.integers(0, TRAILER_BYTES * 8 - 1))
def test_any_flipped_bit_of_the_trailer_is_refused(bit: int) -> None:
    block = bytearray(encode_trailer(DESCRIPTOR))
    block[bit // 8] ^= 1 << bit % 8
    with pytest.raises(IntegrityError) as caught:
        decode_trailer(bytes(block), image_id=DESCRIPTOR.id)
    assert caught.value.code in (5201, 5203, 5210)


@pytest.mark.parametrize("text", ["", "A" * 64, "a" * 63, "a" * 65, "g" * 64, "a" * 64 + "\n"])
def test_an_id_is_64_lower_case_digits(text: str) -> None:
    with pytest.raises(InputError) as caught:
        check_image_id(text)
    assert caught.value.code == 2209
