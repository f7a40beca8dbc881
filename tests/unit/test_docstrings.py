"""Every example in a docstring runs."""

import doctest
import importlib
import pkgutil

import pytest

import cloister

MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(cloister.__path__, "cloister.")
    if ".scripts" not in info.name and "__main__" not in info.name
)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL).failed == 0


@pytest.mark.parametrize("name", [name for name in MODULES if name.count(".") == 1])
def test_every_room_says_what_is_public(name: str) -> None:
    module = importlib.import_module(name)
    if not hasattr(module, "__path__"):
        return
    assert module.__doc__
    missing = [public for public in module.__all__ if not hasattr(module, public)]
    assert missing == []
