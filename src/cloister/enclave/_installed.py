"""This installation's measurement in each role, with what its launcher or service is configured with."""

from __future__ import annotations

from typing import Any

from cloister.attest import VENDOR_ROOTS
from cloister.enclave._hashes import FileHashes
from cloister.enclave._measurement import Measured, measure
from cloister.enclave._sandbox import sandbox_configuration
from cloister.receipt import Sandbox

__all__ = ["measure_installed"]


def measure_installed(role: str, *, sandbox: Sandbox = "bubblewrap", remember: bool = True) -> Measured:
    """The measurement of the code that this interpreter runs, as a manifest pins it.

    Args:
        role: ``launcher``, ``key-manager`` or ``service``.
        sandbox: How a launcher runs scripts: one without a sandbox never measures like one with it.
        remember: Whether hashes that this user's earlier measurements left may be used: for simulated evidence only.

    Raises:
        InputError: 2501 for another role; 2001 when a file cannot be read.
    """
    configuration: dict[str, Any] = {}
    if role == "launcher":
        configuration = {"sandbox": sandbox} | (sandbox_configuration() if sandbox == "bubblewrap" else {})
    roots = {root.name: root.spki_sha256 for root in VENDOR_ROOTS.roots}
    return measure(role, configuration=configuration, roots=roots, hashes=FileHashes(remember=remember))
