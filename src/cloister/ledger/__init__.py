"""Ledger: what privacy was spent, told as events, composed, and held to budgets. Pure mathematics.

An engine says what it did (:class:`SampledGaussian`, :class:`Laplace`, ...); an :class:`Account` says what that costs;
a :class:`Ledger` is the signed record of one run; a :class:`Book` holds an owner's :class:`Budget` across runs.

Rules:

* The neighbouring relation and the unit are said everywhere and converted nowhere: there is no default.
* Everything is rounded towards *more* spent. Signed numbers are exact decimals, never floats.
* ε is by privacy loss distributions (``dp-accounting``, the extra ``privacy``); Rényi divergence, computed here by
  code of its own, is the cross-check, and 5803 is raised when the tight answer is above the loose one.
* What cannot be counted makes ε *unknown*, in the answer and in every sum that it enters.
* A budget is charged before data is opened, and nothing is ever given back.
* Reading ledgers, adding :class:`Vector` and enforcing budgets by Rényi divergence need no extra.

>>> training = sampled_gaussian(
...     unit="patient",
...     relation=Relation.ADD_OR_REMOVE_ONE,
...     sampling_probability="64/50000",
...     noise_multiplier="1",
...     steps=23437,
... )
>>> Account([training], by=Method.RDP).epsilon("1e-5").epsilon
'1.146648'
"""

from cloister.ledger._account import Account, Spent
from cloister.ledger._budget import Book, Budget, Charge, Posting, Price, open_book, price_of, read_book
from cloister.ledger._calibrate import Calibrated, calibrate
from cloister.ledger._events import (
    Event,
    Gaussian,
    Laplace,
    Mechanism,
    SampledGaussian,
    Selection,
    Unaccounted,
    require_within,
    sampled_gaussian,
)
from cloister.ledger._ledger import (
    MAX_LEDGER_BYTES,
    Ledger,
    Line,
    begin_ledger,
    merge_ledgers,
    read_ledger,
    require_whole,
)
from cloister.ledger._numbers import Amount, Ratio, amount, exact, ratio, significant_up
from cloister.ledger._relation import Method, Relation
from cloister.ledger._slack import noise_slack, with_slack
from cloister.ledger._training import LEDGER_FILE, ORDER_VARIABLE, StageOrder, TrainingOrder
from cloister.ledger._vector import NOTHING, ORDERS, UNBOUNDED, Vector, total_of, vector_of

__all__ = [
    "LEDGER_FILE",
    "MAX_LEDGER_BYTES",
    "NOTHING",
    "ORDERS",
    "ORDER_VARIABLE",
    "UNBOUNDED",
    "Account",
    "Amount",
    "Book",
    "Budget",
    "Calibrated",
    "Charge",
    "Event",
    "Gaussian",
    "Laplace",
    "Ledger",
    "Line",
    "Mechanism",
    "Method",
    "Posting",
    "Price",
    "Ratio",
    "Relation",
    "SampledGaussian",
    "Selection",
    "Spent",
    "StageOrder",
    "TrainingOrder",
    "Unaccounted",
    "Vector",
    "amount",
    "begin_ledger",
    "calibrate",
    "exact",
    "merge_ledgers",
    "noise_slack",
    "open_book",
    "price_of",
    "ratio",
    "read_book",
    "read_ledger",
    "require_whole",
    "require_within",
    "sampled_gaussian",
    "significant_up",
    "total_of",
    "vector_of",
    "with_slack",
]
