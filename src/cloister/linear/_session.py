"""A session between parties, from hello to signatures: what all of them open, signed by all of them.

A party that fails says so to the others by a code and wipes its key; nobody goes on. The model is returned only with
every party's signature over the same agreement, session, transcript and values: who has no signature of a peer does not
know that the peer holds this model, and refuses it (5912).
"""

from __future__ import annotations

from functools import partial

from cloister.linear._agreed_rows import newton_summary_of
from cloister.linear._agreement import Agreement
from cloister.linear._channel import Channel
from cloister.linear._compute import Job, Point, compute
from cloister.linear._logistic import first_point
from cloister.linear._model import MODEL_LABEL, Released, require_all_signed, signed_payload
from cloister.linear._party import Party
from cloister.linear._primes import DEGREE
from cloister.linear._rows import Part
from cloister.linear._session_hello import greet
from cloister.linear._statistics import entries_of
from cloister.linear._summary import Summary
from cloister.linear._terms import StatisticsTerms
from cloister.party import Identity

__all__ = ["job_of", "run_session"]

_SIGNATURE_BYTES = 64


def job_of(agreement: Agreement) -> Job:
    """What the parties of an agreement compute."""
    plan, *rounds = agreement.plans()
    model = agreement.model
    entries = entries_of(model.open, plan.columns + 1) if isinstance(model, StatisticsTerms) else None
    return Job(
        plan,
        newton=rounds[0] if rounds else None,
        rounds=agreement.fits - 1,
        first=partial(first_point, scaling=agreement.scaling()),
        entries=entries,
        malicious=agreement.malicious,
    )


def run_session(
    channel: Channel,
    agreement: Agreement,
    summary: Summary,
    *,
    identity: Identity,
    part: Part,
    degree: int = DEGREE,
) -> Released:
    """One session of an agreement that every party has signed.

    Args:
        channel: To the other parties.
        agreement: Signed and sound.
        summary: What the own rows come to, for the first fit.
        identity: The own one.
        part: The own rows; they are read again in each of Newton's rounds, and not otherwise.
        degree: N, less than 32768 in tests alone.

    Raises:
        IntegrityError: 59xx when somebody cheats; 5912 when a signature is missing at the end.
        PeerError: 69xx as the links have it; 6906 when the parties should begin again.
        RefusedError: 3902 when a fit did not converge: nothing of it was opened.
    """
    session = greet(channel, agreement, identity)
    party = Party(channel, session, malicious=agreement.malicious)

    def own(point: Point | None) -> Summary:
        return summary if point is None else newton_summary_of(agreement, party.number, part, point)

    try:
        values = compute(party, job_of(agreement), own, degree=degree)[-1]
    finally:
        party.wipe()
    channel.begin("release")
    transcript = party.transcript.digest()
    payload = signed_payload(agreement.id, session, transcript, values)
    own_signature = identity.signing_key.sign(MODEL_LABEL, payload)
    signatures = channel.swap("signature", [own_signature] * channel.parties, _SIGNATURE_BYTES)
    names = [member.name for member in agreement.parties]
    released = Released(session, transcript, values, dict(zip(names, signatures, strict=True)))
    require_all_signed(agreement, released)
    return released
