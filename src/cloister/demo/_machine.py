"""The machine that the demo's host runs enclaves on: a SIMULATED site that outlives a demo, as a real one would.

What its launchers compiled for one demo serves the next, because they keep it under a key of that machine.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import platformdirs

from cloister.errors import InputError

__all__ = ["machine_folder", "prepare_machine"]


def machine_folder() -> Path:
    """Where its site is, or will be."""
    return Path(platformdirs.user_cache_dir("cloister")) / "demo-machine"


def prepare_machine() -> float:
    """Makes the site where there is none, and compiles what the demo's stages import; what was done is not done again.

    Returns:
        What it took, in seconds.
    """
    import time

    from cloister.attest import SimulatedSite
    from cloister.enclave import Preparation, imported_packages, prepare

    began = time.monotonic()
    try:
        SimulatedSite.create(machine_folder())
    except InputError as error:
        if error.code != 2007:
            raise
    with resources.as_file(resources.files("cloister.demo").joinpath("scripts")) as scripts:
        modules = tuple(sorted(imported_packages(scripts)))
    prepare(Preparation(modules=modules, offload=True, site=str(machine_folder())))
    return round(time.monotonic() - began, 1)
