"""Which environment variables a manifest may set: none that changes what a program loads or whom it talks to.

A ``sitecustomize.py`` named by ``PYTHONPATH`` runs before the script that everybody reviewed, and ``LD_PRELOAD`` runs
before the interpreter. The launcher applies the same rule again, whatever the manifest says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from cloister.errors import RefusedError

__all__ = ["check_environment", "fault_of_variable"]

_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_PREFIXES = (
    *("PYTHON", "LD_", "DYLD_", "GLIBC_", "GCONV_", "MALLOC_", "BASH", "PERL", "RUBY", "NODE_", "NPM_", "JAVA", "JDK_"),
    *("GIT_", "SSH_", "OPENSSL_", "SSL_", "CURL_", "REQUESTS_", "PIP_", "UV_", "CONDA_", "VIRTUAL_ENV", "XDG_"),
    *("CLOISTER_", "CUDA_INJECTION", "NUMBA_", "OMP_TOOL", "R_", "LUA_"),
)
_SUFFIXES = ("PATH", "_PRELOAD", "_PROXY", "_OPTIONS", "_OPTS", "_LIBRARIES", "_PLUGINS", "_STARTUP", "_BUNDLE")
_EXACT = {
    *("ENV", "SHELL", "SHELLOPTS", "IFS", "HOME", "USER", "LOGNAME", "TMPDIR", "TMP", "TEMP", "PWD", "CC", "CXX"),
    *("HOSTALIASES", "LOCALDOMAIN", "RES_OPTIONS", "RESOLV_HOST_CONF", "TZDIR", "TERMINFO", "EDITOR", "PAGER"),
}


def fault_of_variable(name: str, value: str) -> str | None:
    """Why a stage must not have this variable, or None.

    >>> fault_of_variable("LD_PRELOAD", "/inputs/a/x.so")
    'LD_PRELOAD changes what programs load or whom they talk to'
    >>> fault_of_variable("EPOCHS", "5")
    """
    if not _NAME.fullmatch(name):
        return f"not a variable name: {name[:80]!a}"
    if "\0" in value:
        return f"{name} holds a NUL"
    if name.startswith(_PREFIXES) or name.endswith(_SUFFIXES) or name in _EXACT:
        return f"{name} changes what programs load or whom they talk to"
    return None


def check_environment(env: Mapping[str, str]) -> None:
    """Returns when every variable may be set in a stage. For manifests, and for the launcher.

    Raises:
        RefusedError: 3304 otherwise.
    """
    for name, value in env.items():
        fault = fault_of_variable(name, value)
        if fault is not None:
            raise RefusedError(3304, f"environment variable refused: {fault}", got=name[:80])
