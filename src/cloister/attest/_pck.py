"""The Intel extension of a PCK certificate: which platform, at which security versions.

Source: Intel SGX PCK Certificate and Certificate Revocation List Profile Specification, section 1.3.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509

from cloister.errors import AttestationError

__all__ = ["SGX_EXTENSION", "Platform", "parse_platform"]

_SGX = "1.2.840.113741.1.13.1"
SGX_EXTENSION = x509.ObjectIdentifier(_SGX)
_SEQUENCE, _OID, _OCTETS, _INTEGER, _BOOLEAN, _ENUMERATED = 0x30, 0x06, 0x04, 0x02, 0x01, 0x0A
_SGX_TYPES = {0: "standard", 1: "scalable", 2: "scalable-with-integrity"}


@dataclass(frozen=True, slots=True)
class Platform:
    """What the vendor certified about the platform; the last four only for multi-package platforms."""

    ppid: bytes
    cpu_svn: tuple[int, ...]
    pce_svn: int
    pce_id: bytes
    fmspc: bytes
    sgx_type: str
    instance_id: bytes | None
    dynamic: bool | None
    cached_keys: bool | None
    smt: bool | None


@lru_cache(maxsize=256)
def parse_platform(extension: bytes) -> Platform:
    """The platform that the extension describes.

    Raises:
        AttestationError: 4110 when it is not the structure that the profile prescribes.
    """
    try:
        return _platform(_fields(extension, _SGX))
    except (KeyError, IndexError, ValueError) as error:
        raise AttestationError(4110, f"the PCK certificate's SGX extension is malformed: {error}") from None


def _platform(fields: dict[str, tuple[int, bytes]]) -> Platform:
    tcb = _fields(_typed(fields, f"{_SGX}.2", _SEQUENCE), f"{_SGX}.2", wrapped=False)
    components = tuple(_integer(tcb, f"{_SGX}.2.{i}", 0xFF) for i in range(1, 17))
    sgx_type = int.from_bytes(_typed(fields, f"{_SGX}.5", _ENUMERATED), "big")
    configuration: dict[str, tuple[int, bytes]] = {}
    if f"{_SGX}.7" in fields:
        configuration = _fields(_typed(fields, f"{_SGX}.7", _SEQUENCE), f"{_SGX}.7", wrapped=False)
    return Platform(
        ppid=_octets(fields, f"{_SGX}.1", 16),
        cpu_svn=components,
        pce_svn=_integer(tcb, f"{_SGX}.2.17", 0xFFFF),
        pce_id=_octets(fields, f"{_SGX}.3", 2),
        fmspc=_octets(fields, f"{_SGX}.4", 6),
        sgx_type=_SGX_TYPES.get(sgx_type, f"unknown-{sgx_type}"),
        instance_id=_octets(fields, f"{_SGX}.6", 16) if f"{_SGX}.6" in fields else None,
        dynamic=_boolean(configuration, f"{_SGX}.7.1"),
        cached_keys=_boolean(configuration, f"{_SGX}.7.2"),
        smt=_boolean(configuration, f"{_SGX}.7.3"),
    )


# ---- just enough DER ---------------------------------------------------------------------------------------------


def _element(data: bytes, at: int) -> tuple[int, bytes, int]:
    """Tag, value and the offset behind the element at ``at``."""
    tag, length = data[at], data[at + 1]
    start = at + 2
    if length & 0x80:
        count = length & 0x7F
        if not 1 <= count <= 2:
            raise ValueError("length")
        length = int.from_bytes(data[start : start + count], "big")
        if length < 0x80 or (count == 2 and length < 0x100):
            raise ValueError("length is not minimal")
        start += count
    if start + length > len(data):
        raise ValueError("cut short")
    return tag, data[start : start + length], start + length


def _fields(data: bytes, below: str, *, wrapped: bool = True) -> dict[str, tuple[int, bytes]]:
    """``SEQUENCE OF SEQUENCE { OBJECT IDENTIFIER, ANY }`` as a map."""
    if wrapped:
        tag, body, end = _element(data, 0)
        if tag != _SEQUENCE or end != len(data):
            raise ValueError("not one sequence")
    else:
        body = data
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while at < len(body):
        tag, pair, at = _element(body, at)
        oid_tag, oid, middle = _element(pair, 0)
        value_tag, value, end = _element(pair, middle)
        name = _dotted(oid)
        if tag != _SEQUENCE or oid_tag != _OID or end != len(pair) or name in found or not name.startswith(f"{below}."):
            raise ValueError(f"entry {name}")
        found[name] = (value_tag, value)
    return found


def _dotted(oid: bytes) -> str:
    numbers: list[int] = []
    value = 0
    for byte in oid[1:]:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(value)
            value = 0
    return ".".join(str(number) for number in (*divmod(oid[0], 40), *numbers))


def _typed(fields: dict[str, tuple[int, bytes]], oid: str, tag: int) -> bytes:
    found, value = fields[oid]
    if found != tag or not value:
        raise ValueError(f"type of {oid}")
    return value


def _octets(fields: dict[str, tuple[int, bytes]], oid: str, size_bytes: int) -> bytes:
    value = _typed(fields, oid, _OCTETS)
    if len(value) != size_bytes:
        raise ValueError(f"size of {oid}")
    return value


def _integer(fields: dict[str, tuple[int, bytes]], oid: str, most: int) -> int:
    value = int.from_bytes(_typed(fields, oid, _INTEGER), "big", signed=True)
    if not 0 <= value <= most:
        raise ValueError(f"range of {oid}")
    return value


def _boolean(fields: dict[str, tuple[int, bytes]], oid: str) -> bool | None:
    return _typed(fields, oid, _BOOLEAN) != b"\0" if oid in fields else None
