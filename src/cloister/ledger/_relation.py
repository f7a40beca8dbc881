"""Who counts as a neighbour: the convention that decides what a noise multiplier means."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Method", "Relation"]


class Relation(StrEnum):
    """When two datasets are neighbours. No default anywhere: half of all wrong ε come from a silent one.

    One *unit* is what the ledger's ``unit`` names (a record, a patient with all her records). The noise multiplier of
    an event is always the noise's scale over the bound on *one unit's contribution*, whatever the relation:

    * ``ADD_OR_REMOVE_ONE``: one unit is added or removed. Both directions are counted, the worse one is the answer.
    * ``REPLACE_SPECIAL``: one unit is exchanged for one that contributes nothing. The same numbers as above; unlike
      above, the number of units may be public.
    * ``REPLACE_ONE``: one unit is exchanged for any other. Two contributions change, so the sensitivity is twice the
      bound, and ε roughly doubles.
    """

    ADD_OR_REMOVE_ONE = "add-or-remove-one"
    REPLACE_ONE = "replace-one"
    REPLACE_SPECIAL = "replace-special"

    @property
    def contributions(self) -> int:
        """How many units' contributions differ between neighbours: 1, or 2 under ``REPLACE_ONE``."""
        return 2 if self is Relation.REPLACE_ONE else 1


class Method(StrEnum):
    """How ε is found: by privacy loss distributions (needs the extra ``privacy``), or by Rényi divergence alone."""

    PLD = "pld"
    RDP = "rdp"
