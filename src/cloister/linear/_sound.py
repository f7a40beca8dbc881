"""That the parts of an agreement hold together, and that what it asks for has a proof: asked before it is signed."""

from __future__ import annotations

from fractions import Fraction

from cloister.errors import BudgetError, InputError
from cloister.ledger import Gaussian, Method, Price, amount, price_of
from cloister.linear._agreement import Agreement
from cloister.linear._budget import Budget, budget_of
from cloister.linear._noise import Privacy
from cloister.linear._plan import MOST_FEATURES, MOST_PARTIES, exact
from cloister.linear._terms import LogisticTerms
from cloister.manifest._text import skeleton
from cloister.wire import VerifyKey

__all__ = ["price_of_privacy", "privacy_event", "privacy_of", "require_sound"]


def require_sound(agreement: Agreement) -> Budget:
    """The budget of an agreement whose parts hold together and whose numbers every part of the protocol has room for.

    Raises:
        InputError: 2324 when two parties' names look alike; 2005 when a key, an address, a column or the response is
            none or stands there twice; 2901 when the parameters exceed the proven bounds; 2905 when a scale is not
            positive; 2909 when there are too many features or not 2 to 8 parties.
        BudgetError: 7805 when the privacy terms cost more than their ε; 7803 as :func:`price_of_privacy`.
    """
    _require_parties(agreement)
    _require_columns(agreement)
    if agreement.valid.not_before > agreement.valid.not_after:
        raise InputError(2005, "the agreement ends before it begins", got=agreement.valid.not_after)
    plan, *again = agreement.plans()
    found = budget_of(plan, fits=agreement.fits, again=again[0] if again else None, malicious=agreement.malicious)
    found.require_room()
    if agreement.privacy is not None:
        stated, cost = agreement.privacy.epsilon, price_of_privacy(agreement).epsilon
        if cost is None or exact(cost) > exact(stated):
            raise BudgetError(7805, expected=f"ε at most {stated}", got=cost or "more than can be stated")
    return found


def privacy_of(agreement: Agreement) -> Privacy:
    """The noise that each party adds to its own statistics.

    Raises:
        InputError: 2005 without privacy terms; 2801, 2901 when a number is out of range.
    """
    terms = agreement.privacy
    if terms is None:
        raise InputError(2005, "the agreement has no privacy terms")
    return Privacy(
        clip=float(exact(terms.clip)), noise_multiplier=amount(max(Fraction(0), exact(terms.noise_multiplier)))
    )


def privacy_event(agreement: Agreement) -> Gaussian:
    """What a session does to each party's records; raises as :func:`privacy_of`."""
    return privacy_of(agreement).event(columns=len(agreement.columns) + 2, releases=agreement.fits)


def price_of_privacy(agreement: Agreement) -> Price:
    """What the noise costs at the terms' δ, by Rényi divergence.

    Raises:
        InputError: as :func:`privacy_of`.
        BudgetError: 7803 when the slack alone is more than δ.
    """
    event = privacy_event(agreement)
    delta = agreement.privacy.delta if agreement.privacy else "0"
    return price_of([event], delta=amount(max(Fraction(0), exact(delta))), by=Method.RDP)


def _require_parties(agreement: Agreement) -> None:
    parties = agreement.parties
    if not 2 <= len(parties) <= MOST_PARTIES:
        raise InputError(2909, "not that many parties", expected=f"2 to {MOST_PARTIES}", got=len(parties))
    seen: dict[str, str] = {}
    for party in parties:
        other = seen.setdefault(skeleton(party.name), party.name)
        if other != party.name:
            raise InputError(2324, f"'{party.name}' is easily taken for '{other}'")
    for what, values in (
        ("name", [party.name for party in parties]),
        ("key", [str(VerifyKey.parse(party.key)) for party in parties]),
        ("address", [party.address.lower() for party in parties]),
    ):
        if len(set(values)) != len(values):
            raise InputError(2005, f"two parties have one {what}", got=", ".join(values)[:160])


def _require_columns(agreement: Agreement) -> None:
    names = agreement.columns
    if len(names) > MOST_FEATURES:
        raise InputError(2909, "too many columns", expected=f"at most {MOST_FEATURES}", got=len(names))
    given = [*(feature.name for feature in agreement.features), agreement.response.name]
    twice = next((name for some in (tuple(given), names) for name in some if some.count(name) > 1), None)
    if twice is not None:
        raise InputError(2005, f"two columns are called '{twice}'")
    if isinstance(agreement.model, LogisticTerms) != (agreement.response.labels is not None):
        why = "labels belong to the response of a logistic model, and only there"
        raise InputError(2005, why, got=agreement.model.type)
