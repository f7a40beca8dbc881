"""``cloister privacy check|recheck|program``: that a model treats each example by itself, and what a stage trains."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cloister.cli._voice import Json, show

__all__ = ["check", "program", "recheck"]

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


def program(
    model: Annotated[str, typer.Argument(help="as 'cloister privacy check' takes it; its code is run")],
    out: Annotated[Path, typer.Option("--out", help="a new folder, to be sealed as the stage's code image")],
    learning_rate: Annotated[str, typer.Option("--learning-rate", help="at the beginning")],
    optimizer: Annotated[str, typer.Option("--optimizer", help="sgd or adam")] = "sgd",
    momentum: Annotated[str, typer.Option("--momentum", help="of sgd")] = "0",
    weight_decay: Annotated[str, typer.Option("--weight-decay", help="the L2 penalty's factor")] = "0",
    schedule: Annotated[str, typer.Option("--schedule", help="constant or cosine")] = "constant",
    micro_batch: Annotated[
        int | None, typer.Option("--micro-batch", help="rows at a time: memory against time")
    ] = None,
    json: Json = False,
) -> None:
    """Check a model and write what a stage with privacy terms trains: certificate, first weights, recipe."""
    from cloister.errors import InputError
    from cloister.ledger import amount
    from cloister.wire import parse_message

    room = _room()
    if out.exists():
        raise InputError(2007, f"'{out}' exists")
    said = {
        "optimizer": optimizer,
        "learning_rate": amount(learning_rate, what="--learning-rate"),
        "momentum": amount(momentum, what="--momentum"),
        "weight_decay": amount(weight_decay, what="--weight-decay"),
        "schedule": schedule,
        "micro_batch": micro_batch,
    }
    recipe = parse_message(room.Recipe, said, what="recipe")
    network, loss, batch = _built(model)
    certificate = room.check_model(network, loss, batch)
    room.save_program(certificate, network, out, loss=loss, recipe=recipe)
    show({**_facts(certificate), "folder": str(out)}, json=json)


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
