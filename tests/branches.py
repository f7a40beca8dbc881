"""Jumps of compiled code that follow from a secret: in what LLVM was given, and in what it made of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from numba import njit

from cloister._compiled import _OPTIONS

__all__ = ["Jumps", "jumps", "machine_jumps", "secret_conditions"]

_NAME = r'%"?[\w.]+"?'


class Jumps(NamedTuple):
    """Of a compiled function and of those that it calls.

    Attributes:
        secret: Conditions that follow from what was loaded.
        added: Conditional jumps of the machine's code that LLVM was not given: it makes them of selections.
    """

    secret: list[str]
    added: int


def jumps(function: Callable[..., Any], *arguments: Any) -> Jumps:
    """Of ``function``, compiled anew with the project's options for these arguments.

    Whatever is loaded counts as secret, whatever is computed from it, and what a function is given of it. Shapes and
    addresses of arrays are given, not loaded.
    """
    compiled: Any = njit(**_OPTIONS)(getattr(function, "py_func", function))
    compiled(*arguments)
    (signature,) = compiled.signatures
    text, assembly = compiled.inspect_llvm(signature), compiled.inspect_asm(signature)
    added = sum(machine_jumps(assembly, name) - len(_conditions(body)) for name, _, body in _functions(text))
    return Jumps(secret_conditions(text), added)


def secret_conditions(text: str) -> list[str]:
    """Of jumps in what LLVM was given, those that follow from what was loaded."""
    bodies = {name: (given, body) for name, given, body in _functions(text)}
    secret = {name: set[str]() for name in bodies}
    while _spread(bodies, secret):
        pass
    return [found for name, (_, body) in bodies.items() for found in _conditions(body) if found in secret[name]]


def machine_jumps(assembly: str, name: str) -> int:
    """Conditional jumps of a function in x86's or Arm's code."""
    found = re.search(rf'^"?{re.escape(name)}"?:[^\n]*$(.*?)^\.Lfunc_end', assembly, re.MULTILINE | re.DOTALL)
    if found is None:
        raise AssertionError("the function is not in the machine's code")
    return len(re.findall(r"^\s+(?:j(?!mp)[a-z]+|b\.[a-z]+|t?cbn?z|tbn?z)\s", found.group(1), re.MULTILINE))


def _conditions(body: str) -> list[str]:
    return re.findall(rf"(?:br i1|switch i\d+) ({_NAME})", body)


def _functions(text: str) -> list[tuple[str, list[str], str]]:
    """Name, parameters and body of each, but for the wrappers that Python calls."""
    pattern = re.compile(r'^define [^@\n]*@"?([\w.]+)"?\(([^\n]*)\{\n(.*?)^\}', re.MULTILINE | re.DOTALL)
    found = [(name, re.findall(_NAME, given), body) for name, given, body in pattern.findall(text)]
    ours = [each for each in found if not each[0].startswith(("_ZN7cpython", "cfunc.", "NRT_"))]
    if not ours:
        raise AssertionError("no function was found in what LLVM wrote")
    return ours


def _spread(bodies: dict[str, tuple[list[str], str]], secret: dict[str, set[str]]) -> bool:
    """One step of what follows from what; whether anything was new.

    What our own functions return is whether they failed; what they compute goes through memory.
    """
    before = sum(map(len, secret.values()))
    for name, (_, body) in bodies.items():
        known = secret[name]
        for target, made in re.findall(rf"^\s*({_NAME}) = (.*)$", body, re.MULTILINE):
            call = re.match(r'(?:\w+ )?call [^@]*@"?([\w.]+)"?\((.*)\)', made)
            if call and call[1] in bodies:
                passed = [re.findall(_NAME, argument)[-1:] for argument in call[2].split(", ")]
                places = zip(bodies[call[1]][0], passed, strict=True)
                secret[call[1]] |= {parameter for parameter, names in places if set(names) & known}
            elif made.startswith("load ") or set(re.findall(_NAME, made)) & known:
                known.add(target)
    return sum(map(len, secret.values())) > before
