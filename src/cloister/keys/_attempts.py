"""Decisions of the registrar and the opening of sessions: runs, attempts, challenges."""

from __future__ import annotations

from datetime import timedelta

from cloister.errors import RefusedError
from cloister.keys._context import Context, Outcome, Prepared
from cloister.keys._entries import AttemptEntry, RunEntry
from cloister.keys._messages import (
    AttemptGrant,
    AttemptRequest,
    Challenge,
    ChallengeRequest,
    CollectChallengeRequest,
    LogReceipt,
    RunGrant,
    RunRequest,
)
from cloister.keys._plan import Agreement
from cloister.keys._sessions import Session
from cloister.keys._state import State
from cloister.keys._time import moment, stamp
from cloister.manifest import producer_of
from cloister.wire import Envelope, labelled_digest, parse_message

__all__ = ["challenge", "collect_challenge", "collect_subject", "grant_attempt", "grant_run", "manifest_of"]

MAX_ATTEMPTS = 1000  # of one stage in one run; a stage that failed so often will not be healed by another try


def manifest_of(envelope: Envelope) -> str:
    """The manifest that a grant claims to be of, *before* its signature is checked: to learn whose it must be.

    Raises:
        InputError: 2002, 2003, 2005 when the payload is no grant.
    """
    cls = AttemptGrant if envelope.payloadType == AttemptGrant.LABEL else RunGrant
    return parse_message(cls, envelope.payload, what=cls.LABEL, max_bytes=1 << 16).manifest


def grant_run(ctx: Context, prepared: Prepared[RunRequest]) -> Outcome:
    """Numbers a run."""
    agreement = ctx.agreement(prepared.body.manifest)
    _require_registrar(ctx, agreement)
    run = ctx.entropy(16).hex()

    def reply(_receipt: LogReceipt) -> RunGrant:
        return RunGrant(manifest=agreement.id, run=run, registrar=agreement.name, issued_at=ctx.at)

    return Outcome(reply, entry=RunEntry(at=ctx.at, manifest=agreement.id, run=run))


def grant_attempt(ctx: Context, prepared: Prepared[AttemptRequest]) -> Outcome:
    """Numbers the next attempt at a stage, until the stage is registered."""
    agreement = ctx.agreement(manifest_of(prepared.body.run))
    _require_registrar(ctx, agreement)
    with ctx.trace.rule("the run was granted here"):
        run = agreement.open_run(prepared.body.run).run
        if ctx.state.runs.get(run) != agreement.id:
            raise RefusedError(3427, got=run)
    with ctx.trace.rule("the stage exists"):
        consumer = agreement.consumer(prepared.body.consumer)
    with ctx.trace.rule("the stage is not registered"):
        require_open(ctx.state, agreement.id, run, consumer.name)
    attempt = ctx.state.attempts.get((agreement.id, run, consumer.name), 0) + 1
    with ctx.trace.rule("attempts are left"):
        if attempt > MAX_ATTEMPTS:
            raise RefusedError(3425, expected=f"at most {MAX_ATTEMPTS} attempts of a stage")

    def reply(_receipt: LogReceipt) -> AttemptGrant:
        return AttemptGrant(manifest=agreement.id, run=run, consumer=consumer.name, attempt=attempt, issued_at=ctx.at)

    return Outcome(
        reply,
        entry=AttemptEntry(at=ctx.at, manifest=agreement.id, run=run, consumer=consumer.name, attempt=attempt),
    )


def challenge(ctx: Context, prepared: Prepared[ChallengeRequest]) -> Outcome:
    """Opens a session for an attempt."""
    agreement = ctx.agreement(manifest_of(prepared.body.grant))
    with ctx.trace.rule("the registrar granted the attempt"):
        grant = agreement.open_attempt(prepared.body.grant)
        agreement.consumer(grant.consumer)
    with ctx.trace.rule("the stage is not registered"):
        require_open(ctx.state, agreement.id, grant.run, grant.consumer)
    return _open_session(ctx, agreement.id, grant.digest())


def collect_challenge(ctx: Context, prepared: Prepared[CollectChallengeRequest]) -> Outcome:
    """Opens a session for a party that collects an output."""
    body = prepared.body
    agreement = ctx.agreement(body.manifest)
    with ctx.trace.rule("the output is released to the party"):
        agreement.term(body.output, kind="party", name=body.party)
        stage = producer_of(agreement.manifest, body.output) or ""
        if (agreement.id, body.run, stage) not in ctx.state.registered:  # nobody opens sessions for what is not there
            raise RefusedError(3417, f"stage {stage!r}, which makes {body.output!r}, is not registered here")
    subject = collect_subject(manifest=body.manifest, run=body.run, output=body.output, party=body.party)
    return _open_session(ctx, agreement.id, subject)


def collect_subject(*, manifest: str, run: str, output: str, party: str) -> str:
    """What a collecting party's session is for."""
    fields = {"manifest": manifest, "run": run, "output": output, "party": party}
    return labelled_digest("cloister/collect-session/v1", fields)


def require_open(state: State, manifest: str, run: str, consumer: str) -> None:
    """Returns when the stage has no registration.

    Raises:
        RefusedError: 3415 when it has.
    """
    done = state.registered.get((manifest, run, consumer))
    if done is not None:
        raise RefusedError(3415, f"stage {consumer!r} was registered by attempt {done[1].attempt}")


def _open_session(ctx: Context, manifest: str, subject: str) -> Outcome:
    expires_at = stamp(moment(ctx.at) + timedelta(seconds=ctx.settings.session_s))
    session = Session(ctx.entropy(16).hex(), ctx.entropy(32), subject, expires_at, manifest)
    with ctx.trace.rule("sessions are left"):
        ctx.sessions.add(session, now=ctx.at)
    return Outcome(plain=Challenge(key_manager=ctx.me, session=session.id, nonce=session.nonce, expires_at=expires_at))


def _require_registrar(ctx: Context, agreement: Agreement) -> None:
    with ctx.trace.rule("this key manager is the registrar"):
        if agreement.manifest.registrar != agreement.name:
            raise RefusedError(3426, expected=agreement.manifest.registrar, got=agreement.name)
