"""What the host tells a launcher, and what the launcher tells the host.

A job only says *where things lie*. What is run, with which arguments, variables, limits, inputs, outputs and readers,
is in the signed manifest, so a host that edits a job changes nothing but addresses.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from cloister.attest import Evidence, SessionClaims
from cloister.errors import CloisterError, InternalError, error_for
from cloister.manifest import LinkUrl, SignedManifest
from cloister.wire import Digest, Envelope, Message, Name

__all__ = ["MAX_JOB_BYTES", "MAX_OUTCOME_BYTES", "Job", "StageFailure", "StageOutcome", "StageResult"]

MAX_JOB_BYTES = 4 << 20
MAX_OUTCOME_BYTES = 32 << 20  # evidence with collateral and a log, a few MiB at most; findings, 116 kB a party

Place = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


class Job(Message):
    """One attempt at a stage.

    Attributes:
        format: Of this message; another is refused.
        manifest: With its signatures.
        stage: Which one.
        grant: The registrar's attempt grant.
        key_managers: Where each one is reached.
        inputs: Where the sealed images of the stage's code and inputs lie, by name.
        outputs: Where its sealed outputs go, by name.
        checkpoint: What the names of its checkpoints begin with, where they lie and go; None where it saves none.
        workers: Where the workers that its layers are offloaded to are reached, by name.
        site: Folder of the simulated site; None on hardware.
    """

    format: Literal["cloister/stage-job/v1"] = "cloister/stage-job/v1"
    manifest: SignedManifest
    stage: Name
    grant: Envelope
    key_managers: dict[Name, Place]
    inputs: dict[Name, Place]
    outputs: dict[Name, Place]
    checkpoint: Place | None = None
    workers: dict[Name, LinkUrl] = Field(default_factory=dict, max_length=16)
    site: Place | None = None


class StageResult(Message):
    """What a finished attempt leaves for the next stages and for an audit.

    Attributes:
        claims: What was attested to.
        evidence: The evidence, with its collateral where the launcher has it.
        releases: Each key manager's signed answer.
        registration: The outputs, signed by the attested key.
        registrations: Key managers' receipts for it, where it was delivered already; the host delivers the rest.
        receipt: The stage's receipt.
        images: Image id of each output.
        log: For the parties who may read it.
        fixed_ms: What each step around the script took, in milliseconds. Starting the launcher and measuring its code
            come before, delivering the registration comes after.
        script_ms: What the script took. Whoever runs the launcher sees as much; no receipt holds either.
    """

    claims: SessionClaims
    evidence: Evidence
    releases: dict[Name, Envelope]
    registration: Envelope
    registrations: dict[Name, Envelope]
    receipt: Envelope
    images: dict[Name, Digest]
    log: Envelope | None = None
    fixed_ms: dict[str, int]
    script_ms: int


class StageFailure(Message):
    """Why an attempt ended without outputs. Where data was open, ``what`` is the code's title and no more.

    Attributes:
        code: Of the error.
        what: What happened.
        expected: What would have been right, where no data was open.
        got: What was there instead, likewise.
        hint: What to do.
        claims: What was attested to, where it came so far.
        evidence: The evidence.
        releases: Each key manager's signed answer.
        log: For the parties who may read it.
        findings: What failed where a worker lied, for the parties whose data it was.
    """

    code: int = Field(ge=2000, le=9999)
    what: str = Field(max_length=4000)
    expected: str | None = Field(default=None, max_length=4000)
    got: str | None = Field(default=None, max_length=4000)
    hint: str | None = Field(default=None, max_length=4000)
    claims: SessionClaims | None = None
    evidence: Evidence | None = None
    releases: dict[Name, Envelope] = Field(default_factory=dict)
    log: Envelope | None = None
    findings: Envelope | None = None

    @classmethod
    def of(cls, error: BaseException, **more: object) -> StageFailure:
        """The failure that ``error`` is; an error that is not ours is named by its type alone."""
        ours = error if isinstance(error, CloisterError) else InternalError(9001, type(error).__name__)
        facts = {name: str(value)[:4000] for name, value in ours.as_json().items() if name != "code"}
        return cls.model_validate({"code": ours.code, **facts, **more})

    def error(self) -> CloisterError:
        """The same as an error to raise."""
        return error_for(self.code, self.what, self.expected, self.got, self.hint)


class StageOutcome(Message):
    """Exactly one of a result and a failure."""

    format: Literal["cloister/stage-outcome/v1"] = "cloister/stage-outcome/v1"
    result: StageResult | None = None
    failure: StageFailure | None = None

    def require(self) -> StageResult:
        """The result.

        Raises:
            CloisterError: the failure, under its own code.
        """
        if self.result is None or self.failure is not None:
            raise self.failure.error() if self.failure else InternalError(9001, "an outcome without result and failure")
        return self.result
