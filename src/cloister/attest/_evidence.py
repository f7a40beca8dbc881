"""Evidence and collateral as they travel."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from pydantic import AfterValidator, StringConstraints

from cloister.wire import B64, Message, parse_message

__all__ = ["Collateral", "Evidence", "EvidenceType", "parse_collateral", "parse_evidence"]

EvidenceType = Literal["sgx", "tdx"]

MAX_QUOTE_BYTES = 64 * 1024  # a quote is about 5 KB; hosts hand over buffers padded with zeros to 8 or 16 KB
MAX_COLLATERAL_BYTES = 2 * 1024 * 1024  # dominated by the PCK CRL, which grows with each revoked platform
_MAX_CHAIN_CHARS = 32 * 1024
_MAX_DOCUMENT_CHARS = 256 * 1024
_MAX_CRL_CHARS = 1024 * 1024


def _one_case(text: str) -> str:
    if text != text.lower() and text != text.upper():
        raise ValueError("hexadecimal digits in mixed case")
    return text


def _hex(max_chars: int) -> object:
    return StringConstraints(pattern=r"^(?:[0-9a-fA-F]{2})+$", max_length=max_chars)


_Chain = Annotated[str, StringConstraints(min_length=1, max_length=_MAX_CHAIN_CHARS)]
_Document = Annotated[str, StringConstraints(min_length=2, max_length=_MAX_DOCUMENT_CHARS)]
_Crl = Annotated[str, _hex(_MAX_CRL_CHARS), AfterValidator(_one_case)]
_Signature = Annotated[str, _hex(128), StringConstraints(min_length=128), AfterValidator(_one_case)]


class Collateral(Message):
    """What a DCAP verifier needs beside a quote: the JSON of dcap-qvl's ``QuoteCollateralV3``.

    Chains are PEM, CRLs are DER in hexadecimal, signatures are ``r ‖ s`` in hexadecimal. ``tcb_info`` and
    ``qe_identity`` are JSON documents *as strings*: the bytes that Intel signed.
    """

    pck_crl_issuer_chain: _Chain
    root_ca_crl: _Crl
    pck_crl: _Crl
    tcb_info_issuer_chain: _Chain
    tcb_info: _Document
    tcb_info_signature: _Signature
    qe_identity_issuer_chain: _Chain
    qe_identity: _Document
    qe_identity_signature: _Signature
    pck_certificate_chain: _Chain | None = None


class Evidence(Message):
    """What a TEE says about itself, and the collateral to check it with where the sender has it.

    Attributes:
        type: The format of ``quote``, a key of the verifier registry.
        quote: The bytes that the TEE's quoting enclave made.
        collateral: A convenience: a verifier that fetches its own ignores it. It is signed, so its source does not
            matter, except that a sender may pick the oldest that is still in its window.
    """

    type: EvidenceType
    quote: B64
    collateral: Collateral | None = None

    def quote_digest(self) -> str:
        """SHA-256 of the quote alone: the same whatever collateral travels beside it."""
        return hashlib.sha256(self.quote).hexdigest()


def parse_collateral(data: bytes) -> Collateral:
    """Collateral from its JSON bytes.

    Raises:
        InputError: 2003 too large; 2002 not strict JSON; 2005 a field is missing, unknown or not of its encoding.
    """
    return parse_message(Collateral, data, what="collateral", max_bytes=MAX_COLLATERAL_BYTES)


def parse_evidence(data: bytes) -> Evidence:
    """Evidence from its JSON bytes.

    Raises:
        InputError: 2003 too large; 2002 not strict JSON; 2005 a field is missing, unknown or not of its encoding.
    """
    return parse_message(Evidence, data, what="evidence", max_bytes=MAX_COLLATERAL_BYTES + 2 * MAX_QUOTE_BYTES)
