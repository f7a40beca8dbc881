"""Decisions about outputs: register them once, hand a party its part."""

from __future__ import annotations

from cloister.errors import IntegrityError, RefusedError
from cloister.keys._agreement import attested, peek, signed_by
from cloister.keys._attempts import collect_subject
from cloister.keys._binding import PART_BYTES, collect_info, share_info
from cloister.keys._context import Context, Outcome, Prepared
from cloister.keys._entries import CollectEntry, RegistrationEntry, ReleaseEntry
from cloister.keys._messages import (
    Collected,
    CollectRequest,
    LogReceipt,
    Registration,
    RegistrationReceipt,
    RegistrationRequest,
    open_signed,
)
from cloister.keys._plan import Agreement, Consumer
from cloister.keys._receipts import require_receipt
from cloister.keys._release import released_input
from cloister.keys._state import checkpoint_id, share_id
from cloister.manifest import producer_of
from cloister.wire import Envelope, SealingKey, Secret, digest

__all__ = ["collect", "register"]


def register(ctx: Context, prepared: Prepared[RegistrationRequest]) -> Outcome:
    """Ends a stage with what one attempt made. First at the registrar; elsewhere only with the registrar's receipt."""
    request = prepared.body
    claimed = peek(Registration, request.registration)
    agreement = ctx.agreement(claimed.manifest)
    with ctx.trace.rule("the attempt was released here"):
        consumer = agreement.consumer(claimed.stage)
        source = ctx.state.released.get((agreement.id, claimed.run, claimed.stage, claimed.attempt))
        if source is None or consumer.is_service:
            raise RefusedError(3431, f"attempt {claimed.attempt} of {claimed.stage!r} got no keys here")
    with ctx.trace.rule("signed by the attested key"):
        registration = attested(Registration, request.registration, source)
    with ctx.trace.rule("the outputs are the stage's"):
        _require_complete(registration, agreement, consumer, source)
    statement = digest(request.registration.payload)
    if agreement.name != agreement.manifest.registrar:
        with ctx.trace.rule("the registrar registered it"):
            _require_registrar(request.registrar, agreement, statement)
    entry = RegistrationEntry(
        at=ctx.at,
        manifest=agreement.id,
        run=registration.run,
        stage=registration.stage,
        attempt=registration.attempt,
        registration=statement,
        outputs=registration.outputs,
        receipt=registration.receipt,
    )

    def reply(receipt: LogReceipt) -> RegistrationReceipt:
        return RegistrationReceipt(
            key_manager=ctx.me,
            manifest=agreement.id,
            run=registration.run,
            stage=registration.stage,
            attempt=registration.attempt,
            registration=statement,
            outputs=registration.outputs,
            receipt=receipt,
        )

    done = ctx.state.registered.get((agreement.id, registration.run, registration.stage))
    with ctx.trace.rule("registered once"):
        if done is not None and done[1].registration != statement:
            raise RefusedError(3429, expected=done[1].registration, got=statement)
    if done is not None:
        return Outcome(reply, old=done)
    with ctx.trace.rule("the launcher's share opens"):
        share = _open_share(ctx, registration, agreement.name)
    put = {share_id(agreement.id, registration.run, registration.stage): share}
    # The stage has ended: nothing goes on from its checkpoints, and nobody opens them any more.
    ended = (checkpoint_id(agreement.id, registration.run, registration.stage),)
    return Outcome(reply, entry=entry, put=put, erase=ended if agreement.saves(registration.stage) else ())


def _require_complete(
    registration: Registration, agreement: Agreement, consumer: Consumer, source: ReleaseEntry
) -> None:
    if registration.outputs.keys() != consumer.outputs:
        expected, got = ", ".join(sorted(consumer.outputs)), ", ".join(sorted(registration.outputs))
        raise RefusedError(3432, expected=expected, got=got)
    if registration.shares.keys() != set(consumer.contributors):
        expected, got = ", ".join(consumer.contributors), ", ".join(sorted(registration.shares))
        raise RefusedError(3432, "the shares are not for the contributors", expected=expected, got=got)


def _require_registrar(envelope: Envelope | None, agreement: Agreement, statement: str) -> None:
    if envelope is None:
        raise RefusedError(3430, f"no receipt of the registrar {agreement.manifest.registrar!r} came with it")
    try:
        receipt = open_signed(RegistrationReceipt, envelope, agreement.registrar)
        require_receipt(receipt.receipt, agreement.registrar)
    except IntegrityError as error:
        raise IntegrityError(5402, expected=f"the registrar's key {agreement.registrar}", got=error.what) from None
    if receipt.registration != statement:
        raise RefusedError(
            3430, "the registrar registered something else", expected=receipt.registration, got=statement
        )


def _open_share(ctx: Context, registration: Registration, name: str) -> Secret:
    info = share_info(
        manifest=registration.manifest,
        run=registration.run,
        stage=registration.stage,
        attempt=registration.attempt,
        key_manager=name,
    )
    share = Secret(ctx.opening.open(registration.shares[name], info=info))
    if len(share) != PART_BYTES:
        raise RefusedError(3432, "the launcher's share has another size", expected=PART_BYTES, got=len(share))
    return share


def collect(ctx: Context, prepared: Prepared[Envelope]) -> Outcome:
    """Gives a party this key manager's part of an output that the manifest releases to it."""
    envelope = prepared.body
    claimed = peek(CollectRequest, envelope)
    agreement = ctx.agreement(claimed.manifest)
    with ctx.trace.rule("signed by the party"):
        request = signed_by(CollectRequest, envelope, agreement.manifest, claimed.party)
    with ctx.trace.rule("the session is open"):
        subject = collect_subject(manifest=agreement.id, run=request.run, output=request.output, party=request.party)
        session = ctx.take(request.session, subject=subject)
        if session.nonce != request.nonce:
            raise RefusedError(3424, "the nonce is not the session's")
    with ctx.trace.rule("the output is released to the party"):
        term = agreement.term(request.output, kind="party", name=request.party)
        used = ctx.state.term_uses[agreement.id, request.output, f"party:{request.party}"]
        if used >= term.uses:
            raise RefusedError(3411, f"output {request.output!r} was collected {used} times", expected=term.uses)
        if term.until is not None and term.until < ctx.at:
            raise RefusedError(3412, expected=f"until {term.until}", got=ctx.at)
    with ctx.trace.rule("no owner revoked what it is made of"):
        stage = producer_of(agreement.manifest, request.output) or ""
        for image in agreement.consumer(stage).reachable:
            if (agreement.id, image) in ctx.state.revoked:
                raise RefusedError(3410, f"image {image!r} was revoked")
    with ctx.trace.rule("the output is registered"):
        done = ctx.state.registered.get((agreement.id, request.run, stage))
        if done is None:
            raise RefusedError(3417, f"stage {stage!r}, which makes {request.output!r}, is not registered here")
    part = released_input(ctx, done[1], request.output)
    entry = CollectEntry(
        at=ctx.at,
        manifest=agreement.id,
        run=request.run,
        output=request.output,
        party=request.party,
        image=part.image,
        statement=digest(envelope.payload),
        assurance=part.assurance,
    )

    def reply(receipt: LogReceipt) -> Collected:
        key = SealingKey.parse(agreement.manifest.parties[request.party].hpke)
        info = collect_info(
            manifest=entry.manifest, run=entry.run, output=entry.output, party=entry.party, session=request.session
        )
        return Collected(
            key_manager=ctx.me,
            manifest=entry.manifest,
            run=entry.run,
            output=entry.output,
            party=entry.party,
            session=request.session,
            sealed=key.seal(part.canonical(), info=info),
            receipt=receipt,
        )

    return Outcome(reply, entry=entry)
