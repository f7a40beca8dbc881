"""From answers to a product: unmasked, held to its bound, checked, scaled; or zeros, and a failure on record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from cloister.offload._arithmetic import cut
from cloister.offload._verdict import Failure
from cloister.ring import dequantise, draw, magnitude, recover, result_exponents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cloister.offload._arithmetic import Answers, Asked
    from cloister.offload._meter import Meter
    from cloister.offload._operands import Operand
    from cloister.offload._verdict import Verdict
    from cloister.ring import Part, Product

__all__ = ["Pending"]


@dataclass(frozen=True, slots=True)
class Pending:
    """A product that was asked for.

    Attributes:
        layer: Whose it is.
        product: What was asked.
        left: Its left operand.
        right: Its right operand.
        parts: Its parts, each with what was asked of whom.
        checked: Whether answers are checked; not where the enclave multiplied itself.
        step: For a failure's record.
    """

    layer: str
    product: Product
    left: Operand
    right: Operand
    parts: Sequence[tuple[Part, Asked]]
    checked: bool
    step: int
    meter: Meter
    verdict: Verdict

    def result(self) -> Tensor:
        """Waits for the product.

        Returns:
            float32 of the product's result shape. Zeros where a check failed; the verdict knows.

        Raises:
            PeerError: 67xx when a worker does not answer.
        """
        exponents = result_exponents(self.product, self.left.quantised, self.right.quantised)
        if len(self.parts) == 1:
            values, held = self._part(0, exponents)
            return values if held else torch.zeros_like(values)
        total = torch.zeros(self.product.result, dtype=torch.int64)
        all_held = True
        for index in range(len(self.parts)):
            integers, held = self._part(index, None)
            total += integers
            all_held &= held
        return dequantise(total if all_held else torch.zeros_like(total), exponents)

    def _part(self, index: int, exponents: Sequence[int | Tensor] | None) -> tuple[Tensor, bool]:
        part, asked = self.parts[index]
        with self.meter.stage(self.layer, "wait"):
            answers = asked.answers()
        bound = magnitude(part.product.terms, self.left.quantised.bits, self.right.quantised.bits)
        if not self.checked:
            with self.meter.stage(self.layer, "recover"):
                made = recover(answers.words, bound=bound, exponents=exponents)
            return made.values, True
        return self._checked(index, part, answers, bound, exponents)

    def _checked(
        self, index: int, part: Part, answers: Answers, bound: int, exponents: Sequence[int | Tensor] | None
    ) -> tuple[Tensor, bool]:
        with self.meter.stage(self.layer, "check"):
            challenge = draw(part.product)  # after the answers
        with self.meter.stage(self.layer, "recover"):
            made = recover(
                answers.words,
                bound=bound,
                pads=answers.pads,
                halve=answers.halve,
                functional=challenge,
                exponents=exponents,
            )
        with self.meter.stage(self.layer, "check"):
            assert made.functional is not None  # noqa: S101 - a functional was given
            check = challenge.judge(
                cut(self.left.quantised.values, part.left),
                cut(self.right.quantised.values, part.right),
                value=made.functional,
            )
        self.meter.check(self.layer, check.error)
        held = check.holds & (made.odd == 0) & (made.beyond == 0)
        if not held:
            self.verdict.record(
                Failure(
                    self.layer, self.product.role, self.step, index, answers.workers, check.holds, made.odd, made.beyond
                )
            )
        return made.values, held
