"""The decision to release keys to an attested launcher, in numbered steps.

1. the manifest is in force here;
2. the registrar granted this attempt;
3. the session is open, unused, and of this attempt;
4. the evidence verifies and is from an enclave that the manifest names;
5. it is about these claims, this session, this work;
6. the attempt can still be released;
7. every owner whose data reaches the launcher consents;
8. key uses are left;
9. privacy budgets hold with what this run of the stage costs;
10. the inputs are registered and released to this consumer.

Consent travels with the data: an owner's ``simulated``, ``policy``, ``until`` and revocation hold for every stage that
the image can *reach*; uses are counted where the key itself leaves.
"""

from __future__ import annotations

from cloister.attest import SessionClaims, Verdict, check_session
from cloister.errors import CloisterError, InternalError, RefusedError
from cloister.keys._attempts import manifest_of, require_open
from cloister.keys._binding import PART_BYTES, release_info
from cloister.keys._budgets import charged, counted
from cloister.keys._checkpoints import released_checkpoint
from cloister.keys._context import Context, Outcome, Prepared, require_in_force
from cloister.keys._entries import RegistrationEntry, ReleaseEntry
from cloister.keys._messages import AttemptGrant, KeyRelease, LogReceipt, ReleasedInput, ReleasedKeys, ReleaseRequest
from cloister.keys._plan import Agreement, Consumer
from cloister.keys._sessions import Session, Sessions
from cloister.keys._state import InstalledKey, State, contribution_id, key_id, share_id
from cloister.keys._tee import appraise_tee, require_tee
from cloister.keys._time import moment
from cloister.wire import SealingKey, Secret, VerifyKey

__all__ = ["prepare_release", "release", "released_input"]


def prepare_release(request: ReleaseRequest, *, state: State, sessions: Sessions, at: str) -> Prepared[ReleaseRequest]:
    """The part that needs no lock and takes most of the time: the grant's signature and the appraisal.

    What is refused without looking at the evidence costs no appraisal. :func:`release` asks every question again.
    """
    grant: AttemptGrant | None = None
    try:
        agreement = require_in_force(state, manifest_of(request.grant), at=at)
        grant = agreement.open_attempt(request.grant)
        consumer = agreement.consumer(grant.consumer)
        sessions.find(request.session, subject=grant.digest(), now=at)
        verdict = appraise_tee(consumer.tee, request.evidence, at=moment(at))
    except CloisterError as error:
        return Prepared("release", request, grant=grant, error=error)
    return Prepared("release", request, grant=grant, verdict=verdict)


def release(ctx: Context, prepared: Prepared[ReleaseRequest]) -> Outcome:
    """Releases to the launcher what the manifest and the owners grant it, or says why not."""
    request = prepared.body
    claims = request.claims
    # (1) the manifest is in force here
    agreement = ctx.agreement(prepared.grant.manifest if prepared.grant else manifest_of(request.grant))
    # (2) the registrar granted this attempt
    with ctx.trace.rule("the registrar granted the attempt"):
        grant = prepared.grant or agreement.open_attempt(request.grant)
        consumer = agreement.consumer(grant.consumer)
    # (3) the session is open, unused, and of this attempt
    with ctx.trace.rule("the session is open"):
        session = ctx.take(request.session, subject=grant.digest())
    # (4) the evidence verifies and is from an enclave that the manifest names
    verdict = _verdict(ctx, prepared)
    require_tee(consumer.tee, request.evidence, verdict, trace=ctx.trace)
    # (5) it is about these claims, this session, this work
    with ctx.trace.rule("the evidence is about this session"):
        key = _require_session(agreement, consumer, grant, session, claims, verdict)
    # (6) the attempt can still be released
    with ctx.trace.rule("the attempt is open"):
        require_open(ctx.state, agreement.id, grant.run, consumer.name)
        if (agreement.id, grant.run, consumer.name, grant.attempt) in ctx.state.released:
            raise RefusedError(3416, f"attempt {grant.attempt} of {consumer.name!r} was released already")
    # (7) every owner whose data reaches the launcher consents
    for image in consumer.reachable:
        _require_consent(ctx, agreement, consumer, grant, verdict, image)
    # (8) key uses are left
    for image in consumer.images:
        with ctx.trace.rule(f"uses of image {image}"):
            used, allowed = ctx.state.image_uses[agreement.id, image], _installed(ctx, agreement, image).rule.uses
            if used >= allowed:
                raise RefusedError(3411, f"the key of image {image!r} was released {used} times", expected=allowed)
    # (9) privacy budgets hold with what this run of the stage costs; the entry of this release is the charge
    for image in consumer.images:
        if not counted(ctx.state.books, agreement.manifest, image):
            continue
        with ctx.trace.rule(f"privacy budget of image {image}"):
            charged(ctx.state.books, agreement.manifest, image, run=grant.run, stage=consumer.name)
    # (10) the inputs are registered and released to this consumer
    inputs = {name: _input(ctx, agreement, consumer, grant.run, name) for name in consumer.inputs}
    return _outcome(ctx, agreement, consumer, grant, request, verdict, inputs, key)


def _verdict(ctx: Context, prepared: Prepared[ReleaseRequest]) -> Verdict:
    with ctx.trace.rule("evidence is readable"):
        if prepared.verdict is None:
            # Whatever ended the preparation before an appraisal has been decided otherwise in the meantime, or it was
            # the appraisal that failed: either way there is no verdict, and without one nothing is released.
            raise prepared.error or InternalError(9001, "a release was not prepared")
        return prepared.verdict


def _require_session(
    agreement: Agreement,
    consumer: Consumer,
    grant: AttemptGrant,
    session: Session,
    claims: SessionClaims,
    verdict: Verdict,
) -> SealingKey:
    check_session(
        verdict,
        claims,
        purpose=consumer.purpose,
        nonce_name=agreement.name,
        nonce=session.nonce,
        manifest=agreement.id,
        run=grant.run,
        stage=grant.consumer,
        attempt=grant.attempt,
    )
    VerifyKey.parse(claims.sign)
    return SealingKey.parse(claims.hpke)


def _installed(ctx: Context, agreement: Agreement, image: str) -> InstalledKey:
    found = ctx.state.installed.get((agreement.id, image))
    if found is None:
        raise RefusedError(3409, f"no key of image {image!r} is installed")
    return found


def _require_consent(
    ctx: Context, agreement: Agreement, consumer: Consumer, grant: AttemptGrant, verdict: Verdict, image: str
) -> None:
    with ctx.trace.rule(f"key of image {image}"):
        key = _installed(ctx, agreement, image)
        if (agreement.id, image) in ctx.state.revoked:
            raise RefusedError(3410, f"{key.owner!r} revoked image {image!r}")
        for until in (key.rule.until, agreement.manifest.images[image].until):
            if until is not None and until < ctx.at:
                raise RefusedError(3412, f"the key of image {image!r} expired", expected=f"until {until}", got=ctx.at)
    with ctx.trace.rule(f"assurance for image {image}"):
        if verdict.simulated and not key.rule.simulated:
            raise RefusedError(3413, f"{key.owner!r} did not consent to SIMULATED evidence for image {image!r}")
    if key.policy is None:
        return
    held = key.policy.evaluate(
        {
            **verdict.facts(),
            "pipeline.manifest": agreement.id,
            "pipeline.run": grant.run,
            "pipeline.stage": consumer.name,
            "pipeline.attempt": grant.attempt,
            "pipeline.purpose": consumer.purpose,
            "request.count": ctx.state.image_uses[agreement.id, image],
            "time": ctx.at,
        }
    )
    ctx.trace.note(f"policy of image {image}", passed=held.holds, policy=held.as_json())
    if not held.holds:
        failed = ", ".join(sorted({str(failure.claim) for failure in held.failures()}))
        raise RefusedError(3414, f"the policy of {key.owner!r} for image {image!r} does not hold", got=failed)


def _input(ctx: Context, agreement: Agreement, consumer: Consumer, run: str, output: str) -> ReleasedInput | None:
    """This key manager's part of an earlier output, or None when it contributed nothing to it."""
    stage = consumer.inputs[output]
    with ctx.trace.rule(f"release of output {output}"):
        kind = "service" if consumer.is_service else "stage"
        term = agreement.term(output, kind=kind, name=consumer.name)
        used = ctx.state.term_uses[agreement.id, output, consumer.name]
        if used >= term.uses:
            raise RefusedError(3411, f"output {output!r} was released {used} times", expected=term.uses)
        if term.until is not None and term.until < ctx.at:
            raise RefusedError(3412, f"the release of {output!r} expired", expected=f"until {term.until}", got=ctx.at)
    if agreement.name not in agreement.consumers[stage].contributors:
        return None
    with ctx.trace.rule(f"input {output} is registered"):
        done = ctx.state.registered.get((agreement.id, run, stage))
        if done is None:
            raise RefusedError(3417, f"stage {stage!r}, which makes {output!r}, is not registered here")
    return released_input(ctx, done[1], output)


def released_input(ctx: Context, done: RegistrationEntry, output: str) -> ReleasedInput:
    """This key manager's part of a registered output."""
    place = (done.manifest, done.run, done.stage)
    source = ctx.state.released[*place, done.attempt]
    return ReleasedInput(
        stage=done.stage,
        attempt=done.attempt,
        grant=source.grant,
        image=done.outputs[output],
        contribution=ctx.secrets[contribution_id(*place, done.attempt)].reveal(),
        share=ctx.secrets[share_id(*place)].reveal(),
        assurance=source.assurance,
    )


def _outcome(
    ctx: Context,
    agreement: Agreement,
    consumer: Consumer,
    grant: AttemptGrant,
    request: ReleaseRequest,
    verdict: Verdict,
    inputs: dict[str, ReleasedInput | None],
    key: SealingKey,
) -> Outcome:
    parts = {name: part for name, part in inputs.items() if part is not None}
    tainted = any(part.assurance == "simulated" for part in parts.values())
    contribution = None if consumer.is_service else Secret(ctx.entropy(PART_BYTES))
    checkpoint, kept = released_checkpoint(ctx, agreement, grant.run, consumer.name)
    keys = ReleasedKeys(
        images={image: ctx.secrets[key_id(agreement.id, image)].reveal() for image in consumer.images},
        contribution=None if contribution is None else contribution.reveal(),
        inputs=parts,
        clients=agreement.manifest.services[consumer.name].clients if consumer.is_service else None,
        checkpoint=checkpoint,
    )
    entry = ReleaseEntry(
        at=ctx.at,
        manifest=agreement.id,
        run=grant.run,
        attempt=grant.attempt,
        session=request.session,
        consumer=consumer.name,
        grant=grant.digest(),
        claims=request.claims.digest(),
        evidence=verdict.evidence_digest,
        sign=request.claims.sign,
        assurance="simulated" if tainted else verdict.assurance,
        images=consumer.images,
        inputs={name: part.image for name, part in parts.items()},
        trace=ctx.trace.steps,
    )

    def reply(receipt: LogReceipt) -> KeyRelease:
        info = release_info(
            manifest=entry.manifest, run=entry.run, stage=entry.consumer, attempt=entry.attempt, session=entry.session
        )
        return KeyRelease(
            key_manager=ctx.me,
            manifest=entry.manifest,
            run=entry.run,
            attempt=entry.attempt,
            session=entry.session,
            claims=entry.claims,
            consumer=consumer.name,
            hpke=str(ctx.opening.public),
            sealed=key.seal(keys.canonical(), info=info),
            receipt=receipt,
        )

    secret_id = contribution_id(agreement.id, grant.run, consumer.name, grant.attempt)
    put = {} if contribution is None else {secret_id: contribution}
    return Outcome(reply, entry=entry, put=put | kept)
