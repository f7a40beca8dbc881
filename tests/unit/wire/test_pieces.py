"""A long secret in pieces: read back as it was written, and not otherwise."""

import io
import secrets

import pytest

from cloister.wire import Pieces, PieceWriter, Secret, _pieces, sealed_length

KEY = Secret(b"k" * 32)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(_pieces, "PIECE_BYTES", 64)


def pieces(**change):
    return Pieces(**{"key": KEY, "salt": b"s" * 32, "label": b"test", "head": b"head", **change})


def sealed(plain, **change):
    file = io.BytesIO()
    writer = PieceWriter(file.write, pieces(**change))
    for at in range(0, len(plain), 37):
        assert writer.write(plain[at : at + 37]) == len(plain[at : at + 37])
    writer.finish()
    return file.getvalue()


def opened(raw, **change):
    plain = io.BytesIO()
    pieces(**change).open(io.BytesIO(raw).read, plain.write, size_bytes=len(raw))
    return plain.getvalue()


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 128, 1000])
def test_what_was_written_is_read_and_its_length_is_known_before(size):
    plain = secrets.token_bytes(size)
    raw = sealed(plain)
    assert opened(raw) == plain
    assert len(raw) == sealed_length(size)


def test_everything_that_it_is_bound_to_counts():
    raw = sealed(b"x" * 200)
    for change in ({"key": Secret(b"K" * 32)}, {"salt": b"S" * 32}, {"label": b"other"}, {"head": b"Head"}):
        with pytest.raises(ValueError, match="piece 0"):
            opened(raw, **change)


def test_two_files_share_no_ciphertext():
    assert sealed(b"x" * 64)[:64] != sealed(b"x" * 64, salt=b"S" * 32)[:64]


def test_no_piece_is_dropped_moved_repeated_or_cut_off():
    raw, size = sealed(b"x" * 200), 64 + 16
    parts = [raw[at : at + size] for at in range(0, len(raw), size)]
    assert len(parts) == 4
    wrong = (
        parts[:-1],
        parts[1:],
        [parts[1], parts[0], *parts[2:]],
        [*parts, parts[-1]],
        [*parts[:-1], parts[-1][:-1]],
        [],
    )
    for each in wrong:
        with pytest.raises(ValueError, match="not as it was sealed"):
            opened(b"".join(each))


def test_a_source_that_ends_early_is_no_end():
    raw = sealed(b"x" * 200)
    with pytest.raises(ValueError, match="not as it was sealed"):
        pieces().open(io.BytesIO(raw[:160]).read, lambda _: None, size_bytes=len(raw))
