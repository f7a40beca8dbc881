"""The machine that the demo's host runs enclaves on: a SIMULATED site that outlives a demo, as a real one would.

What its launchers compiled for one demo serves the next, because they keep it under a key of that machine.
"""

from __future__ import annotations

import hashlib
import sys
import time
from importlib import resources
from pathlib import Path

import platformdirs

from cloister.errors import InputError

__all__ = ["is_machine_prepared", "machine_folder", "prepare_machine"]


def machine_folder() -> Path:
    """Where its site is, or will be."""
    return Path(platformdirs.user_cache_dir("cloister")) / "demo-machine"


def is_machine_prepared(*, private: bool = False) -> bool:
    """Whether that was ever done for this Python environment; what changed in it since is compiled by the next demo."""
    return _mark(private).exists()


def _mark(private: bool) -> Path:
    what = "prepared-private" if private else "prepared"
    return machine_folder() / f"{what}-{hashlib.sha256(sys.prefix.encode()).hexdigest()[:16]}"


def prepare_machine(*, private: bool = False) -> float:
    """Makes the site where there is none, and compiles what the demo's stages import; what was done is not done again.

    Args:
        private: What the private demo's stages import.

    Returns:
        What it took, in seconds.
    """
    from cloister.attest import SimulatedSite
    from cloister.enclave import Preparation, imported_packages, prepare

    began = time.monotonic()
    try:
        SimulatedSite.create(machine_folder())
    except InputError as error:
        if error.code != 2007:
            raise
    with resources.as_file(resources.files("cloister.demo").joinpath("private" if private else "scripts")) as scripts:
        modules = tuple(sorted(imported_packages(scripts)))
    prepare(Preparation(modules=modules, offload=True, privacy=private, site=str(machine_folder())))
    _mark(private).touch()
    return round(time.monotonic() - began, 1)
