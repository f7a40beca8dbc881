"""Settings: the configuration file, and what may come from it or from the environment.

Values may; consent may not. A switch that has no opposite (``--yes``, ``--allow-simulated``) counts only where it is
typed, and so does whatever an option itself keeps out of the environment.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import Any

from cloister.errors import InputError

__all__ = ["close_switches", "read_settings"]


def close_switches(command: Any) -> None:
    """Keeps the environment out of switches, in ``command`` and all below it.

    The variables' names follow one rule (docs/configuration.md), so help does not repeat it at each option.
    """
    for child in getattr(command, "commands", {}).values():
        close_switches(child)
    for parameter in command.params:
        if _is_consent(parameter) and parameter.envvar is None:
            parameter.allow_from_autoenv = False
        if hasattr(parameter, "show_envvar"):
            parameter.show_envvar = False


def read_settings(command: Any) -> dict[str, Any]:
    """The defaults of ``CLOISTER_CONFIG``, else of ``cloister.toml`` here, else in the user's configuration folder.

    Raises:
        InputError: 2001 when the named file cannot be read; 2015 when a file is not TOML, or holds a key that is no
            option of ``command``, or one that is consent.
    """
    named = os.environ.get("CLOISTER_CONFIG")
    if named and not Path(named).is_file():
        raise InputError(2001, f"cannot read the configuration: '{named}'")
    for path in [Path(named)] if named else [Path("cloister.toml"), _user_folder() / "cloister.toml"]:
        if path.is_file():
            try:
                settings = tomllib.loads(path.read_text(encoding="utf-8"))
            except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise InputError(2015, f"'{path}' is not TOML: {error}") from error
            _check(settings, command, str(path))
            return settings
    return {}


def _check(settings: dict[str, Any], command: Any, where: str) -> None:
    commands = getattr(command, "commands", {})
    options = {parameter.name: parameter for parameter in command.params}
    for key, value in settings.items():
        if key in commands and isinstance(value, dict):
            _check(value, commands[key], f"{where}: {key}")
        elif key not in options:
            near = difflib.get_close_matches(key, [*options, *commands], 1)
            guess = f", did you mean {near[0]!r}?" if near else ""
            raise InputError(2015, f"{where}: unknown key {key!r}{guess}")
        elif not getattr(options[key], "allow_from_autoenv", True):
            raise InputError(2015, f"{where}: {key!r} is consent, not a setting", hint="say it on the command line")


def _is_consent(parameter: Any) -> bool:
    return bool(getattr(parameter, "is_flag", False)) and not parameter.secondary_opts


def _user_folder() -> Path:
    import platformdirs

    return Path(platformdirs.user_config_dir("cloister"))
