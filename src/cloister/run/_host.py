"""What a host adds to a manifest: where things are. Nothing in here can change what was agreed."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from cloister.errors import InputError
from cloister.manifest import LinkUrl, Manifest
from cloister.wire import Message, Name, parse_message, read_bounded

__all__ = ["Host", "load_host"]

Url = Annotated[str, StringConstraints(min_length=1, max_length=2048)]


class Host(Message):
    """Addresses and choices of one host.

    Attributes:
        storage: Any fsspec URL or folder: sealed outputs go to ``STORAGE/RUN/OUTPUT.attemptN.cloister``, a stage's last
            checkpoint to ``STORAGE/RUN/STAGE.checkpoint.attemptN.NUMBER.cloister``.
        images: Where each of the manifest's images lies, by name.
        key_managers: Where each key manager listens, by name; the manifest's own hint where absent.
        workers: Where each worker that layers are offloaded to is reached, by name; the manifest's hint where absent.
        site: The folder of a simulated TEE; absent on hardware.
        executor: How stages are started.
        parallel: How many independent stages run at once.
        attempts: How often a stage is tried before the run stops.
        retry_after_s: How long to wait before a peer that did not answer is asked again.
    """

    storage: Url
    images: dict[Name, Url] = Field(default_factory=dict)
    key_managers: dict[Name, Url] = Field(default_factory=dict)
    workers: dict[Name, LinkUrl] = Field(default_factory=dict)
    site: str | None = None
    executor: Literal["process", "inline"] = "process"
    parallel: int = Field(default=2, ge=1, le=256)
    attempts: int = Field(default=2, ge=1, le=100)
    retry_after_s: int = Field(default=2, ge=0, le=3600)

    def require_complete(self, manifest: Manifest) -> None:
        """Returns when everything that ``manifest`` needs has an address, and nothing else has.

        Asked before anything starts: a typing error would otherwise show when half of the stages have run.

        Raises:
            InputError: 2551 when an address is missing; 2554 when one is for something that the manifest does not name.
        """
        for kind, named, known in (
            ("image", self.images, manifest.images),
            ("key manager", self.key_managers, manifest.key_managers),
            ("worker", self.workers, manifest.workers),
        ):
            for name in sorted(set(named) - set(known)):
                raise InputError(2554, f"the manifest has no {kind} '{name}'", expected=", ".join(sorted(known)))
        for name in manifest.images:
            self.image_url(name)
        for name in manifest.key_managers:
            self.key_manager_url(name, manifest)

    def image_url(self, name: str) -> str:
        """Where an image lies.

        Raises:
            InputError: 2551 when the host did not say.
        """
        if name not in self.images:
            raise InputError(2551, f"the host's configuration does not say where image '{name}' lies")
        return self.images[name]

    def key_manager_url(self, name: str, manifest: Manifest) -> str:
        """Where a key manager listens.

        Raises:
            InputError: 2551 when neither the host nor the manifest says.
        """
        url = self.key_managers.get(name) or manifest.key_managers[name].url
        if url is None:
            raise InputError(2551, f"neither the host's configuration nor the manifest says where '{name}' listens")
        return url

    def worker_url(self, name: str, manifest: Manifest) -> str:
        """Where a worker is reached. Whoever answers there must have the manifest's key for it."""
        return self.workers.get(name) or manifest.workers[name].url


def load_host(path: Path) -> Host:
    """Reads a host's TOML file; relative paths in it are relative to the file.

    Raises:
        InputError: 2001, 2003 when it cannot be read; 2015 when it is not TOML; 2005 when a key is unknown or wrong.
    """
    data = read_bounded(path, max_bytes=1 << 20, what="host configuration")
    try:
        table = tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(2015, f"'{path}' is not TOML: {error}") from error
    host = parse_message(Host, table, what=str(path))
    folder = path.resolve().parent

    def absolute(url: str) -> str:
        return url if "://" in url else str((folder / url).resolve())

    return host.model_copy(
        update={
            "storage": absolute(host.storage),
            "images": {name: absolute(url) for name, url in host.images.items()},
            "site": None if host.site is None else absolute(host.site),
        }
    )
