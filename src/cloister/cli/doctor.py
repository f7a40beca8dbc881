"""``cloister doctor``: what this machine can do, and what to install for the rest."""

from __future__ import annotations

import typer

from cloister.cli._voice import Json, show

__all__ = ["register"]

_PROGRAMS = {
    "bwrap": ("bubblewrap", "run stages"),
    "mksquashfs": ("squashfs-tools", "seal folders"),
    "unsquashfs": ("squashfs-tools", "open images"),
    "veritysetup": ("cryptsetup-bin", "check images with Linux's own tools (optional)"),
    "cryptsetup": ("cryptsetup-bin", "open images with Linux's own tools (optional)"),
}
_EXTRAS = {
    "serve": ("fastapi", "uvicorn", "sqlalchemy", "onnxruntime"),
    "postgres": ("psycopg",),
    "torch": ("numba", "torch"),
    "privacy": ("dp_accounting",),
    "s3": ("s3fs",),
    "azure": ("adlfs",),
    "gcs": ("gcsfs",),
    "demo": ("onnx", "onnxscript", "numba", "PIL", "sklearn", "torch"),
}


def doctor(json: Json = False) -> None:
    """Show what this machine can do: programs, sandbox, TEEs, extras."""
    facts = _facts()
    lines: list[str] = []
    for section, rows in facts.items():
        lines.append(section)
        lines += [f"  {name:<14} {row}" for name, row in rows.items()]
    show(facts, "\n".join(lines), json=json)


def _facts() -> dict[str, dict[str, str]]:
    import importlib.util
    import os
    import platform
    import shutil

    from cloister import __version__

    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    programs = {
        name: shutil.which(name, path=path) or f"missing: install '{package}' to {use}"
        for name, (package, use) in _PROGRAMS.items()
    }
    extras = {}
    for extra, modules in _EXTRAS.items():
        absent = [name for name in modules if importlib.util.find_spec(name) is None]
        missing = f'missing {", ".join(absent)}: pip install "cloister[{extra}]"'
        extras[extra] = missing if absent else "installed"
    return {
        "cloister": {"version": __version__, "python": platform.python_version(), "platform": platform.platform()},
        "programs": programs,
        "sandbox": {"bubblewrap": _sandbox()},
        "tee": _tees(),
        "extras": extras,
    }


def _sandbox() -> str:
    import shutil
    import subprocess
    import sys

    if not sys.platform.startswith("linux"):
        return "not on this platform: stages run on Linux only"
    if shutil.which("bwrap") is None:
        return "missing: stages refuse to start"
    command = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "works" if done.returncode == 0 else f"does not start: {done.stderr.strip()}"


def _tees() -> dict[str, str]:
    from cloister.attest import find_attester
    from cloister.errors import CloisterError

    try:
        found = type(find_attester()).__name__
    except CloisterError:
        found = "none found: only SIMULATED enclaves can run here"
    return {"hardware": found, "simulated": "always available, and says SIMULATED everywhere"}


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(doctor)
