"""An estimator's parameters, as scikit-learn asks for them: stored as they are given, checked when they are used."""

from __future__ import annotations

import inspect
from typing import Any, Self, TypeVar

import numpy as np
from pydantic import ValidationError

from cloister.errors import InputError
from cloister.linear._scaling import Scaling
from cloister.wire import Message

__all__ = ["Parameters", "terms_of"]

T = TypeVar("T", bound=Message)


class Parameters:
    """Parameters are the arguments of the constructor, under their names."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """All parameters. None of them has parameters of its own, so ``deep`` changes nothing."""
        return {name: getattr(self, name) for name in self._defaults()}

    def set_params(self, **parameters: Any) -> Self:
        """The estimator itself, with these parameters; a model that it holds stays until the next fit.

        Raises:
            InputError: 2901 when there is no such parameter; none is set then.
        """
        known = self._defaults()
        for name in parameters:
            if name not in known:
                what = f"{type(self).__name__} has no parameter '{name[:40]}'"
                raise InputError(2901, what, expected=", ".join(known), hint="take one of these names")
        for name, value in parameters.items():
            setattr(self, name, value)
        return self

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        return {name: one.default for name, one in inspect.signature(cls).parameters.items()}

    def __repr__(self) -> str:
        """The parameters that are not the default; of a scaling how many columns it has, of a model nothing."""
        shown = {
            name: self._shown(name) for name, usual in self._defaults().items() if self._shown(name) != repr(usual)
        }
        return f"{type(self).__name__}({', '.join(f'{name}={text}' for name, text in shown.items())})"

    def _shown(self, name: str) -> str:
        value = getattr(self, name)
        return f"<Scaling of {len(value.names)} columns>" if isinstance(value, Scaling) else repr(value)


def terms_of(kind: type[T], **fields: object) -> T:
    """The terms with these parameters.

    Raises:
        InputError: 2901 when one is of another type or out of its range.
    """
    try:
        return kind(**{name: int(value) if isinstance(value, np.integer) else value for name, value in fields.items()})
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = str(fault["loc"][-1]).removeprefix("newton_")  # as estimators call it
        expected = fault["msg"].removeprefix("Input should be ").partition(", got")[0]
        what, hint = f"{name} is not one of its values", f"give {name} one that is expected"
        raise InputError(2901, what, expected=expected, got=fault["input"], hint=hint) from None
