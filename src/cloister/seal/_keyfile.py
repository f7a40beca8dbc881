"""The file in which an owner keeps an image's key at home."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

from pydantic import Field, TypeAdapter, ValidationError

from cloister.errors import InputError
from cloister.seal._descriptor import check_image_id
from cloister.seal._luks import KEY_BYTES, require_key
from cloister.wire import B64, Digest, Message, Name, Secret, canonical, parse_message, read_bounded, write_private

__all__ = ["ImageKey", "check_key_file", "load_image_key", "save_image_key"]

_MAX_BYTES = 4096


class ImageKey(Message):
    """An image's key with what it opens. As sensitive as the data: who has it and the ciphertext has the data.

    Attributes:
        format: Always ``cloister-image-key``.
        version: Of the format; unknown ones are refused.
        name: What the owner calls the image.
        image: The image's id.
        key: The volume key, 64 bytes.
    """

    format: Literal["cloister-image-key"] = "cloister-image-key"
    version: Literal[1] = 1
    name: Name
    image: Digest
    key: B64 = Field(min_length=KEY_BYTES, max_length=KEY_BYTES, repr=False)

    @property
    def secret(self) -> Secret:
        """The key, as what is passed on."""
        return Secret(self.key)


def save_image_key(path: Path | str, *, name: str, image_id: str, key: Secret) -> None:
    """Writes the key file, all or nothing, readable by its owner alone.

    Raises:
        InputError: 2007 when the file exists: a key is never replaced; 2001 when it cannot be written; 2005 when
            ``name`` is none; 2209, 2210 when the id or the key is none.
    """
    check_key_file(path, name=name)
    check_image_id(image_id)
    entry = ImageKey(name=name, image=image_id, key=require_key(key).reveal())
    try:
        write_private(path, canonical(entry.as_json()) + b"\n")
    except OSError as error:
        raise InputError(2001, f"cannot write the key file: {error.strerror}: '{path}'") from error


def check_key_file(path: Path | str, *, name: str) -> None:
    """Returns when a key named ``name`` can be kept at ``path``: to be asked *before* sealing.

    Raises:
        InputError: 2005 when ``name`` is none; 2007 when the file exists; 2001 when its folder does not.
    """
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        wanted = "lower-case letters and digits, joined by - or ."
        raise InputError(2005, f"not a name: {name[:80]!r}", expected=wanted) from None
    if os.path.lexists(path):
        raise InputError(2007, f"the key file already exists: '{path}'", hint="keep it, and name another file")
    if not Path(path).absolute().parent.is_dir():
        raise InputError(2001, f"no such folder: '{Path(path).absolute().parent}'")


def load_image_key(path: Path | str) -> ImageKey:
    """The key file at ``path``.

    Raises:
        InputError: 2001 unreadable; 2014 readable by others; 2002, 2003, 2005 not a key file.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise InputError(2001, f"cannot read the key file: {error.strerror}: '{path}'") from error
    if os.name == "posix" and mode & 0o077:
        raise InputError(2014, f"the key file is readable by others: '{path}'", got=stat.filemode(mode))
    data = read_bounded(path, max_bytes=_MAX_BYTES, what="key file")
    return parse_message(ImageKey, data, what=f"key file '{path}'", secret=True)
