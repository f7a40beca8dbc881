"""``python -m cloister.demo._cheat KEY HOST:PORT``: a worker that multiplies well, until it changes one number."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cloister.offload import WorkerServer
from cloister.party import WorkerIdentity
from cloister.ring import kernels_for

if TYPE_CHECKING:
    from torch import Tensor

    from cloister.ring import Product

__all__ = ["Cheating"]

_HONEST = 50  # products: the lie comes in the middle of the training


class Cheating:
    """The kernels of the CPU, and one lie."""

    def __init__(self) -> None:
        self._honest = kernels_for(torch.device("cpu"))
        self.name = self._honest.name
        self._left = _HONEST

    def product(self, product: Product, left: Tensor, right: Tensor) -> Tensor:
        """The product, or nearly."""
        answer = self._honest.product(product, left, right)
        self._left -= 1
        if self._left == 0:
            answer.view(-1)[0] += 2  # even, as an honest answer's sum is: only the check can tell
        return answer


def main() -> None:
    """Serves until it is killed."""
    server = WorkerServer(WorkerIdentity.load(Path(sys.argv[1])), kernels=Cheating())
    address = server.listen(sys.argv[2])
    sys.stdout.write(json.dumps({"listen": address}, indent=2) + "\n")
    sys.stdout.flush()
    server.serve()


if __name__ == "__main__":
    main()
