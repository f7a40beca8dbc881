"""The wide XTS against OpenSSL's, sector by sector."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.seal._xts import Xts
from cloister.wire import Secret

SECTOR = 4096


def reference(key: bytes, sector: int, plain: bytes) -> bytes:
    iv = (sector * 8).to_bytes(16, "little")  # plain64 counts 512-byte units
    return Cipher(algorithms.AES(key), modes.XTS(iv)).encryptor().update(plain)


def as_sectors(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint64).reshape(-1, SECTOR // 8)


@settings(max_examples=40, deadline=None)
@given(
    key=st.binary(min_size=64, max_size=64).filter(lambda key: key[:32] != key[32:]),
    first=st.integers(0, 2**36),
    count=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_sector_is_what_openssl_makes_of_it(key: bytes, first: int, count: int, seed: int) -> None:
    plain = np.random.default_rng(seed).bytes(count * SECTOR)
    cipher = np.zeros((count, SECTOR // 8), np.uint64)
    Xts(Secret(key), capacity=count)(as_sectors(plain), cipher, first_sector=first)
    for index in range(count):
        sector = slice(index * SECTOR, (index + 1) * SECTOR)
        assert cipher.tobytes()[sector] == reference(key, first + index, plain[sector])


@settings(max_examples=20, deadline=None)
@given(first=st.integers(0, 2**36), counts=st.lists(st.integers(1, 16), min_size=1, max_size=4))
def test_decrypting_returns_what_was_encrypted_whatever_the_run_lengths(first: int, counts: list[int]) -> None:
    key = Secret.random(64)
    forward, back = Xts(key, capacity=16), Xts(key, capacity=16, decrypt=True)
    for count in counts:
        plain = as_sectors(np.random.default_rng(count).bytes(count * SECTOR))
        cipher, again = np.zeros_like(plain), np.zeros_like(plain)
        forward(plain, cipher, first_sector=first)
        back(cipher, again, first_sector=first)
        assert (again == plain).all()
        assert (cipher != plain).any()


def test_source_and_target_may_lie_in_wider_rows_and_be_the_same() -> None:
    key = Secret.random(64)
    plain = as_sectors(np.random.default_rng(1).bytes(4 * SECTOR))
    wide = np.zeros((4, SECTOR // 8 + 4), np.uint64)
    wide[:, 4:] = plain
    Xts(key, capacity=4)(wide[:, 4:], wide[:, 4:], first_sector=3)
    expected = b"".join(reference(key.reveal(), 3 + i, plain[i].tobytes()) for i in range(4))
    assert wide[:, 4:].tobytes() == expected
    assert not wide[:, :4].any()


def test_a_short_key_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="64 key bytes"):
        Xts(Secret.random(32), capacity=1)
