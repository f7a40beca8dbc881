"""ChaCha20 in Triton: bit for bit what ``cryptography`` gives, at both counters' ends."""

import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ringworld import GPU

from cloister.ring import MaskKey, expand
from cloister.ring._chacha import chacha_words
from cloister.wire import Secret

DEVICE = "cuda" if GPU else "cpu"
FEW = settings(max_examples=10)  # the interpreter is slow
NONCES = st.integers(0, 2**64 - 1) | st.sampled_from((0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1))


def twin(key: bytes, nonce: int, count: int, first: int = 0) -> torch.Tensor:
    """Block by block: ``cryptography`` itself counts to 2^32 only, and refuses to go on."""
    stream = bytearray()
    for block in range(first, first + -(-count // 16)):
        start = block.to_bytes(8, "little") + nonce.to_bytes(8, "little")
        stream += Cipher(algorithms.ChaCha20(key, start), mode=None).encryptor().update(bytes(64))
    return torch.frombuffer(stream, dtype=torch.int32)[:count] if count else torch.empty(0, dtype=torch.int32)


def words(key: bytes, nonce: int, count: int, first: int = 0) -> torch.Tensor:
    return chacha_words(Secret(key), nonce, count, device=DEVICE, first=first).cpu()


def test_the_published_keystream_of_a_zero_key() -> None:
    """RFC 8439, appendix A.1, test vectors 1 and 2: blocks 0 and 1 of key and nonce zero."""
    blocks = words(bytes(32), 0, 32).numpy().tobytes().hex()
    assert blocks.startswith("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")
    assert blocks[128:].startswith("9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed")


@FEW
@given(st.binary(min_size=32, max_size=32), NONCES, st.integers(0, 100))
def test_words_are_those_of_the_cpu(key: bytes, nonce: int, count: int) -> None:
    found = words(key, nonce, count)
    assert found.dtype == torch.int32
    assert torch.equal(found, twin(key, nonce, count))


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 16 * 128 - 1, 16 * 128, 16 * 128 + 1, 16 * 300])
def test_any_number_of_words(count: int) -> None:
    key = bytes(range(32))
    assert torch.equal(words(key, 7, count), twin(key, 7, count))


@pytest.mark.parametrize("first", [1, 2**31 - 2, 2**31, 2**32 - 2, 2**32 - 1, 2**32, 3 * 2**32 - 1, 2**63 - 4])
def test_the_block_counter_has_64_bits(first: int) -> None:
    key = bytes(range(32))
    assert torch.equal(words(key, 2**63 + 5, 64, first), twin(key, 2**63 + 5, 64, first))


def test_it_is_what_masks_expand_to() -> None:
    key = MaskKey("x", Secret(bytes(range(32))), cipher="chacha20")
    assert torch.equal(expand(key, 11, (3, 5, 7)).flatten(), words(bytes(range(32)), 11, 105))
