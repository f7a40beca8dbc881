"""The parser of quotes: every length, every trailing byte, every kind that is not ours is refused by name."""

import struct
from collections.abc import Callable
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister import attest
from cloister.attest._quote import parse_quote
from cloister.errors import AttestationError, CloisterError


@pytest.fixture(scope="module", params=["tdx4", "tdx5", "sgx3"])
def quote(request: pytest.FixtureRequest, site: attest.SimulatedSite) -> bytes:
    tee: attest.EvidenceType = "sgx" if request.param == "sgx3" else "tdx"
    knobs = attest.TdKnobs(version=5 if request.param == "tdx5" else 4)
    made = site.attester(bytes(32 if tee == "sgx" else 48), tee=tee, td=knobs, attach_collateral=False)
    return made.attest(bytes(64)).quote


def _code(data: bytes) -> int | None:
    try:
        parse_quote(data)
    except AttestationError as error:
        return error.code
    return None


def test_a_quote_cut_short_at_any_length_is_refused_by_name(quote: bytes) -> None:
    assert {_code(quote[:length]) for length in range(len(quote))} == {4101}


def test_zero_bytes_after_a_quote_are_padding_and_are_counted(quote: bytes) -> None:
    assert parse_quote(quote).padding_bytes == 0
    assert parse_quote(quote + bytes(3065)).padding_bytes == 3065


@pytest.mark.parametrize("tail", [b"\x01", b"\0\0\x01", b"\x01\0\0", b"x" * 100])
def test_any_other_trailing_byte_is_refused(quote: bytes, tail: bytes) -> None:
    assert _code(quote + tail) == 4104


def test_an_oversized_quote_is_refused_before_it_is_read(quote: bytes) -> None:
    assert _code(quote.ljust(attest.MAX_QUOTE_BYTES, b"\0")) is None
    assert _code(quote.ljust(attest.MAX_QUOTE_BYTES + 1, b"\0")) == 4103


@pytest.mark.parametrize(
    ("offset", "layout", "value", "what"),
    [
        (0, "<H", 2, "version"),
        (0, "<H", 6, "version"),
        (2, "<H", 3, "P-384 key"),
        (4, "<I", 0x82, "TEE"),
        (12, "<H", 0, "vendor"),
    ],
)
def test_a_header_of_another_kind_is_refused(quote: bytes, offset: int, layout: str, value: int, what: str) -> None:
    data = bytearray(quote)
    struct.pack_into(layout, data, offset, value)
    assert _code(bytes(data)) == 4102, what


@pytest.mark.parametrize("body_type", [0, 1, 4, 9])
def test_a_v5_td_quote_with_another_body_type_is_refused(site: attest.SimulatedSite, body_type: int) -> None:
    made = site.attester(bytes(48), td=attest.TdKnobs(version=5), attach_collateral=False)
    data = bytearray(made.attest(bytes(64)).quote)
    struct.pack_into("<H", data, 48, body_type)
    assert _code(bytes(data)) == 4102


def test_a_v5_body_size_that_is_not_its_types_is_refused(site: attest.SimulatedSite) -> None:
    made = site.attester(bytes(48), td=attest.TdKnobs(version=5), attach_collateral=False)
    data = bytearray(made.attest(bytes(64)).quote)
    struct.pack_into("<I", data, 50, 584)
    assert _code(bytes(data)) == 4101


def test_signature_data_longer_than_its_parts_is_refused(site: attest.SimulatedSite) -> None:
    made = site.attester(bytes(32), tee="sgx", attach_collateral=False)
    data = bytearray(made.attest(bytes(64)).quote)
    (size,) = struct.unpack_from("<I", data, 432)
    struct.pack_into("<I", data, 432, size + 1)
    assert _code(bytes(data) + b"\0") == 4101


def test_v4_certification_data_of_another_type_is_refused(site: attest.SimulatedSite) -> None:
    data = bytearray(site.attester(bytes(48), attach_collateral=False).attest(bytes(64)).quote)
    struct.pack_into("<H", data, 632 + 4 + 128, 5)
    assert _code(bytes(data)) == 4102


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=2000), st.sampled_from([b"", b"\x03\0\x02\0", b"\x04\0\x02\0\x81\0\0\0", b"\x05\0\x02\0"]))
def test_random_bytes_raise_nothing_but_our_errors(data: bytes, start: bytes) -> None:
    with pytest.raises(AttestationError):
        parse_quote(start + data)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_quote_with_any_piece_replaced_is_refused_with_a_verdict(
    judge: Callable[..., attest.Verdict],
    site: attest.SimulatedSite,
    roots: attest.TrustRoots,
    at: datetime,
    data: st.DataObject,
) -> None:
    evidence = site.attester(bytes(48), clock=lambda: at).attest(bytes(64))
    quote = bytearray(evidence.quote)
    start = data.draw(st.integers(0, len(quote) - 1))
    piece = data.draw(st.binary(min_size=1, max_size=min(64, len(quote) - start)))
    quote[start : start + len(piece)] = piece
    changed = attest.Evidence(type="tdx", quote=bytes(quote), collateral=evidence.collateral)
    verdict = attest.appraise(changed, None, attest.DANGEROUS_DEVELOPMENT_POLICY, at, roots=roots)
    if bytes(quote) == evidence.quote:
        verdict.require()
    else:
        with pytest.raises(CloisterError):
            verdict.require()
