"""What a stage did, in the shape of an in-toto Statement.

Source: in-toto Attestation Framework v1 (github.com/in-toto/attestation, spec/v1), DSSE v1.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NoReturn

from pydantic import Field, StringConstraints

from cloister.errors import InputError, IntegrityError
from cloister.ledger import Ledger, require_whole, require_within
from cloister.manifest import Manifest, OffloadMode, Stage, order_of
from cloister.wire import (
    Digest,
    Envelope,
    Message,
    Name,
    SigningKey,
    Timestamp,
    VerifyKey,
    open_envelope,
    parse_message,
    sign_envelope,
)

__all__ = [
    "PAYLOAD_TYPE",
    "PREDICATE_TYPE",
    "STATEMENT_TYPE",
    "Assurance",
    "OffloadFacts",
    "Resumed",
    "Sandbox",
    "SealedOutput",
    "StageFacts",
    "StageReceipt",
    "Subject",
    "SubjectDigest",
    "sign_receipt",
    "verify_receipt",
]

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:cloister:stage-receipt:v1"
MAX_RECEIPT_BYTES = 256 * 1024  # 64 outputs and 65 inputs of a stage, with their digests, stay under 32 KiB

CHECK_BITS = 40  # a wrong product passes one check with a probability of at most 2^-40

Assurance = Literal["hardware", "simulated"]
Sandbox = Literal["bubblewrap", "UNSANDBOXED"]
RunId = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z][0-9A-Za-z_.-]{0,127}$")]


class SubjectDigest(Message):
    """An image id in in-toto's words."""

    sha256: Digest


class Subject(Message):
    """One sealed output: its name and its image id."""

    name: Name
    image: SubjectDigest = Field(alias="digest")


class SealedOutput(Message):
    """One output as it was sealed: its image id and the size of its files before sealing."""

    image: Digest
    size_bytes: int = Field(ge=0)


class OffloadFacts(Message):
    """What the workers of one attempt were asked, and how their answers were checked.

    Sums only, each of which whoever carries the bytes to the workers could make: a name out of the model would be a
    way for the script to tell the host something.

    Attributes:
        mode: As agreed.
        workers: As agreed, in their order.
        models: How many models the script offloaded layers of.
        products: Made by workers; in the mode ``enclave``, in their place.
        checks: Made of them. One that had failed would have left no receipt.
        error_bits: A wrong product passed with a probability of at most ``2^-error_bits``, the errors of all checks
            summed; None without checks.
        sent_bytes: Tensors sent to all workers.
        received_bytes: Tensors received from all workers.
        late: Blinding products that were not ready when they were needed.
    """

    mode: OffloadMode
    workers: tuple[Name, ...] = ()
    models: int = Field(ge=0)
    products: int = Field(ge=0)
    checks: int = Field(ge=0)
    error_bits: int | None = Field(default=None, ge=0)
    sent_bytes: int = Field(ge=0)
    received_bytes: int = Field(ge=0)
    late: int = Field(default=0, ge=0)


class Resumed(Message):
    """The checkpoint that an attempt went on from: which attempt saved it, and under which number."""

    attempt: int = Field(ge=1)
    sequence: int = Field(ge=1)


class StageFacts(Message):
    """What one attempt of a stage read, wrote and ran in.

    Attributes:
        manifest: The manifest's id.
        run: The registrar's number of the run.
        stage: The stage's name.
        attempt: The registrar's number of the attempt, from 1.
        inputs: The image id of everything that was opened, by name; the code image included.
        outputs: What was sealed, by name.
        claims: SHA-256 of the session claims that the evidence binds.
        evidence: SHA-256 of the evidence itself.
        assurance: ``simulated`` when the evidence rests on a development root, or any input did.
        sandbox: ``UNSANDBOXED`` when the script ran beside the launcher.
        exit_status: Of the script; a receipt is only signed for 0.
        started_at: When the script was started, by the host's clock.
        ended_at: When it ended, by the host's clock.
        logs: The parties who may read what the script printed.
        offload: How layers left, where the stage agreed on that.
        resumed: The checkpoint that it went on from; None where it began anew.
        privacy: What a private training did, by the launcher's engine; None for a script.
    """

    manifest: Digest
    run: RunId
    stage: Name
    attempt: int = Field(ge=1)
    inputs: dict[Name, Digest]
    outputs: dict[Name, SealedOutput]
    claims: Digest
    evidence: Digest
    assurance: Assurance
    sandbox: Sandbox
    exit_status: Literal[0]
    started_at: Timestamp
    ended_at: Timestamp
    logs: tuple[Name, ...] = ()
    offload: OffloadFacts | None = None
    resumed: Resumed | None = None
    privacy: Ledger | None = None


class StageReceipt(Message):
    """The statement: the outputs are its subjects, what made them is its predicate."""

    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[Subject, ...]
    predicateType: Literal["urn:cloister:stage-receipt:v1"]
    predicate: StageFacts

    def as_json(self) -> Any:
        """The JSON value, with in-toto's own field names."""
        return self.model_dump(mode="json", exclude_none=True, by_alias=True)

    @classmethod
    def of(cls, facts: StageFacts) -> StageReceipt:
        """The statement that says ``facts``."""
        subjects = (
            Subject.model_validate({"name": name, "digest": SubjectDigest(sha256=output.image)})
            for name, output in sorted(facts.outputs.items())
        )
        return cls.model_validate(
            {"_type": STATEMENT_TYPE, "subject": tuple(subjects), "predicateType": PREDICATE_TYPE, "predicate": facts}
        )


def sign_receipt(facts: StageFacts, *, key: SigningKey) -> Envelope:
    """The receipt of one attempt, signed by the session key that the evidence binds."""
    return sign_envelope(PAYLOAD_TYPE, StageReceipt.of(facts).as_json(), key)


def verify_receipt(envelope: Envelope, *, key: VerifyKey, manifest: Manifest | None = None) -> StageFacts:
    """The facts of a receipt, once its signature, its form and its fit to the manifest are shown.

    Args:
        envelope: The receipt as it was found.
        key: The session's signing key, out of claims whose evidence the caller has appraised.
        manifest: The agreement that the receipt must fit; None checks the receipt alone.

    Security:
        A receipt proves no more than its key: that the key is an attested launcher's is the caller's check.

    Raises:
        IntegrityError: 5001 when ``key`` did not sign it; 5350 when its subjects are not its outputs; 5351 when it does
            not fit ``manifest``; 5801 when its ledger is broken.
        BudgetError: 7804 when more privacy was spent than ``manifest`` agrees to.
        InputError: 2350 when it is signed but is not a stage's receipt.
    """
    value = open_envelope(envelope, PAYLOAD_TYPE, key, max_bytes=MAX_RECEIPT_BYTES)
    if not isinstance(value, dict):
        raise InputError(2350, "the receipt is not a JSON object")
    try:
        receipt = parse_message(StageReceipt, value, what="receipt")  # pyright: ignore[reportUnknownArgumentType]
    except InputError as error:
        raise InputError(2350, error.what, got=error.got) from None
    if receipt != StageReceipt.of(receipt.predicate):
        raise IntegrityError(5350)
    if receipt.predicate.ended_at < receipt.predicate.started_at:
        raise IntegrityError(5350, "the receipt ends before it starts")
    if manifest is not None:
        _fit(receipt.predicate, manifest)
    return receipt.predicate


def _fit(facts: StageFacts, manifest: Manifest) -> None:
    """Everything in a receipt that the manifest alone decides."""
    if facts.manifest != manifest.id:
        _unfit("manifest", manifest.id, facts.manifest)
    stage = manifest.stages.get(facts.stage)
    if stage is None:
        _unfit("stage", "one of the manifest's", facts.stage)
    if set(facts.inputs) != {stage.code, *stage.inputs}:
        _unfit("inputs", sorted({stage.code, *stage.inputs}), sorted(facts.inputs))
    for name, image in facts.inputs.items():
        if name in manifest.images and image != manifest.images[name].id:
            _unfit(f"image of {name!r}", manifest.images[name].id, image)
    if set(facts.outputs) != set(stage.outputs):
        _unfit("outputs", sorted(stage.outputs), sorted(facts.outputs))
    for name, output in facts.outputs.items():
        if output.size_bytes > stage.outputs[name].max_bytes:
            _unfit(f"size of {name!r}", f"at most {stage.outputs[name].max_bytes}", output.size_bytes)
    if set(facts.logs) != set(stage.logs):
        _unfit("readers of the log", sorted(stage.logs), sorted(facts.logs))
    _fit_offload(facts.offload, stage)
    _fit_privacy(facts, manifest)
    if facts.resumed is not None:
        if stage.checkpoint is None:
            _unfit("checkpoint", "none: the manifest has no terms for one", facts.resumed.sequence)
        if facts.resumed.attempt >= facts.attempt:
            _unfit("checkpoint", f"an attempt before {facts.attempt}", facts.resumed.attempt)
    if facts.sandbox == "UNSANDBOXED" and facts.assurance != "simulated":
        _unfit("assurance of an unsandboxed stage", "simulated", facts.assurance)
    if facts.assurance == "simulated" and manifest.tees[stage.tee].simulated_root is None:
        _unfit("assurance", "hardware: the manifest names no simulated root", "simulated")


def _fit_offload(facts: OffloadFacts | None, stage: Stage) -> None:
    """Layers left as agreed, or not at all, and every product was checked well enough."""
    terms = stage.offload
    if facts is None or terms is None:
        if facts is not None or terms is not None:
            _unfit("offloading", "none" if terms is None else f"mode {terms.mode}", facts and f"mode {facts.mode}")
        return
    if (facts.mode, facts.workers) != (terms.mode, terms.workers):
        _unfit("offloading", f"{terms.mode} with {terms.workers}", f"{facts.mode} with {facts.workers}")
    if terms.workers and facts.checks < facts.products:
        _unfit("number of checks", f"at least {facts.products}, one a product", facts.checks)
    if facts.checks:
        # Summed over 2^n checks, each at most 2^-40, the error is at most 2^(n-40): a long training is no worse a one.
        needed = CHECK_BITS - (facts.checks.bit_length() - 1)
        if facts.error_bits is None or facts.error_bits < needed:
            _unfit("error of its checks", f"at most 2^-{CHECK_BITS} each", f"2^-{facts.error_bits} together")


def _fit_privacy(facts: StageFacts, manifest: Manifest) -> None:
    """A private training did what was agreed and no more; a script has no account of itself."""
    ledger, stage = facts.privacy, manifest.stages[facts.stage]
    if ledger is None or stage.privacy is None:
        if ledger is not None or stage.privacy is not None:
            _unfit("privacy", "a ledger" if ledger is None else "none", "none" if ledger is None else "a ledger")
        return
    order = order_of(manifest, facts.stage, run=facts.run)
    if (ledger.run, ledger.unit, ledger.relation) != (order.id, order.unit, order.relation):
        _unfit("privacy ledger", f"of {order.id[:16]} per {order.unit}", f"of {ledger.run[:16]} per {ledger.unit}")
    require_whole(ledger)
    require_within(ledger.events, [order.event])


def _unfit(what: str, expected: object, got: object) -> NoReturn:
    raise IntegrityError(5351, f"the receipt's {what} is not the manifest's", expected=expected, got=got)
