"""Privacy spent as eight whole numbers: they add exactly, in any language, without an accountant.

Each is an upper bound of the Rényi divergence at one fixed order, in units of 2^-20 nats, rounded up once an event.
Beside them goes the slack, which adds as an exact decimal. A key manager or a contract needs nothing else to hold a
budget: it adds, and compares with a cap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Annotated

from pydantic import Field

from cloister.ledger._events import Event, slack_of
from cloister.ledger._numbers import Amount, amount, exact, float_down, round_up
from cloister.ledger._renyi import divergences, epsilon_at
from cloister.ledger._slack import with_slack
from cloister.wire import Message

__all__ = ["NOTHING", "ORDERS", "UNBOUNDED", "Vector", "cap_at", "total_of", "vector_of"]

ORDERS = (3, 5, 8, 12, 18, 28, 40, 80)
"""The eight orders, for ever: a ledger written today must add to one written later. Over the usual range of DP-SGD they
cost a few hundredths of ε against all orders."""

UNBOUNDED = 2**53 - 1
"""What an order holds that shows nothing; adding to it leaves it."""

_UNITS = 2**20
_SLACK_PLACES = 48

Entry = Annotated[int, Field(ge=0, le=UNBOUNDED)]


class Vector(Message):
    """What was spent, additively.

    Attributes:
        rdp: For each of :data:`ORDERS` a divergence in units of 2^-20 nats, rounded up; 2^53 - 1 when unbounded.
        slack: Total variation distance between the real and the ideal transcripts.
    """

    rdp: Annotated[tuple[Entry, ...], Field(min_length=len(ORDERS), max_length=len(ORDERS))]
    slack: Amount

    def __add__(self, other: Vector) -> Vector:
        """Both together. Exact: the same whatever the order and the grouping, unbounded once one is."""
        return total_of((self, other))

    def epsilon(self, delta: str) -> str | None:
        """The ε that this shows at ``delta``, rounded up to six digits; None when none.

        Raises:
            InputError: 2801 when ``delta`` is no number.
        """
        allowed, slack = exact(delta), exact(self.slack)
        total = {order: entry / _UNITS for order, entry in zip(ORDERS, self.rdp, strict=True) if entry < UNBOUNDED}
        shown = epsilon_at(total, float_down(allowed))
        for _ in range(64):  # ε and the δ that slack takes at it determine each other; from below to the fixed point
            left = allowed - Fraction(with_slack(epsilon=Fraction(shown), delta=0.0, slack=slack)) if shown < 700 else 0
            if left <= 0:
                return None
            following = epsilon_at(total, float_down(Fraction(left)))
            if following <= shown:
                return round_up(shown, 6)
            shown = following * (1 + 2.0**-40) + 2.0**-40
        return None


NOTHING = Vector(rdp=(0,) * len(ORDERS), slack="0")
"""Nothing spent."""


def total_of(vectors: Iterable[Vector]) -> Vector:
    """The sum of any number of vectors."""
    rows = [NOTHING, *vectors]
    sums = tuple(min(UNBOUNDED, sum(column)) for column in zip(*(row.rdp for row in rows), strict=True))
    return Vector(rdp=sums, slack=amount(sum((exact(row.slack) for row in rows), Fraction(0))))


def vector_of(event: Event) -> Vector:
    """The event's vector: at each order no less than its divergence, by less than one unit and a part in 2^28."""
    by_order = divergences([event], ORDERS)
    slack = min(Fraction(1), slack_of(event))
    return Vector(rdp=tuple(_entry(by_order[order]) for order in ORDERS), slack=round_up(slack, _SLACK_PLACES))


def cap_at(order: int, *, epsilon: str, delta: Fraction) -> int:
    """The largest entry at ``order`` that still shows (epsilon, delta); negative when even 0 does not."""
    allowed = float_down(exact(epsilon)) - math.log1p(-1 / order)
    allowed += (math.log(float_down(delta)) + math.log(order)) / (order - 1)
    return math.floor(Fraction(allowed) * _UNITS) - 1 - math.ceil(abs(allowed) * _UNITS * 2.0**-40)


def _entry(divergence: float) -> int:
    if divergence == math.inf:
        return UNBOUNDED
    return min(UNBOUNDED, math.ceil(Fraction(divergence) * _UNITS))
