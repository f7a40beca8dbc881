"""Who is trusted to be whom: public identities whose words were heard, one file each."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from cloister.errors import InputError, RefusedError
from cloister.party._public import PublicIdentity, require_fingerprint
from cloister.wire import read_bounded, write_atomic

__all__ = ["Pins", "home_folder"]

_log = logging.getLogger("cloister.party")

_MAX_BYTES = 16 * 1024


class Pins:
    """The pinned identities of a home folder.

    Args:
        home: The home folder; the pins lie in its ``pins`` folder.
    """

    def __init__(self, home: Path | str) -> None:
        self.folder = Path(home) / "pins"

    def pin(self, public: PublicIdentity, *, words: str) -> bool:
        """Pins ``public`` once ``words`` are its fingerprint; False when it was pinned already.

        Args:
            public: What the partner sent.
            words: What the partner read out, over a channel the sender of the file does not control.

        Raises:
            IntegrityError: 5001 when it is not signed by its own key.
            RefusedError: 3001 when this name is pinned to other keys; 3002 when a key is pinned to another name.
            InputError: 2012 when the words are not this identity's.
        """
        public.require_self_signed()
        pinned = self.all()
        known = pinned.get(public.name)
        if known is not None and not known.same_keys(sign=public.sign, hpke=public.hpke):
            raise RefusedError(3001, f"'{public.name}' is pinned to other keys", expected=known.sign, got=public.sign)
        for other in pinned.values():
            if other.name != public.name and (other.sign == public.sign or other.hpke == public.hpke):
                raise RefusedError(3002, f"a key of '{public.name}' is pinned as '{other.name}'", got=public.sign)
        require_fingerprint(public, words)
        if known is not None:
            return False
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(self._path(public.name), public.canonical() + b"\n")
        except OSError as error:
            raise InputError(2001, f"cannot write the pin: {error.strerror}: '{self.folder}'") from error
        _log.info("pinned: %s, %s", public.name, public.sign)
        return True

    def get(self, name: str) -> PublicIdentity:
        """The identity pinned under ``name``.

        Raises:
            InputError: 2013 when none is.
        """
        found = self.all().get(name)
        if found is None:
            raise InputError(2013, f"no party is pinned under this name: {name!r}")
        return found

    def all(self) -> dict[str, PublicIdentity]:
        """Every pinned identity by name, in order of name.

        Raises:
            InputError, IntegrityError: a pin was damaged: nothing is then trusted silently.
        """
        pins: dict[str, PublicIdentity] = {}
        for path in sorted(self.folder.glob("*.pub")) if self.folder.is_dir() else []:
            data = read_bounded(path, max_bytes=_MAX_BYTES, what="pin")
            public = PublicIdentity.parse(data, what=f"pin '{path}'")
            if path.name != f"{public.name}.pub":
                raise InputError(2005, f"the pin '{path}' names another party", got=public.name)
            pins[public.name] = public
        return pins

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.pub"


def home_folder(flag: Path | str | None = None) -> Path:
    """Where identities and pins live: the flag, else ``CLOISTER_HOME``, else the user's configuration folder."""
    import platformdirs

    named = str(flag) if flag else os.environ.get("CLOISTER_HOME")
    return Path(named) if named else Path(platformdirs.user_config_dir("cloister"))
