"""This installation's measurement in each role, with what its launcher or service is configured with, and its TEE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloister.attest import VENDOR_ROOTS, Attester, SimulatedSite, find_attester
from cloister.enclave._hashes import FileHashes
from cloister.enclave._measurement import Measured, measure
from cloister.enclave._sandbox import sandbox_configuration
from cloister.receipt import Sandbox

__all__ = ["installed_attester", "measure_installed"]


def measure_installed(
    role: str,
    *,
    sandbox: Sandbox = "bubblewrap",
    remember: bool = True,
    listing: Mapping[str, str] | None = None,
) -> Measured:
    """The measurement of the code that this interpreter runs, as a manifest pins it.

    Args:
        role: ``launcher``, ``key-manager`` or ``service``.
        sandbox: How a launcher runs scripts: one without a sandbox never measures like one with it.
        remember: Whether hashes that this user's earlier measurements left may be used: for simulated evidence only.

        listing: That of another role's measurement, made just now; nothing is read again.

    Raises:
        InputError: 2501 for another role; 2001 when a file cannot be read.
    """
    configuration: dict[str, Any] = {}
    if role == "launcher":
        configuration = {"sandbox": sandbox} | (sandbox_configuration() if sandbox == "bubblewrap" else {})
    roots = {root.name: root.spki_sha256 for root in VENDOR_ROOTS.roots}
    hashes = FileHashes(remember=remember) if listing is None else None
    return measure(role, configuration=configuration, roots=roots, hashes=hashes, listing=listing)


def installed_attester(measured: Measured, *, tee: str, site: str | None) -> Attester:
    """The TEE of a kind that this process runs in, or the simulated one of ``site``.

    Raises:
        AttestationError: 4161 when there is none that we know.
        InputError: 2001, 2014, 2109 when the site cannot be used.
    """
    if site is None:
        return find_attester()
    kind = "tdx" if tee == "tdx" else "sgx"
    return SimulatedSite.open(site).attester(bytes.fromhex(measured.for_tee(kind)), tee=kind)
