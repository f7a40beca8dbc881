"""What of a secret decides a jump of compiled code: in LLVM's own language, and in the machine's."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from numba import njit
from tests.machine_code import Function, Shown, secrets_shown

from cloister._compiled import _OPTIONS

__all__ = ["compiled_code", "secret_conditions", "secret_instructions"]

_NAME = r'%"?[\w.]+"?'


def compiled_code(function: Callable[..., Any], *arguments: Any) -> tuple[str, str]:
    """Of ``function``, compiled anew with the project's options for these arguments: LLVM's and the machine's."""
    compiled: Any = njit(**_OPTIONS)(getattr(function, "py_func", function))
    compiled(*arguments)
    (signature,) = compiled.signatures
    return compiled.inspect_llvm(signature), compiled.inspect_asm(signature)


def secret_instructions(text: str, assembly: str) -> Shown:
    """Of the x86-64 code that LLVM made of ``text``: it makes jumps of selections, and jumps around slow divisions."""
    bodies, secret = _secrets(text)
    found = Shown([], [])
    for name, (given, body) in bodies.items():
        code = re.search(rf'^"?{re.escape(name)}"?:[^\n]*$(.*?)^\.Lfunc_end', assembly, re.MULTILINE | re.DOTALL)
        if code is None:
            raise AssertionError("the function is not in the machine's code")
        words = [parameter in secret[name] for parameter in given]
        room = max(map(_bytes_of, re.findall(r" = alloca (.*?), align", body)), default=0)
        shown = secrets_shown(Function(code[1], words, frozenset(bodies), room))
        found = Shown(found.decided + shown.decided, found.addressed + shown.addressed)
    return found


def _bytes_of(kind: str) -> int:
    """At most, of a variable of LLVM's."""
    times = 1
    while array := re.fullmatch(r"\[(\d+) x (.*)\]", kind):
        times, kind = times * int(array[1]), array[2]
    words = re.findall(r"\bi\d+|ptr", kind)
    if not words or re.search(r"\bx\b", kind):
        raise AssertionError(f"a variable whose size is not known here: {kind}")
    return 8 * times * sum(-(-int(word[1:]) // 64) if word != "ptr" else 1 for word in words)


def secret_conditions(text: str) -> list[str]:
    """Of jumps in what LLVM was given, those that follow from what was loaded.

    Whatever is loaded counts as secret, whatever is computed from it, and what a function is given of it. Shapes and
    addresses of arrays are given, not loaded.
    """
    bodies, secret = _secrets(text)
    return [found for name, (_, body) in bodies.items() for found in _conditions(body) if found in secret[name]]


def _secrets(text: str) -> tuple[dict[str, tuple[list[str], str]], dict[str, set[str]]]:
    """Parameters and body of each function, and what of it is secret."""
    bodies = {name: (given, body) for name, given, body in _functions(text)}
    secret = {name: set[str]() for name in bodies}
    while _spread(bodies, secret):
        pass
    return bodies, secret


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
