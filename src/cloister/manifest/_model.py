"""The manifest: everything that the parties agree on, as frozen data. Its id is SHA-256 of its RFC 8785 bytes.

Nothing in here decides or runs anything; the rules that tie the parts together are in ``_checks.py``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from cloister.wire import B64, Digest, Message, Name, Timestamp

__all__ = [
    "MANIFEST_LABEL",
    "Image",
    "KeyManager",
    "Limits",
    "Manifest",
    "OffloadTerms",
    "Output",
    "Party",
    "PrivacyTerms",
    "Release",
    "Service",
    "SignedManifest",
    "Stage",
    "Tee",
    "Validity",
    "Worker",
]

MANIFEST_LABEL = "cloister/manifest/v1"

Measurement = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64}|[0-9a-f]{96})$")]
"""MRENCLAVE (SGX, 64 hexadecimal digits) or MRTD (TDX, 96)."""

Decimal = Annotated[str, StringConstraints(pattern=r"^\d{1,12}(\.\d{1,18})?(e-?\d{1,3})?$")]
"""A non-negative decimal number as text: signed JSON holds no floats."""

Argument = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]*$", max_length=64)]
Url = Annotated[str, StringConstraints(pattern=r"^https?://[^\s]+$", max_length=512)]
TcbStatus = Literal[
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
]


class Party(Message):
    """Who takes part, by the keys that were pinned."""

    sign: str
    hpke: str


class Tee(Message):
    """A kind of enclave that is accepted: platform, code measurement, patch level.

    ``simulated_root`` names the SPKI digest of a development root. Its presence is the manifest's consent to
    SIMULATED evidence, and only under that root; no vendor root is then accepted in its place.
    """

    type: Literal["tdx", "sgx"]
    measurements: tuple[Measurement, ...] = Field(min_length=1, max_length=16)
    tcb: tuple[TcbStatus, ...] = ("UpToDate",)
    deny_advisories: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    simulated_root: Digest | None = None


class KeyManager(Message):
    """A key manager, by its signing key and the enclave it must run in. ``url`` is a hint, never trusted."""

    sign: str
    tee: Name
    url: Url | None = None


class Image(Message):
    """A sealed image: what its owner contributes, and which key manager holds its key."""

    id: Digest
    kind: Literal["dataset", "code"]
    owner: Name
    key_manager: Name
    uses: int = Field(default=10, ge=1, le=1_000_000)
    until: Timestamp | None = None


class Output(Message):
    """What a stage may write: one sealed image of at most ``max_bytes`` bytes of files."""

    max_bytes: int = Field(ge=1, le=1 << 46)


class Limits(Message):
    """What a stage may use. Memory covers the script and its private file system."""

    memory_bytes: int = Field(default=2 << 30, ge=1 << 26, le=1 << 46)
    time_s: int = Field(default=3600, ge=1, le=30 * 86400)
    processes: int = Field(default=256, ge=1, le=65536)


class PrivacyTerms(Message):
    """Differential privacy that a stage must keep."""

    epsilon: Decimal
    delta: Decimal
    unit: Literal["record", "patient"]


class OffloadTerms(Message):
    """How linear layers may leave the enclave."""

    mode: Literal["enclave", "verify", "blind", "blind2", "shared3", "shared5"]
    workers: tuple[Name, ...] = ()


class Worker(Message):
    """An untrusted accelerator's process and who operates it."""

    operator: Name
    url: Url


class Stage(Message):
    """One script, run once, in an enclave.

    Inside its sandbox the code image is ``/code`` (the working folder), each input ``/inputs/NAME``, read-only, and
    each output ``/outputs/NAME``, writable. ``network`` lists the workers that may be reached; none by default.
    ``logs`` lists the parties who may read what the script prints; nobody by default.
    """

    tee: Name
    code: Name
    argv: tuple[Argument, ...] = Field(min_length=1, max_length=256)
    env: dict[EnvName, str] = Field(default_factory=dict, max_length=64)
    inputs: tuple[Name, ...] = Field(default=(), max_length=64)
    outputs: dict[Name, Output] = Field(min_length=1, max_length=64)
    limits: Limits = Limits()
    network: tuple[Name, ...] = ()
    logs: tuple[Name, ...] = ()
    privacy: PrivacyTerms | None = None
    offload: OffloadTerms | None = None


class Service(Message):
    """A model that answers requests from inside an enclave; ``clients`` lists the parties who may ask, or is empty for
    anyone."""

    tee: Name
    model: Name
    runner: Literal["onnx"] = "onnx"
    clients: tuple[Name, ...] = ()
    limits: Limits = Limits()


class Release(Message):
    """Who finally gets an output: exactly one of a stage, a service, a party, or (explicitly) nobody."""

    output: Name
    stage: Name | None = None
    service: Name | None = None
    party: Name | None = None
    nobody: Literal[True] | None = None
    uses: int = Field(default=10, ge=1, le=1_000_000)
    until: Timestamp | None = None


class Validity(Message):
    """When the manifest is in force."""

    not_before: Timestamp
    not_after: Timestamp


class Manifest(Message):
    """The agreement. ``registrar`` is the key manager that numbers runs and attempts, and registers outputs first."""

    cloister: Literal[1]
    name: Name
    purpose: Annotated[str, StringConstraints(max_length=2000)] = ""
    valid: Validity
    parties: dict[Name, Party] = Field(min_length=1, max_length=256)
    key_managers: dict[Name, KeyManager] = Field(min_length=1, max_length=64)
    registrar: Name
    tees: dict[Name, Tee] = Field(min_length=1, max_length=64)
    workers: dict[Name, Worker] = Field(default_factory=dict, max_length=64)
    images: dict[Name, Image] = Field(min_length=1, max_length=1024)
    stages: dict[Name, Stage] = Field(min_length=1, max_length=256)
    services: dict[Name, Service] = Field(default_factory=dict, max_length=64)
    releases: tuple[Release, ...] = Field(default=(), max_length=4096)

    @property
    def id(self) -> str:
        """SHA-256 of the canonical bytes, in hexadecimal."""
        return self.digest()


class SignedManifest(Message):
    """A manifest with the signatures gathered so far, one per party: ed25519 over ``MANIFEST_LABEL`` and the raw id."""

    format: Literal["cloister/signed-manifest/v1"] = "cloister/signed-manifest/v1"
    manifest: Manifest
    signatures: dict[Name, B64] = Field(default_factory=dict, max_length=256)
