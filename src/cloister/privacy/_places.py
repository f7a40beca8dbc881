"""Where in the user's code a trace made a call, decided something, or failed."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import fx

from cloister.privacy._independence import Place

__all__ = ["every_line", "noted_guards", "place_of", "raised_at"]

_TORCH = str(Path(torch.__file__).parent)
_OWN = str(Path(__file__).parent)
_LIBRARY = str(Path(io.__file__).parent)


@contextmanager
def noted_guards() -> Iterator[list[Place]]:
    """Lines of the user's code at which a trace decided by the batch's size, as far as this torch tells."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    kept, found = getattr(ShapeEnv, "_log_guard", None), list[Place]()

    def noted(*args: Any, **kwargs: Any) -> None:
        frame = sys._getframe(1)
        while frame is not None and _is_foreign(frame.f_code.co_filename):
            frame = frame.f_back
        decided = {symbol for each in args for symbol in getattr(each, "free_symbols", ())}
        if frame is not None and len(decided) == 1:  # two of them: that two tensors have as many rows
            found.append(Place("", Path(frame.f_code.co_filename).name, frame.f_lineno))
        if kept is not None:
            kept(*args, **kwargs)

    if kept is not None:
        ShapeEnv._log_guard = noted
    try:
        yield found
    finally:
        if kept is not None:
            ShapeEnv._log_guard = kept


def _is_foreign(file: str) -> bool:
    """Whether a line is torch's, the library's, ours or generated: not the model's."""
    return file.startswith((_TORCH, _OWN, _LIBRARY, "<"))


class _EveryLine(set[tuple[str, str]]):
    """Holds every line of Python but torch's and ours."""

    def __contains__(self, line: object) -> bool:
        return isinstance(line, tuple) and not _is_foreign(str(line[0]))


@contextmanager
def every_line() -> Iterator[None]:
    """Lets a trace note lines of all functions, not only of those named ``forward``."""
    proxy: Any = fx.proxy  # pyright: ignore[reportAttributeAccessIssue]  a module that fx does not declare
    kept = getattr(proxy, "_STACK_TRACE_ANCHORS", None)
    if kept is None:  # a torch that notes lines otherwise; a message then names the module's line
        yield
        return
    proxy._STACK_TRACE_ANCHORS = _EveryLine()
    try:
        yield
    finally:
        proxy._STACK_TRACE_ANCHORS = kept


def raised_at(error: Exception) -> Place:
    """The innermost line of the user's code that an exception went through."""
    place, step = Place(), error.__traceback__
    while step is not None:
        file = step.tb_frame.f_code.co_filename
        if not _is_foreign(file):
            place = Place("", Path(file).name, step.tb_lineno)
        step = step.tb_next
    return place


def place_of(node: fx.Node) -> Place:
    """Where a traced call was made: its module, and the innermost line that is not torch's."""
    stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    path = stack[-1] if stack and isinstance(stack[-1], str) else ""
    module = path.removeprefix("model").removeprefix(".") or ("the model" if path.startswith("model") else "")
    found = Place(module)
    lines = (node.meta.get("stack_trace") or "").splitlines()
    for head, code in zip(lines, [*lines[1:], ""], strict=False):
        if head.strip().startswith('File "'):
            file, _, rest = head.strip().removeprefix('File "').partition('", line ')
            number = rest.partition(",")[0]
            if not _is_foreign(file) and number.isdigit():
                found = Place(module, Path(file).name, int(number), code.strip()[:120])
    return found
