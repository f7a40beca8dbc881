"""The modes, as tables: what each worker is given, what it multiplies, how the answers make the product.

``x``, ``w`` are the layer's input and weight, ``d`` the gradient of its output. A *secret* operand travels as pieces
that are each uniform and independent of it; a *public* one (a published weight) as it is. One row serves forward and
both gradients, because all three are bilinear.

===========  =======  ==================================  =====================================  =====================
mode         workers  one worker learns                   two together learn                     product
===========  =======  ==================================  =====================================  =====================
``verify``   1        everything: x, w, d                                                        ``y``
``blind``    1        w, which is public                                                         ``y0 - z``, ``z`` made
                                                                                                 in the enclave, ahead
``blind2``   2        w, which is public                  x and d                                ``y0 - y1``
``shared3``  3        nothing                             everything: x, w, d                    ``(y0+y1-2*y2) / 2``
``shared5``  3        nothing                             everything: x, w, d                    ``y0 + y1 + y2``
===========  =======  ==================================  =====================================  =====================

In every mode a worker, and whoever watches its link, sees shapes, the order of products and their times: the model's
architecture and batch size, and whether the run went on. The enclave's host sees these of all workers together.
Whatever a mode hides, a wrong answer is caught in all of them.

``shared3`` evaluates the two polynomials ``x + tV`` and ``w + tU`` at ``t = 1``, ``-1`` and infinity, and interpolates
the product's value at 0: each worker multiplies once. ``shared5`` is Goten as its authors published it (AAAI 2021):
additive shares and a Beaver triple, five products and a pad on each answer.

>>> SCHEMES["shared3"].products, SCHEMES["shared5"].products
(3, 5)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["LEAKAGE", "SCHEMES", "Leakage", "Mode", "Piece", "Scheme", "WorkerTerm"]

Mode = Literal["verify", "blind", "blind2", "shared3", "shared5"]


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of an operand that one worker holds.

    Attributes:
        worker: Who holds it.
        name: How the worker's products call it.
        sign: The operand's coefficient in it: 0 for a keystream that knows nothing of the operand.
        mask: The keystream's coefficient in it: 0 for the operand as it is.
        stream: Which keystream: ``mask`` is the operand's own, ``share`` the one of additive shares.
    """

    worker: int
    name: str
    sign: Literal[0, 1]
    mask: Literal[-1, 0, 1]
    stream: Literal["mask", "share"] = "mask"


@dataclass(frozen=True, slots=True)
class WorkerTerm:
    """One summand that one worker adds or subtracts: pieces of the left and the right operand, by name."""

    worker: int
    sign: Literal[1, -1]
    left: str
    right: str


@dataclass(frozen=True, slots=True)
class Scheme:
    """One mode.

    Attributes:
        mode: Its name.
        workers: How many, who do not collude where there are several.
        secret: The pieces of an operand that must stay hidden.
        public: The pieces of one that need not; empty where the mode hides every operand.
        terms: What each worker sums.
        coefficients: What the enclave multiplies each worker's answer with.
        halved: The weighted sum is twice the product: it is checked to be even, then halved, which costs one bit of
            range.
        padded: Each of the first two workers adds a pad to its answer.
        precomputed: The enclave subtracts the product of the mask, which it made ahead.
    """

    mode: Mode
    workers: int
    secret: tuple[Piece, ...]
    terms: tuple[WorkerTerm, ...]
    coefficients: tuple[int, ...]
    public: tuple[Piece, ...] = ()
    halved: bool = False
    padded: tuple[int, ...] = ()
    precomputed: bool = False

    @property
    def products(self) -> int:
        """Ring products that all the workers make for one product of the layer."""
        return len({(term.worker, term.right) for term in self.terms})

    @property
    def limit(self) -> int:
        """The magnitude that a product must stay below, for the ring to hold it."""
        return 1 << (30 if self.halved else 31)


_VERIFY = Scheme(
    "verify",
    workers=1,
    secret=(Piece(0, "plain", 1, 0),),
    public=(Piece(0, "plain", 1, 0),),
    terms=(WorkerTerm(0, 1, "plain", "plain"),),
    coefficients=(1,),
)
_BLIND = Scheme(
    "blind",
    workers=1,
    secret=(Piece(0, "masked", 1, 1),),
    public=(Piece(0, "plain", 1, 0),),
    terms=(WorkerTerm(0, 1, "masked", "plain"),),
    coefficients=(1,),
    precomputed=True,
)
_BLIND2 = Scheme(
    "blind2",
    workers=2,
    secret=(Piece(0, "masked", 1, 1), Piece(1, "masked", 0, 1)),
    public=(Piece(0, "plain", 1, 0), Piece(1, "plain", 1, 0)),
    terms=(WorkerTerm(0, 1, "masked", "plain"), WorkerTerm(1, 1, "masked", "plain")),
    coefficients=(1, -1),
)
_SHARED3 = Scheme(
    "shared3",
    workers=3,
    secret=(Piece(0, "at +1", 1, 1), Piece(1, "at -1", 1, -1), Piece(2, "at infinity", 0, 1)),
    terms=(
        WorkerTerm(0, 1, "at +1", "at +1"),
        WorkerTerm(1, 1, "at -1", "at -1"),
        WorkerTerm(2, 1, "at infinity", "at infinity"),
    ),
    coefficients=(1, 1, -2),
    halved=True,
)
_SHARED5 = Scheme(
    "shared5",
    workers=3,
    secret=(
        Piece(0, "share", 0, 1, "share"),
        Piece(0, "difference", 1, -1),
        Piece(1, "share", 1, -1, "share"),
        Piece(1, "difference", 1, -1),
        Piece(2, "mask", 0, 1),
    ),
    terms=(
        WorkerTerm(0, 1, "share", "difference"),
        WorkerTerm(0, 1, "difference", "share"),
        WorkerTerm(1, 1, "share", "difference"),
        WorkerTerm(1, -1, "difference", "difference"),
        WorkerTerm(1, 1, "difference", "share"),
        WorkerTerm(2, 1, "mask", "mask"),
    ),
    coefficients=(1, 1, 1),
    padded=(0, 1),
)

SCHEMES: dict[Mode, Scheme] = {scheme.mode: scheme for scheme in (_VERIFY, _BLIND, _BLIND2, _SHARED3, _SHARED5)}


@dataclass(frozen=True, slots=True)
class Leakage:
    """What a mode lets whom learn, in a line each.

    Attributes:
        one_worker: One worker by itself, with its link.
        two_workers: Two of them together.
        host: Whoever runs the enclave's machine and watches all links.
    """

    one_worker: str
    two_workers: str
    host: str


_SHAPES = "shapes, order and times of the products, and whether the run went on"
_NOBODY = "there are no two"

LEAKAGE: dict[str, Leakage] = {
    "enclave": Leakage("there is none", _NOBODY, "the times of memory accesses, as of anything in an enclave"),
    "verify": Leakage("inputs, weights and gradients: everything but the labels", _NOBODY, _SHAPES),
    "blind": Leakage(f"the public weights; {_SHAPES}", _NOBODY, _SHAPES),
    "blind2": Leakage(f"the public weights; {_SHAPES}", "inputs and gradients", _SHAPES),
    "shared3": Leakage(_SHAPES, "inputs, weights and gradients", _SHAPES),
    "shared5": Leakage(_SHAPES, "inputs, weights and gradients", _SHAPES),
}
"""What each mode leaks."""
