"""Code that is not ours: a model's, a collate function's, and torch's where it traces them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cloister.errors import CloisterError

__all__ = ["foreign"]


@contextmanager
def foreign(refusal: Callable[[Exception], CloisterError]) -> Iterator[None]:
    """A block that runs such code; what goes wrong in it is told as what it means here.

    Args:
        refusal: From what was raised. Errors of ours, from a check within the block, stay what they are.
    """
    try:
        yield
    except CloisterError:
        raise
    except Exception as error:  # users' code, and operators of any library, raise what they like
        raise refusal(error) from error
