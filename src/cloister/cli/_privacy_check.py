"""``cloister privacy check|recheck``: whether a model treats each example by itself, with a certificate."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cloister.cli._voice import Json, show

__all__ = ["check", "recheck"]

_MAX_BYTES = 16 * 1024 * 1024  # as the reader of certificates allows
_MODULE = "_cloister_checked_model"


def check(
    model: Annotated[
        str,
        typer.Argument(
            help="'file.py:function' or 'module:function'; it returns a model, loss(model, batch) and a batch. "
            "Its code is run"
        ),
    ],
    out: Annotated[Path | None, typer.Option("--out", help="write the certificate here; it must not exist")] = None,
    json: Json = False,
) -> None:
    """Prove that a model's loss treats each example by itself, or name the line that does not."""
    from cloister.errors import InputError
    from cloister.wire import write_atomic

    check_model = _room().check_model
    if out is not None and out.exists():
        raise InputError(2007, f"'{out}' exists")
    certificate = check_model(*_built(model))
    if out is not None:
        write_atomic(out, certificate.canonical())
    show(_facts(certificate), json=json)


def recheck(
    certificate: Annotated[Path, typer.Argument(help="what 'cloister privacy check --out' wrote")],
    json: Json = False,
) -> None:
    """Derive a certificate's statement again from the graph in it; no code of the model is run."""
    from cloister.wire import read_bounded

    data = read_bounded(certificate, max_bytes=_MAX_BYTES, what="privacy certificate")
    show(_facts(_room().recheck(data)), json=json)


def _room() -> Any:
    """The room, which needs torch.

    Raises:
        InputError: 2006 without it.
    """
    from cloister.errors import InputError

    if importlib.util.find_spec("torch") is None:
        raise InputError(2006, "checking a model needs torch", hint='pip install "cloister[torch]"')
    return importlib.import_module("cloister.privacy")


def _facts(certificate: Any) -> dict[str, Any]:
    graph = certificate.graph
    return {
        "verdict": certificate.verdict,
        "graph": certificate.graph_digest,
        "rules": certificate.rules,
        "calls": len(graph.nodes),
        "trained": sum(parameter.trained for parameter in graph.parameters),
        "frozen": sum(not parameter.trained for parameter in graph.parameters),
        "batch": ", ".join(row.name for row in graph.batch),
    }


def _built(name: str) -> tuple[Any, Any, Any]:
    """What the named function returns.

    Raises:
        InputError: 2830 when there is none, it fails, or it returns something else than three things.
    """
    from cloister.errors import CloisterError, InputError

    where, colon, function = name.rpartition(":")
    if not colon or not where or not function.isidentifier():
        raise InputError(2830, f"'{name}' names no function", expected="file.py:function or module:function")
    try:
        built = getattr(_module(where), function)()
    except CloisterError:
        raise
    except Exception as error:
        raise InputError(2830, f"'{name}' failed: {type(error).__name__}", got=str(error)[:200]) from error
    if not isinstance(built, tuple) or len(built) != 3:
        raise InputError(2830, f"'{name}' does not return three things", got=type(built).__name__)
    return built


def _module(where: str) -> Any:
    if not where.endswith(".py"):
        return importlib.import_module(where)
    path = Path(where).resolve()
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(where)
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module
    sys.path.insert(0, str(path.parent))  # as if the file were run, so that it finds its neighbours
    spec.loader.exec_module(module)
    return module
