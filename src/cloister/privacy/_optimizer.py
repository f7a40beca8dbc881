"""An optimizer whose steps are private: the user's own, given gradients that were bounded, summed and noised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from cloister.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloister.privacy._spending import Privacy

__all__ = ["PrivateOptimizer"]


class PrivateOptimizer(Optimizer):
    """The same optimizer, with gradients that are private.

    After a micro-batch that is not its batch's last, :meth:`step` only adds to the sum; after the last one it steps.
    Parameter groups, state and hooks are the original's, so that schedulers and checkpoints work on this as on it.

    Args:
        original: The user's. It is not to be stepped by itself any more.
        privacy: Gives gradients.

    Attributes:
        original: The user's.
        privacy: What was spent so far, and what for.
    """

    def __init__(self, original: Optimizer, privacy: Privacy) -> None:
        self.__dict__.update(original.__dict__)  # groups, state and hooks: shared, not copied
        self.original = original
        self.privacy = privacy

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Sums a micro-batch; steps after a batch's last.

        Raises:
            InputError: 2853 for a closure: a loss that is computed again would be released again.
            RefusedError: 3851 when the batch was stepped with already.
            UnsupportedError: 8861, 8865; see :meth:`cloister.privacy._engine.Engine.gather`.
        """
        if closure is not None:
            raise InputError(2853)
        if self.privacy.gather():
            self.original.step()
            self.original.zero_grad()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears gradients; what micro-batches have contributed to the sum stays in it."""
        self.original.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """The original's."""
        return self.original.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Into the original."""
        self.original.load_state_dict(state_dict)
        self.__dict__.update(
            {name: value for name, value in self.original.__dict__.items() if name in ("state", "param_groups")}
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused: which parameters are private was decided already."""
        raise InputError(2854)

    def __repr__(self) -> str:
        return f"Private{self.original!r}"
