"""Ring: exact arithmetic on hidden integers, over Z_2^32.

A linear layer and its two gradients are one trilinear form (:class:`Product`). Its operands are rounded to a few bits
(:func:`quantise`), hidden under fresh uniform words (:class:`MaskSource`), multiplied by whoever has the fastest
hardware (:class:`RingKernels`), and what comes back is unmasked, held to its bound and checked (:func:`recover`,
:func:`draw`). Nothing here knows of models, workers or networks: :mod:`cloister.offload` does.

Rules:

* Arithmetic is exact. Every kernel gives the same bits, on any device, and no product can leave the ring's range: its
  bound follows from shapes and bits alone (:func:`parts`).
* Plain, masked and shared tensors are different types (:class:`Quantised`, :class:`Masked`, :class:`Share`).
* A mask hides one exact integer tensor. Keys are drawn at every start and never saved; a :class:`MaskLedger` raises
  9701 where a mask was about to be used twice, in a fork too.
* Every product can be checked for the price of reading its operands, with an error below 2^-58, over a prime field,
  never modulo 2^k.
* Nothing raises for what a worker answered. It is counted; the caller records it and decides once.
* One pass over memory hides, one recovers (:mod:`cloister.ring._fused`, :mod:`cloister.ring._recover`); the same bits
  come from plain torch (:mod:`cloister.ring._multipass`).

>>> import torch
>>> product = Product(MatMul(), "forward", x=(2, 3), w=(1, 3))
>>> x, w = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.int8), torch.tensor([[7, 8, 9]], dtype=torch.int8)
>>> mask = MaskSource("x").next((2, 3))
>>> kernels = kernels_for(torch.device("cpu"))
>>> (kernels.product(product, x + mask.words, w) - kernels.product(product, mask.words, w)).tolist()
[[50], [122]]
"""

from cloister.ring._bounds import HALVED_LIMIT, RING_LIMIT, magnitude, parts
from cloister.ring._freivalds import Challenge, Check, check, draw
from cloister.ring._kernels import RingKernels, kernels_for
from cloister.ring._keystream import CipherName, MaskKey, MaskSource, RoundingState, RoundingStream, StreamAhead, expand
from cloister.ring._ledger import THE_MASK, MaskLedger
from cloister.ring._operators import Conv2d, MatMul, Operand, Operator, Part, Product, Role, Shape
from cloister.ring._quantise import Hidden, exponent_for, hide, quantise, remask
from cloister.ring._recover import Recovered, dequantise, recover
from cloister.ring._scales import result_exponents, survives
from cloister.ring._words import Mask, Masked, MaskId, Quantised, Share

__all__ = [
    "HALVED_LIMIT",
    "RING_LIMIT",
    "THE_MASK",
    "Challenge",
    "Check",
    "CipherName",
    "Conv2d",
    "Hidden",
    "Mask",
    "MaskId",
    "MaskKey",
    "MaskLedger",
    "MaskSource",
    "Masked",
    "MatMul",
    "Operand",
    "Operator",
    "Part",
    "Product",
    "Quantised",
    "Recovered",
    "RingKernels",
    "Role",
    "RoundingState",
    "RoundingStream",
    "Shape",
    "Share",
    "StreamAhead",
    "check",
    "dequantise",
    "draw",
    "expand",
    "exponent_for",
    "hide",
    "kernels_for",
    "magnitude",
    "parts",
    "quantise",
    "recover",
    "remask",
    "result_exponents",
    "survives",
]
