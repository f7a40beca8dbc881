"""From events to ε and δ: the tight answer, the loose one beside it, and a refusal when they contradict each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from cloister.errors import BudgetError, InputError, IntegrityError
from cloister.ledger._events import Event, Unaccounted, merged, slack_of
from cloister.ledger._numbers import amount, exact, float_down, significant_up
from cloister.ledger._pld import LossDistribution, supports
from cloister.ledger._relation import Method, Relation
from cloister.ledger._renyi import delta_at, divergences, epsilon_at
from cloister.ledger._slack import with_slack

__all__ = ["Account", "Spent"]

_GRID = 10**6
_MOST_EPSILON = 500  # e^ε is beyond any meaning long before
_MOST_EVENTS = 64  # each may take a second; equal ones are one


@dataclass(frozen=True, slots=True)
class Spent:
    """What events cost: (``epsilon``, ``delta``) holds, and the numbers behind it.

    Attributes:
        epsilon: The bound, decimal text rounded up; None when there is none.
        delta: At this δ, decimal text rounded up.
        by: Which method ``epsilon`` or ``delta`` is of.
        pld: The answer by privacy loss distributions, or None.
        rdp: The answer by Rényi divergence alone, or None.
        slack: Total variation distance between real and ideal mechanisms; it is in both answers.
        unknown: Why the guarantee is void; empty when it is not.
        remark: Why ``by`` is not ``pld``, when privacy loss distributions were asked for; else empty.
    """

    epsilon: str | None
    delta: str
    by: Method
    pld: str | None
    rdp: str | None
    slack: str
    unknown: tuple[str, ...] = ()
    remark: str = ""


class Account:
    """The composition of events whose parameters did not depend on what earlier ones released.

    Composition holds for mechanisms that see each other's results, as steps of a training do; their *parameters* must
    be fixed beforehand, or be charged to a :class:`cloister.ledger.Book`, whose rules hold for adaptive ones too.

    Args:
        events: At least one, all of one unit and one relation.
        by: ``Method.PLD`` needs the extra ``privacy``. It also computes ε by Rényi divergence, with code that shares
            nothing with the first, and refuses when the tight answer is above the loose one.

    Raises:
        InputError: 2802 when units or relations differ, or there is no event; 2803 with more than 64 different
            events; 2006 without the extra.
    """

    def __init__(self, events: Sequence[Event], *, by: Method = Method.PLD) -> None:
        if not events or len({(event.unit, event.relation) for event in events}) != 1:
            raise InputError(2802, "an account is of one unit and one relation", got=_kinds(events))
        self.unit: str = events[0].unit
        self.relation: Relation = events[0].relation
        self.events = tuple(events)
        self.unknown = tuple(event.reason for event in events if isinstance(event, Unaccounted))
        self.slack = min(Fraction(1), sum((slack_of(event) for event in events), Fraction(0)))
        distinct = merged(events)
        if len(distinct) > _MOST_EVENTS:
            raise InputError(2803, expected=f"at most {_MOST_EVENTS}", got=len(distinct))
        self._rdp = divergences(distinct)
        self._pld: LossDistribution | None = None
        self._remark = ""
        if by is Method.PLD and not self.unknown:
            ideal = [event for event in distinct if supports(event)]
            if len(ideal) == len(distinct):
                self._pld = LossDistribution(ideal)
            else:
                self._remark = "a selection among trials has no privacy loss distribution that is known"

    def epsilon(self, delta: str) -> Spent:
        """The smallest ε at ``delta``, to six digits after the point, rounded up.

        Raises:
            InputError: 2801 when ``delta`` is not a number below 1.
            BudgetError: 7803 when the slack alone is more than ``delta``.
            IntegrityError: 5803 when the accountants contradict each other.
        """
        target = exact(delta, what="delta")
        if target >= 1:
            raise InputError(2801, "delta is out of range", expected="0 to 1", got=delta)
        if self.unknown:
            return self._void(amount(delta))
        if self.slack and Fraction(with_slack(epsilon=Fraction(0), delta=0.0, slack=self.slack)) > target:
            raise BudgetError(7803, expected=f"a delta above {significant_up(2 * self.slack)}", got=amount(delta))
        loosely, tightly = epsilon_at(self._rdp, float_down(target)), self._pld
        rdp = self._least(lambda epsilon: delta_at(self._rdp, epsilon), target, loosely)
        pld, remark = None, self._remark
        silent = "" if tightly is None else tightly.silent(float_down(target))
        if tightly is not None and not silent:
            pld = self._least(tightly.delta, target, tightly.epsilon(float_down(target)))
            # what floating point may have lost is in the tight answer, so the loose one is asked for less δ
            lost = 2 * tightly.numeric
            _agree(
                pld, self._least(lambda epsilon: delta_at(self._rdp, epsilon) + lost, target, loosely), tightly, target
            )
        remark = silent or remark
        best = pld if pld is not None else rdp
        return self._spent(best, amount(delta), pld, rdp, remark)

    def delta(self, epsilon: str) -> Spent:
        """The smallest δ at ``epsilon``, to four digits, rounded up; ``pld`` and ``rdp`` are then two δ.

        Raises:
            InputError: 2801 when ``epsilon`` is not a number of at most 500.
            IntegrityError: 5803 when the accountants contradict each other.
        """
        at = exact(epsilon, what="epsilon")
        if at > _MOST_EPSILON:
            raise InputError(2801, "epsilon is out of range", expected=f"0 to {_MOST_EPSILON}", got=epsilon)
        if self.unknown:
            return self._void("1")
        rdp = significant_up(self._real(delta_at(self._rdp, float_down(at)), at))
        pld, silent = None, "" if self._pld is None else self._pld.silent()
        if self._pld is not None and not silent:
            pld = significant_up(self._real(self._pld.delta(float_down(at)), at))
            # a distribution that is off by the tolerance in ε may be above, and by its numeric part in δ
            nearer = float_down(at) - self._pld.tolerance(max(float(exact(pld)), 1e-15))
            loose = delta_at(self._rdp, max(0.0, nearer)) + 2 * self._pld.numeric
            if exact(pld) > exact(significant_up(self._real(loose, at))) * Fraction(101, 100):
                raise IntegrityError(5803, expected=f"a delta of at most {rdp}", got=pld)
        # both bound δ, and where the true one is below what floating point resolves, only the loose one shows it
        best, by = (rdp, Method.RDP) if pld is None or exact(rdp) < exact(pld) else (pld, Method.PLD)
        return Spent(amount(epsilon), best, by, pld, rdp, significant_up(self.slack), remark=silent or self._remark)

    def _real(self, ideal: float, epsilon: Fraction) -> float:
        return with_slack(epsilon=epsilon, delta=ideal, slack=self.slack)

    def _least(self, ideal: Callable[[float], float], target: Fraction, near: float) -> str | None:
        """The smallest ε of the decimal grid at which the real δ is within ``target``: every probe is a sound bound.

        ``near`` is where to begin; it saves probes, and no answer rests on it.
        """

        def holds(steps: int) -> bool:
            epsilon = Fraction(steps, _GRID)
            return Fraction(self._real(ideal(float_down(epsilon)), epsilon)) <= target

        most = _MOST_EPSILON * _GRID
        high = min(most, math.ceil(near * _GRID)) if near < _MOST_EPSILON else most
        low, stride = high - 1, 1
        while not holds(high):
            if high == most:
                return None
            low, high, stride = high, min(most, high + stride), stride * 4
        stride = 1
        while low >= 0 and holds(low):
            high, low, stride = low, max(-1, low - stride), stride * 4
        while high - low > 1:
            middle = (high + low) // 2
            low, high = (low, middle) if holds(middle) else (middle, high)
        return amount(Fraction(high, _GRID))

    def _spent(self, best: str | None, delta: str, pld: str | None, rdp: str | None, remark: str) -> Spent:
        by = Method.RDP if pld is None else Method.PLD
        return Spent(best, delta, by, pld, rdp, significant_up(self.slack), remark=remark)

    def _void(self, delta: str) -> Spent:
        return Spent(None, delta, Method.RDP, None, None, significant_up(self.slack), unknown=self.unknown)


def _agree(pld: str | None, rdp: str | None, by: LossDistribution, target: Fraction) -> None:
    """Returns unless the tight answer is above the loose one by more than its grid explains.

    Raises:
        IntegrityError: 5803 when it is: one of the two is wrong, and nobody can say which.
    """
    tight = Fraction(_MOST_EPSILON) if pld is None else exact(pld)
    if rdp is not None and tight > exact(rdp) + Fraction(by.tolerance(float_down(target))):
        raise IntegrityError(5803, expected=f"an epsilon of at most {rdp}", got=pld)


def _kinds(events: Sequence[Event]) -> str:
    return ", ".join(sorted({f"{event.unit} ({event.relation.value})" for event in events})) or "no events"
