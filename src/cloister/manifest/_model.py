"""The manifest: everything that the parties agree on, as frozen data. Its id is SHA-256 of its RFC 8785 bytes.

Nothing in here decides or runs anything; the rules that tie the parts together are in ``_checks.py``. The descriptions
of the fields are the text of the JSON Schema and of docs/manifest.md.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from cloister.wire import B64, Digest, Message, Name, Timestamp

__all__ = [
    "MANIFEST_LABEL",
    "OFFLOAD_WORKERS",
    "PRIVATE_TRAINING",
    "SIGNED_FORMAT",
    "CheckpointTerms",
    "Image",
    "KeyManager",
    "Limits",
    "LinkUrl",
    "Manifest",
    "OffloadMode",
    "OffloadTerms",
    "Output",
    "Party",
    "PrivacyBudget",
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
SIGNED_FORMAT = "cloister/signed-manifest/v1"

Measurement = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64}|[0-9a-f]{96})$")]
"""MRENCLAVE (SGX, 64 hexadecimal digits) or MRTD (TDX, 96)."""

Register = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{96}|any)$")]
"""A run-time measurement register of a TD, or ``any`` for one that is not compared."""

Decimal = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,12}(\.[0-9]{1,18})?(e-?[0-9]{1,3})?$")]
"""A non-negative decimal number as text: signed JSON holds no floats."""

Argument = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]*$", max_length=64)]
EnvValue = Annotated[str, StringConstraints(max_length=4096, pattern=r"^[^\x00]*$")]
ShortText = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Url = Annotated[str, StringConstraints(pattern=r"^https?://[^\s]+$", max_length=512)]
WorkerUrl = Annotated[
    str,
    StringConstraints(
        pattern=r"^(https?://[^\s]+|tcp://(\[[0-9A-Fa-f:.]+\]|[^\s/@:\[\]]+):[0-9]{1,5})$",
        max_length=512,
    ),
]
LinkUrl = Annotated[
    str,
    StringConstraints(
        pattern=r"^tcp://(\[[0-9A-Fa-f:.]+\]|[^\s/@:\[\]]+):"
        r"([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$",
        max_length=512,
    ),
]
"""Where a worker that layers are offloaded to is reached."""

TcbStatus = Literal[
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
]

OffloadMode = Literal["enclave", "verify", "blind", "blind2", "shared3", "shared5"]

OFFLOAD_WORKERS: dict[str, int] = {"enclave": 0, "verify": 1, "blind": 1, "blind2": 2, "shared3": 3, "shared5": 3}
"""How many workers each offload mode needs. Both shared modes have three: the digit counts their products."""

PRIVATE_TRAINING = ("python", "-I", "-m", "cloister.privacy")
"""The command of a stage with privacy terms: the launcher's own training, in whose place no file of an image can be."""

NeighbourRelation = Literal["replace-special", "replace-one"]
"""When two data sets are neighbours: those of :class:`cloister.ledger.Relation` that let the number of units be known,
as everybody who reads the manifest does."""


class Party(Message):
    """Who takes part, by the keys that were pinned."""

    sign: str = Field(description="The party's ed25519 key, as in its public file.")
    hpke: str = Field(description="The party's HPKE key: what is released to the party is sealed to it.")


class Tee(Message):
    """A kind of enclave that is accepted: platform, code measurement, patch level.

    ``simulated_root`` names the SPKI digest of a development root. Its presence is the manifest's consent to
    SIMULATED evidence, and only under that root; no vendor root is then accepted in its place.
    """

    type: Literal["tdx", "sgx"] = Field(description="The platform whose evidence is asked for.")
    measurements: tuple[Measurement, ...] = Field(
        min_length=1,
        max_length=16,
        description="The launchers that are accepted: MRTD (tdx, 96 digits) or MRENCLAVE (sgx, 64 digits).",
    )
    rtmrs: tuple[tuple[Register, Register, Register, Register], ...] = Field(
        default=(),
        max_length=16,
        description="What MRTD does not cover (tdx): accepted sets of RTMR0 to RTMR3, each 96 digits or 'any'. Kernel, "
        "command line and file system are in them, so they are required unless the TEE is simulated.",
    )
    tcb: tuple[TcbStatus, ...] = Field(
        default=("UpToDate",), min_length=1, description="The patch levels of the platform that are accepted."
    )
    deny_advisories: tuple[ShortText, ...] = Field(
        default=(), max_length=256, description="Intel advisories that must not apply to the platform."
    )
    platforms: tuple[ShortText, ...] = Field(
        default=(), max_length=256, description="The only platforms accepted; any genuine one when empty."
    )
    simulated_root: Digest | None = Field(
        default=None,
        description="Accept SIMULATED evidence, which protects nothing, under this development root (SPKI digest).",
    )


class KeyManager(Message):
    """A key manager, by its signing key and the enclave it must run in. ``url`` is a hint, never trusted."""

    sign: str = Field(description="The key manager's ed25519 key: it signs every answer and every tree head.")
    tee: Name = Field(description="The entry of `tees` that it must attest to.")
    url: Url | None = Field(default=None, description="Where it is reached: a hint, never trusted.")


class PrivacyBudget(Message):
    """What may ever be learned of one unit of an image, over all manifests that its key is installed under here.

    The key manager charges each run of a stage before it releases the key, and never gives anything back.
    """

    epsilon: Decimal = Field(description="The cap on ε, as a decimal in quotes.")
    delta: Decimal = Field(description="The cap on δ; one training may ask for at most half of it.")
    unit: Literal["record", "patient"] = Field(description="Whose presence is hidden.")
    relation: NeighbourRelation = Field(default="replace-special", description="When two data sets are neighbours.")


class Image(Message):
    """A sealed image: what its owner contributes, and which key manager holds its key."""

    id: Digest = Field(description="The image id that `cloister seal` printed.")
    kind: Literal["dataset", "code"] = Field(
        description="`dataset` is read by stages as input; `code` is what they run."
    )
    owner: Name = Field(description="The party whose data it is; its signature is needed.")
    key_manager: Name = Field(description="The key manager that will hold its key.")
    uses: int = Field(
        default=10, ge=1, le=1_000_000, description="How often its key may be released, retries included."
    )
    until: Timestamp | None = Field(
        default=None, description="When its key is released no more; else `valid.not_after`."
    )
    budget: PrivacyBudget | None = Field(
        default=None,
        description="What may ever be learned of one unit in it. Only stages with privacy terms may then read it.",
    )


class Output(Message):
    """What a stage may write: one sealed image of at most ``max_bytes`` bytes of files."""

    max_bytes: int = Field(ge=1, le=1 << 46, description="The largest size of its files together.")


class Limits(Message):
    """What a stage may use. Memory covers the script and its private file system."""

    memory_bytes: int = Field(default=2 << 30, ge=1 << 26, le=1 << 46, description="Memory, files in it included.")
    time_s: int = Field(default=3600, ge=1, le=30 * 86400, description="Wall-clock time of one attempt.")
    processes: int = Field(default=256, ge=1, le=65536, description="Processes and threads at a time.")


class PrivacyTerms(Message):
    """Differentially private training: what the launcher's own engine does with the inputs, in place of a script.

    The code image holds the program, its first weights and a recipe, as `cloister privacy program` writes them; the
    inputs hold records. What the terms cost is computed from them by Rényi divergence, whatever `epsilon` says.
    """

    epsilon: Decimal = Field(description="The bound ε, as a decimal in quotes: the terms below must cost no more.")
    delta: Decimal = Field(description="The bound δ, as a decimal in quotes, below 1.")
    unit: Literal["record", "patient"] = Field(description="Whose presence is hidden.")
    relation: NeighbourRelation = Field(default="replace-special", description="When two data sets are neighbours.")
    units: int = Field(
        ge=1, lt=1 << 40, description="How many records, or patients, all inputs have together, at most."
    )
    batch: int = Field(ge=1, lt=1 << 40, description="How many of them a step is expected to draw.")
    steps: int = Field(ge=1, lt=1 << 40, description="How many steps are made.")
    noise_multiplier: Decimal = Field(description="The noise's standard deviation over the clipping norm.")
    clip: Decimal = Field(description="The norm that one unit's gradient keeps.")
    most_rows: int = Field(default=1, ge=1, le=1 << 20, description="How many records of one patient count, at most.")
    slack: Decimal = Field(
        default="1e-10", description="What sampling and noise may lack to ideal ones: a total variation distance."
    )


class OffloadTerms(Message):
    """How linear layers may leave the enclave."""

    mode: OffloadMode = Field(description="What is trusted of the workers; `review` says what each mode shows them.")
    workers: tuple[Name, ...] = Field(default=(), max_length=16, description="The workers that take part, in order.")


class CheckpointTerms(Message):
    """That a stage may save its state, for its next attempt to go on from when this one is killed.

    The host keeps the ciphertext; the key managers keep its number and digest, so that an older one is told apart.
    """

    max_bytes: int = Field(ge=1, le=1 << 40, description="The largest state.")


class Worker(Message):
    """An untrusted accelerator's process and who operates it.

    Layers are offloaded only to a worker that is known by its key: a session opens for nobody else, whoever listens at
    the address. Two workers never have one key.
    """

    operator: Name = Field(description="The party that operates it: workers of one operator count as colluding.")
    url: WorkerUrl = Field(
        description="Where it is reached: `tcp://HOST:PORT` for one that layers are offloaded to; never trusted."
    )
    key: str | None = Field(
        default=None,
        description="Its key, as `cloister worker init` printed it; required of a worker that layers are offloaded to.",
    )


class Stage(Message):
    """One script, run once, in an enclave.

    Inside its sandbox the code image is ``/code`` (the working folder), each input ``/inputs/NAME``, read-only, and
    each output ``/outputs/NAME``, writable. ``network`` lists the workers that may be reached; none by default.
    ``logs`` lists the parties who may read what the script prints; nobody by default.
    """

    tee: Name = Field(description="The entry of `tees` that the launcher must attest to.")
    code: Name = Field(description="The code image, mounted read-only at `/code`, the working folder.")
    argv: tuple[Argument, ...] = Field(
        min_length=1, max_length=256, description="The exact command, passed on unmodified and through no shell."
    )
    env: dict[EnvName, EnvValue] = Field(
        default_factory=dict, max_length=64, description="The whole environment besides the launcher's own few names."
    )
    inputs: tuple[Name, ...] = Field(
        default=(), max_length=64, description="Images and earlier outputs, mounted read-only at `/inputs/NAME`."
    )
    outputs: dict[Name, Output] = Field(
        min_length=1, max_length=64, description="What it writes under `/outputs/NAME`, each sealed as one image."
    )
    limits: Limits = Field(default=Limits(), description="Memory, time and processes.")
    network: tuple[Name, ...] = Field(
        default=(),
        max_length=64,
        description="The workers that may be reached; no network at all when empty. Only a launcher's broker reaches "
        "them, for the layers that are offloaded: a stage that names others is not run (3503).",
    )
    logs: tuple[Name, ...] = Field(
        default=(), max_length=64, description="The parties who may read what the script prints; nobody when empty."
    )
    privacy: PrivacyTerms | None = Field(
        default=None,
        description="Differentially private training by the launcher's engine; `argv` is then "
        "`[python, -I, -m, cloister.privacy]`.",
    )
    offload: OffloadTerms | None = Field(default=None, description="How linear layers may leave the enclave.")
    checkpoint: CheckpointTerms | None = Field(
        default=None, description="That it may save its state under `/checkpoint`, for its next attempt to go on from."
    )


class Service(Message):
    """A model that answers requests from inside an enclave.

    ``clients`` lists the parties who may ask, or is empty for anyone.
    """

    tee: Name = Field(description="The entry of `tees` that the launcher must attest to.")
    model: Name = Field(description="The output or dataset image that holds the model.")
    runner: Literal["onnx"] = Field(default="onnx", description="What loads the model.")
    clients: tuple[Name, ...] = Field(
        default=(), max_length=256, description="The parties who may ask; anyone when empty."
    )
    limits: Limits = Field(default=Limits(), description="Memory, time of one request, and processes.")


class Release(Message):
    """Who finally gets an output: exactly one of a stage, a service, a party, or (explicitly) nobody."""

    output: Name = Field(description="The output that is released.")
    stage: Name | None = Field(default=None, description="To this stage, which reads it as an input.")
    service: Name | None = Field(default=None, description="To this service, which loads it as its model.")
    party: Name | None = Field(default=None, description="To this party, in the clear.")
    nobody: Literal[True] | None = Field(default=None, description="To nobody: the output can never be opened.")
    uses: int = Field(default=10, ge=1, le=1_000_000, description="How often it may be released, retries included.")
    until: Timestamp | None = Field(default=None, description="When it is released no more; else `valid.not_after`.")


class Validity(Message):
    """When the manifest is in force."""

    not_before: Timestamp = Field(description="The first second of it.")
    not_after: Timestamp = Field(description="The last second of it.")


class Manifest(Message):
    """The agreement. ``registrar`` is the key manager that numbers runs and attempts, and registers outputs first."""

    cloister: Literal[1] = Field(description="The version of this format.")
    name: Name = Field(description="What the parties call this agreement.")
    purpose: Annotated[str, StringConstraints(max_length=2000)] = Field(
        default="", description="What it is for, in a sentence that everybody signs."
    )
    valid: Validity = Field(description="When keys may be released under it.")
    parties: dict[Name, Party] = Field(min_length=1, max_length=256, description="Who takes part.")
    key_managers: dict[Name, KeyManager] = Field(min_length=1, max_length=64, description="Who holds keys.")
    registrar: Name = Field(description="The key manager that numbers runs and attempts, and registers outputs first.")
    tees: dict[Name, Tee] = Field(min_length=1, max_length=64, description="The enclaves that are accepted.")
    workers: dict[Name, Worker] = Field(
        default_factory=dict, max_length=64, description="Untrusted accelerators that stages may reach."
    )
    images: dict[Name, Image] = Field(min_length=1, max_length=1024, description="What the owners contribute.")
    stages: dict[Name, Stage] = Field(min_length=1, max_length=256, description="What is run.")
    services: dict[Name, Service] = Field(
        default_factory=dict, max_length=64, description="What answers requests with a model."
    )
    releases: tuple[Release, ...] = Field(default=(), max_length=4096, description="Who finally gets each output.")

    @property
    def id(self) -> str:
        """SHA-256 of the canonical bytes, in hexadecimal."""
        return self.digest()


class SignedManifest(Message):
    """A manifest with the signatures gathered so far, one per party: ed25519 over ``MANIFEST_LABEL`` and the raw id."""

    format: Literal["cloister/signed-manifest/v1"] = Field(default=SIGNED_FORMAT, description="The file's format.")
    manifest: Manifest = Field(description="The agreement, in full.")
    signatures: dict[Name, B64] = Field(
        default_factory=dict, max_length=256, description="Signatures by the name of the party."
    )
