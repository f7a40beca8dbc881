"""Where commands find identities, pins and passphrases. No secret is ever an argument: other users can list those."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli._voice import note
from cloister.errors import InputError

if TYPE_CHECKING:
    from cloister.party import Identity

__all__ = ["Home", "PassphraseFile", "open_identity", "passphrase_from"]

Home = Annotated[
    Path | None,
    typer.Option("--home", envvar="CLOISTER_HOME", help="folder of identities and pins", show_default=False),
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="file with the passphrase (else CLOISTER_PASSPHRASE, else a prompt)"),
]

_MAX_PASSPHRASE_BYTES = 4096


def passphrase_from(file: Path | None, *, prompt: str, twice: bool = False) -> str:
    """The passphrase: the file's first line, else ``CLOISTER_PASSPHRASE``, else what the person types.

    Raises:
        InputError: 2017 when there is nowhere to ask; 2001, 2003, 2005 when the file is not usable.
    """
    from cloister.wire import read_bounded

    if file is not None:
        data = read_bounded(file, max_bytes=_MAX_PASSPHRASE_BYTES, what="passphrase file")
        try:
            return data.decode("utf-8").partition("\n")[0].removesuffix("\r")
        except UnicodeDecodeError:
            raise InputError(2005, f"the passphrase file is not UTF-8 text: '{file}'") from None
    from_environment = os.environ.get("CLOISTER_PASSPHRASE")
    if from_environment is not None:
        return from_environment
    if not sys.stdin.isatty():
        raise InputError(2017, "there is no terminal to ask for the passphrase")
    return str(typer.prompt(prompt, hide_input=True, confirmation_prompt=twice, err=True))


def open_identity(name: str, *, home: Path | None, passphrase_file: Path | None) -> Identity:
    """The identity ``name`` of the home folder, or of the key file when ``name`` ends in ``.key``.

    Raises:
        InputError: 2013 when there is none; else as ``Identity.load`` and :func:`passphrase_from`.
    """
    from cloister.party import Identity, home_folder

    folder = home_folder(home)
    path = Path(name) if name.endswith(".key") else folder / f"{name}.key"
    if not path.is_file():
        raise InputError(2013, f"no identity '{name}' in '{folder}'")
    identity = Identity.load(path, lambda: passphrase_from(passphrase_file, prompt=f"passphrase of {name}"))
    note(f"identity {identity.name}")
    return identity
