"""``python lying_worker.py FILE …``: `cloister worker serve …` whose products are wrong while FILE names their role."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cloister.cli import main
from cloister.ring._cpu import CpuKernels

if TYPE_CHECKING:
    from torch import Tensor

    from cloister.ring import Product


def lie(about: Path) -> None:
    """Lets this process answer wrongly."""
    honest = CpuKernels.product

    def product(self: CpuKernels, product: Product, left: Tensor, right: Tensor) -> Tensor:
        answer = honest(self, product, left, right)
        if about.exists() and product.role == about.read_text():
            answer.view(-1)[answer.numel() // 2] += 2  # even, as an honest answer's sum is: only the check can tell
        return answer

    CpuKernels.product = product


if __name__ == "__main__":
    lie(Path(sys.argv[1]))
    main(["worker", "serve", *sys.argv[2:]])
