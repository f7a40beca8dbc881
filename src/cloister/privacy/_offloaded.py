"""A private forward inside offloading: who makes the product of a layer whose gradients are made an example.

A model that :func:`cloister.offload.offload` converted is private as any other. Its passes hand on the calls that take
trained parameters, and the private form asks here how the call's product is made: by torch, or by the offloading's
workers, with the same hiding, checks and verdict as without privacy. What the offloading keeps in the enclave stays
torch's. Gradients of parameters are the form's: rows in the enclave, or one sum by workers
(:mod:`cloister.privacy._outsourced`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloister.offload import stays, take_call
from cloister.privacy._outsourced import MOST_TERMS, pays
from cloister.privacy._watch import tensors_of
from cloister.ring import MatMul

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from cloister.offload import Apart
    from cloister.offload._engine import Engine as Multiplying
    from cloister.privacy._slots import Source
    from cloister.privacy._uses import Use
    from cloister.privacy._watch import Watch
    from cloister.ring import Operator, RoundingStream

__all__ = ["PrivatePass", "product_of"]


class PrivatePass:
    """One watched forward, as the passes inside see it; see :class:`cloister.offload.PrivateForward`.

    Args:
        watch: The watch.
        examples: Rows of the micro-batch.
        rounding: Bytes for stochastic rounding, secret.

    Attributes:
        multipliers: Who made products in it.
    """

    def __init__(self, watch: Watch, examples: int, rounding: RoundingStream) -> None:
        self._watch = watch
        self.examples, self.rounding = examples, rounding
        self.multipliers: list[Multiplying] = []

    def claims(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call takes a trained parameter, or what was computed from some."""
        return any(self._watch.source(tensor) is not None for tensor in tensors_of(args, kwargs))

    def entered(self, engine: Multiplying) -> None:
        """Notes who makes products."""
        if engine not in self.multipliers:
            self.multipliers.append(engine)


def product_of(
    use: Use, operator: Operator, x: Tensor, w: Tensor, source: Source | None, *, entry: int = 1
) -> Apart | None:
    """How the product of the call that is being answered is made; None for by torch.

    Args:
        use: The use.
        operator: Its geometry.
        x: The left operand: rows, or pictures.
        w: The right one, as it is in the model: a parameter, a view of one, or computed from some.
        source: What of the parameters it holds; None for a constant.
        entry: Positions of a row, or of a picture, in the result.
    """
    call = take_call()
    if call is None or stays(call, x, w):
        return None
    together = None
    if source is not None and not call.one_product and use.contributes_alone(source):
        positions = len(x) * entry // use.examples
        thin = positions == 1 and isinstance(operator, MatMul)
        one_group = isinstance(operator, MatMul) or operator.groups == 1
        if one_group and pays(
            examples=use.examples, positions=positions, inputs=w[0].numel(), outputs=len(w), thin=thin
        ):
            together = MOST_TERMS // entry
    pictures = isinstance(operator, MatMul) or use.whole
    return call.apart(operator, x, w, pictures=pictures, together=together)
