"""A fit with the other parties, as a party runs it: consent, journal, links, session, and the model's file.

Nothing is sent before everything that can be refused at home was: signatures, pinned keys, dates, budget, rows.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cloister.errors import CloisterError, InputError, RefusedError
from cloister.linear._agreed_rows import summary_of
from cloister.linear._agreement import Agreement
from cloister.linear._consent import Signed, require_in_force, require_pinned, require_signed
from cloister.linear._journal import Journal
from cloister.linear._link import Traffic
from cloister.linear._meeting import connect
from cloister.linear._model import ModelFile, write_model
from cloister.linear._rows import Part
from cloister.linear._session import run_session
from cloister.linear._summary import Summary
from cloister.party import Identity, Pins
from cloister.wire import write_private

__all__ = ["Fit", "Told", "fit_agreed", "own_place", "timestamp"]

Told = Callable[[str, Traffic], None]
_AGAIN = 6906


@dataclass(frozen=True, slots=True)
class Fit:
    """What came of it.

    Attributes:
        file: The model, signed by all.
        kept: Where it lies in the home folder, whatever becomes of it elsewhere.
        traffic: Of this party, by phase.
    """

    file: ModelFile
    kept: Path
    traffic: dict[str, Traffic]


def timestamp() -> str:
    """The time, as agreements and journals write it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def own_place(agreement: Agreement, identity: Identity, home: Path) -> int:
    """One's own number in an agreement of which every key is pinned.

    Raises:
        RefusedError: 3305 when the agreement does not name this identity with its key; 3302, 3303 for another's key.
    """
    party = agreement.number_of(identity.name)
    if party is None or agreement.parties[party].key != str(identity.signing_key.public):
        raise RefusedError(3305, f"the agreement does not name '{identity.name}' with its key")
    require_pinned(agreement, {**Pins(home).all(), identity.name: identity.public})
    return party


def fit_agreed(
    signed: Signed,
    part: Part,
    *,
    identity: Identity,
    home: Path,
    consent: bool = False,
    charge: Callable[[], object] | None = None,
    listen: str | None = None,
    told: Callable[[], AbstractContextManager[Told | None]] | None = None,
) -> Fit:
    """The model of an agreement, together with its other parties, who do the same at the same time.

    Args:
        signed: The agreement with all signatures.
        part: The own rows, in the agreed columns.
        identity: The own one.
        home: Its folder, with pins and journal.
        consent: Whether this agreement may run once more though it has run before.
        charge: Charges the owner's privacy budget; called before the rows are read. Needed where there are privacy
            terms.
        listen: ``HOST:PORT`` instead of the agreed port on all addresses.
        told: Opened around each session; what it gives is told the phase and its traffic after every step.

    Raises:
        RefusedError: 3301, 3302, 3303, 3305, 3403, 3903 as consent has it; 3901 when consent is needed once more;
            3902 when the fit did not converge.
        InputError: 2019 when nothing would charge a private agreement; 29xx when the rows break what was agreed.
        PeerError: 69xx as the links have it.
        IntegrityError: 59xx when somebody cheats.
    """
    agreement = signed.agreement
    party = own_place(agreement, identity, home)
    require_signed(signed)
    require_in_force(agreement, at=timestamp())
    if agreement.privacy is not None and charge is None:
        raise InputError(2019, "the agreement has privacy terms, and no book is there to be charged")
    journal = Journal(home, agreement.id, identity.name)
    if consent:
        journal.consent(at=timestamp())
    journal.require_consent()  # before a budget is charged, and again when a session begins
    if charge is not None:
        charge()
    summary = summary_of(agreement, party, part)
    while True:
        try:
            return _once(agreement, party, part, summary, identity, journal, listen, told)
        except CloisterError as error:
            if error.code != _AGAIN:  # the journal counts how often
                raise


def _once(
    agreement: Agreement,
    party: int,
    part: Part,
    summary: Summary,
    identity: Identity,
    journal: Journal,
    listen: str | None,
    told: Callable[[], AbstractContextManager[Told | None]] | None,
) -> Fit:
    with journal.session(at=timestamp()) as serial:
        phase = "session"
        try:
            with (
                told() if told is not None else nullcontext() as tell,
                connect(agreement, party, identity.signing_key, listen=listen, told=tell) as channel,
            ):
                try:
                    released = run_session(channel, agreement, summary, identity=identity, part=part)
                finally:
                    phase = channel.furthest
        except BaseException as error:
            code = error.code if isinstance(error, CloisterError) else None
            journal.failed(serial, code=code, phase=phase, at=timestamp())
            raise
        file, kept = write_model(agreement, released), journal.path.with_suffix(f".{serial}.model.json")
        try:
            write_private(kept, file.canonical() + b"\n")
        except OSError as error:
            raise InputError(2001, f"cannot write the model: {error.strerror}: '{kept}'") from error
        finally:
            journal.released(serial, at=timestamp())
    return Fit(file, kept, channel.traffic)
