"""Masks and rounding bytes: published keystreams, counters that never repeat, the same words made ahead or not."""

import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from cloister.errors import InputError, InternalError
from cloister.ring import MaskId, MaskKey, MaskSource, RoundingState, RoundingStream, StreamAhead, expand
from cloister.ring import _keystream as keystream_module
from cloister.wire import Secret

KEY = bytes(range(32))
CIPHERS: Any = ["aes-256-ctr", "chacha20"]
COUNTERS = [0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1]


def octets(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes()


def key(cipher: Any = "aes-256-ctr", secret: bytes = KEY) -> MaskKey:
    return MaskKey("x", Secret(secret), cipher=cipher)


def aes_blocks(secret: bytes, counter: int, size: int) -> bytes:
    """Counter mode by its definition (NIST SP 800-38A, 6.5): each counter block is encrypted by itself."""
    block = Cipher(algorithms.AES(secret), modes.ECB()).encryptor()  # noqa: S305
    counters = (counter.to_bytes(8, "big") + i.to_bytes(8, "big") for i in range(-(-size // 16)))
    return block.update(b"".join(counters))[:size]


def chacha_blocks(secret: bytes, counter: int, size: int) -> bytes:
    """ChaCha20's block function as RFC 8439, 2.3 states it, with Bernstein's 64-bit block counter and nonce."""

    def block(index: int) -> bytes:
        start = np.frombuffer(
            b"expand 32-byte k" + secret + index.to_bytes(8, "little") + counter.to_bytes(8, "little"), "<u4"
        )
        words = [int(word) for word in start]

        def add(a: int, b: int, c: int, by: int) -> None:
            words[a] = (words[a] + words[b]) & 0xFFFFFFFF
            mixed = words[c] ^ words[a]
            words[c] = ((mixed << by) | (mixed >> (32 - by))) & 0xFFFFFFFF

        rounds = [(i, i + 4, i + 8, i + 12) for i in range(4)]
        rounds += [(0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]
        for a, b, c, d in rounds * 10:
            add(a, b, d, 16)
            add(c, d, b, 12)
            add(a, b, d, 8)
            add(c, d, b, 7)
        return ((np.array(words, np.uint64) + start) & 0xFFFFFFFF).astype("<u4").tobytes()

    return b"".join(block(i) for i in range(-(-size // 64)))[:size]


@pytest.mark.parametrize("counter", COUNTERS)
@pytest.mark.parametrize("count", [0, 1, 4, 17, 300])
def test_aes_words_are_the_encrypted_counters(counter: int, count: int) -> None:
    assert octets(expand(key(), counter, (count,))) == aes_blocks(KEY, counter, 4 * count)


@pytest.mark.parametrize("counter", COUNTERS)
@pytest.mark.parametrize("count", [0, 1, 16, 17, 300])
def test_chacha_words_are_its_blocks(counter: int, count: int) -> None:
    assert octets(expand(key("chacha20"), counter, (count,))) == chacha_blocks(KEY, counter, 4 * count)


def test_published_vectors() -> None:
    """RFC 8439, A.1, vector 1; draft-agl-tls-chacha20poly1305-04, section 7, two with a nonce; FIPS 197, C.3."""
    zero = bytes(32)
    published = {
        (zero, 0): "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586",
        (zero, 1 << 56): "de9cba7bf3d69ef5e786dc63973f653a0b49e015adbff7134fcb7df137821031"
        "e85a050278a7084527214f73efc7fa5b5277062eb7a0433e445f41e3",
        (zero, 1): "ef3fdfd6c61578fbf5cf35bd3dd33b8009631634d21e42ac33960bd138e50d32"
        "111e4caf237ee53ca8ad6426194a88545ddc497a0b466e7d6bbdb0041b2f586b",
    }
    for (secret, counter), stream in published.items():
        expected = bytes.fromhex(stream)
        assert octets(expand(key("chacha20", secret), counter, (16,)))[: len(expected)] == expected
    block = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor()  # noqa: S305  the reference itself
    plain = bytes.fromhex("00112233445566778899aabbccddeeff")
    assert block.update(plain).hex() == "8ea2b7ca516745bfeafc49904b496089"


@pytest.mark.parametrize("cipher", CIPHERS)
def test_long_keystreams_go_on_across_the_pieces_they_are_made_in(cipher: Any) -> None:
    count = (1 << 18) // 4 * 2 + 5  # two pieces and a rest
    found = octets(expand(key(cipher), 3, (count,)))
    stream = {
        "aes-256-ctr": Cipher(algorithms.AES(KEY), modes.CTR((3).to_bytes(8, "big") + bytes(8))),
        "chacha20": Cipher(algorithms.ChaCha20(KEY, bytes(8) + (3).to_bytes(8, "little")), None),
    }[cipher]
    assert found == stream.encryptor().update(bytes(4 * count))


def test_words_are_little_endian_signed_and_of_the_shape() -> None:
    words = expand(key(), 9, (2, 3))
    assert (words.dtype, tuple(words.shape)) == (torch.int32, (2, 3))
    assert words.reshape(-1).tolist() == np.frombuffer(aes_blocks(KEY, 9, 24), "<i4").tolist()
    assert expand(key(), 9, ()).item() == words[0, 0]
    assert expand(key(), 9, (0, 4)).shape == (0, 4)


@pytest.mark.parametrize("cipher", CIPHERS)
def test_who_is_dealt_the_key_has_the_same_words(cipher: Any) -> None:
    source = MaskSource("x", cipher=cipher)
    dealt = MaskKey("x", source.key.reveal(), cipher=cipher)
    for shape in ((3,), (2, 5), (1, 1, 7)):
        mask = source.next(shape)
        assert torch.equal(mask.words, expand(dealt, mask.id.counter, shape))


def test_every_source_has_its_own_key() -> None:
    sources = [MaskSource("x") for _ in range(20)]
    assert len({octets(source.next((4,)).words) for source in sources}) == 20
    assert len({octets(RoundingStream().next(16)) for _ in range(20)}) == 20


def test_counters_go_up_by_one_and_words_never_repeat() -> None:
    source = MaskSource("w")
    masks = [source.next((4,)) for _ in range(200)]
    assert [mask.id for mask in masks] == [MaskId("w", counter) for counter in range(200)]
    assert len({octets(mask.words) for mask in masks}) == 200


def test_every_bit_of_a_mask_is_fair() -> None:
    count = 1 << 16
    for cipher in CIPHERS:
        words = MaskSource("x", cipher=cipher).next((count,)).words.numpy().view(np.uint32)
        ones = ((words[:, None] >> np.arange(32, dtype=np.uint32)) & 1).sum(axis=0).astype(np.int64)
        assert (abs(ones - count // 2) < 8 * count**0.5 / 2).all()  # eight standard deviations


SIZES = [3, 70, 5, 0, 9, 1000]


@pytest.mark.parametrize(
    "ahead",
    [SIZES, [9, 9, 9, 9, 9, 9], [1, 1], [2000] * 9, [0] * 6, [3, 70, 6, 1, 9, 999]],
    ids=["right", "wrong", "few and short", "many and long", "empty", "nearly right"],
)
def test_what_was_made_ahead_changes_no_word(ahead: list[int]) -> None:
    source = MaskSource("x", dangerous_key=key())
    source.prefetch(*ahead)
    for counter, size in enumerate(SIZES):
        mask = source.next((size,))
        assert mask.id.counter == counter
        assert octets(mask.words) == aes_blocks(KEY, counter, 4 * size)
    source.prefetch(4)
    assert octets(source.next((4,)).words) == aes_blocks(KEY, len(SIZES), 16)


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keystream_module, "_AHEAD_BYTES", 100)
    source = MaskSource("x", dangerous_key=key())
    source.prefetch(*[10] * 50)
    assert len(source._stream._ahead) == 2
    assert octets(source.next((10,)).words) == aes_blocks(KEY, 0, 40)


def test_sources_that_share_a_bound_wait_within_it_together() -> None:
    ahead = StreamAhead(100)
    first, second = MaskSource("x", ahead=ahead), MaskSource("y", ahead=ahead, dangerous_key=key())
    rounding = RoundingStream(ahead=ahead)
    first.prefetch(10)
    rounding.prefetch(30)
    second.prefetch(8, 8)
    assert (ahead.used_bytes, len(second._stream._ahead)) == (40 + 30, 0)
    first.next((10,))
    second.prefetch(8, 8)
    assert (ahead.used_bytes, len(second._stream._ahead)) == (30 + 64, 2)
    first.prefetch(1)
    first.prefetch(2)  # in the place of the other
    assert ahead.used_bytes == 30 + 64 + 4
    for source in (first, rounding, second):
        source.forget()
    assert ahead.used_bytes == 0
    assert octets(second.next((5,)).words) == aes_blocks(KEY, 0, 20)


def test_threads_get_different_masks() -> None:
    source, drawn = MaskSource("x"), []
    source.prefetch(*[4] * 50)

    def draw() -> None:
        drawn.extend(source.next((4,)) for _ in range(100))

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {mask.id.counter for mask in drawn} == set(range(400))
    assert len({octets(mask.words) for mask in drawn}) == 400


@pytest.mark.parametrize("ahead", [(), (1, 1, 1, 1)])
def test_the_counter_never_wraps(ahead: tuple[int, ...]) -> None:
    stream = RoundingStream(RoundingState(KEY.hex(), 2**64 - 2))
    stream.prefetch(*ahead)
    assert octets(stream.next(16)) == aes_blocks(KEY, 2**64 - 2, 16)
    assert octets(stream.next(16)) == aes_blocks(KEY, 2**64 - 1, 16)
    for _ in range(2):
        with pytest.raises(InternalError) as caught:
            stream.next(16)
        assert caught.value.code == 9701


@pytest.mark.parametrize(
    ("key_bytes", "cipher"), [(31, "aes-256-ctr"), (33, "aes-256-ctr"), (16, "aes-256-ctr"), (32, "aes-128-ctr")]
)
def test_another_key_or_cipher_is_refused(key_bytes: int, cipher: Any) -> None:
    with pytest.raises(InputError) as caught:
        MaskKey("x", Secret(bytes(key_bytes)), cipher=cipher)
    assert caught.value.code == 2704


@pytest.mark.parametrize("counter", [-1, 2**64])
def test_a_counter_has_64_bits(counter: int) -> None:
    for act in (
        lambda: expand(key(), counter, (1,)),
        lambda: RoundingStream(RoundingState(KEY.hex(), counter)),
    ):
        with pytest.raises(InputError) as caught:
            act()
        assert caught.value.code == 2704


@pytest.mark.parametrize("text", ["", "00" * 31, "00" * 33, "zz" * 32])
def test_a_state_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        RoundingStream(RoundingState(text, 0))
    assert caught.value.code == 2704


def test_a_seed_fixes_the_rounding() -> None:
    torch.manual_seed(5)
    first = RoundingStream.seeded()
    torch.manual_seed(5)
    second = RoundingStream.seeded()
    third = RoundingStream.seeded(torch.Generator().manual_seed(6))
    drawn = [[octets(stream.next(size)) for size in (5, 100, 1)] for stream in (first, second, third)]
    assert drawn[0] == drawn[1]
    assert not {*drawn[0][:2]} & {*drawn[2][:2]}


@pytest.mark.parametrize("ahead", [(), (50, 50, 50)])
def test_a_saved_state_goes_on_where_it_was(ahead: tuple[int, ...]) -> None:
    stream = RoundingStream.seeded(torch.Generator().manual_seed(1))
    stream.next(10)
    stream.prefetch(*ahead)
    stream.next(10)
    saved = stream.state
    assert saved.counter == 2
    again = RoundingStream(RoundingState(*saved))
    assert [octets(stream.next(50)) for _ in range(5)] == [octets(again.next(50)) for _ in range(5)]
    assert again.state == stream.state


def test_rounding_takes_nothing_from_the_masks() -> None:
    generator = torch.Generator().manual_seed(1)
    RoundingStream.seeded(generator)
    masks = {octets(MaskSource(role).next((8,)).words) for role in ("x", "w", "rounding") for _ in range(2)}
    torch.manual_seed(1)
    seeded = octets(RoundingStream.seeded(torch.Generator().manual_seed(1)).next(32))
    assert seeded not in masks
    assert len(masks) == 6


FORKED = """
import os, sys
import torch
from cloister.errors import InternalError
from cloister.ring import MaskLedger, MaskSource, RoundingStream

source, rounding, ledger = MaskSource("x"), RoundingStream(), MaskLedger()
mask = source.next((3,))
source.prefetch(3)
acts = [
    lambda: source.next((3,)),
    lambda: source.prefetch(3),
    lambda: rounding.next(3),
    lambda: ledger.bind(mask, torch.zeros(3, dtype=torch.int8), {"a": 1}),
    lambda: ledger.deal("x", "a"),
]
def refused():
    for act in acts:
        try:
            act()
        except InternalError as error:
            if error.code == 9701 and "fork" in str(error):
                continue
        return 1
    return 0
child = os.fork()
if child == 0:
    grandchild = os.fork()  # which may get a process number that was used before
    if grandchild == 0:
        os._exit(refused())
    os._exit(refused() or os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
source.next((3,))
sys.exit(status)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_fork_gets_no_mask() -> None:
    made = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], timeout=100, capture_output=True, check=False)
    assert made.returncode == 0, made.stderr.decode()


def test_a_source_moves_to_another_device_before_its_first_mask_only() -> None:
    source = MaskSource("x")
    moved = source.on("cuda:1")
    assert (moved.key.cipher, moved.key.reveal().reveal()) == ("chacha20", source.key.reveal().reveal())
    assert moved.on("cpu").key.cipher == "aes-256-ctr"
    for used in (source, moved):
        with pytest.raises(InternalError) as caught:
            used.next((1,))
        assert caught.value.code == 9701
    fresh = MaskSource("x")
    fresh.next((3,))
    with pytest.raises(InternalError) as caught:
        fresh.on("cuda")
    assert caught.value.code == 9701
