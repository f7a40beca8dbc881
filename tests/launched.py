"""Runs in real launchers: sealed images, key managers that are served, and a host that knows where all of it is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.keyworld import IDENTITIES, World
from tests.unit.enclave.test_stages import served

from cloister.attest import SimulatedSite
from cloister.enclave import measure_installed
from cloister.keys import collect_output
from cloister.manifest import Manifest, Release, Stage, Validity
from cloister.run import Host, RunFolder, start_run
from cloister.seal import SealedImage, open_image, unpack

__all__ = ["Granted", "granted", "one_stage"]


@dataclass
class Granted:
    """A run that may begin."""

    world: World
    folder: RunFolder
    host: Host

    def collected(self, output: str, target: Path) -> Path:
        """An output that hospital-a got, unpacked."""
        world, state = self.world, self.folder.state()
        identity = IDENTITIES["hospital-a"]
        found = collect_output(world.manifest, output, run=state.run, identity=identity, clients=world.clients)
        with open_image(state.outputs[output].url, image_id=found.image, key=found.key) as reader:
            unpack(reader, target)
        return target


@contextlib.contextmanager
def granted(
    folder: Path, sealed: Mapping[str, SealedImage], change: Callable[[Manifest], Manifest]
) -> Iterator[Granted]:
    """A world with ``sealed`` under ``folder``, everything installed, one attempt a stage."""
    site = SimulatedSite.create(folder / "site")
    world = World.make(folder, site=site, change=change)
    world.clock.now = datetime.now(UTC) + timedelta(minutes=5)
    world.keys = {name: image.key for name, image in sealed.items()}
    with contextlib.ExitStack() as stack:
        stack.callback(world.close)
        urls = {name: stack.enter_context(served(service)) for name, service in world.services.items()}
        world.install()
        host = Host(
            storage=str(folder / "storage"),
            images={name: str(folder / f"{name}.image") for name in sealed},
            key_managers=urls,
            site=str(folder / "site"),
            attempts=1,
        )
        assert world.signed is not None
        start_run(world.signed, run := RunFolder(folder / "run"), world.clients, host=host)
        yield Granted(world, run, host)


def one_stage(manifest: Manifest, sealed: Mapping[str, SealedImage], prepare: Stage) -> Manifest:
    """The manifest with ``prepare`` alone, by this installation's launcher, for hospital-a, from now on."""
    launcher = manifest.tees["launcher"]
    measured = measure_installed("launcher", sandbox="bubblewrap").for_tee("tdx")
    now = datetime.now(UTC)
    window = [(now + timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ") for days in (-2, 2)]
    return manifest.model_copy(
        update={
            "valid": Validity(not_before=window[0], not_after=window[1]),
            "tees": {**manifest.tees, "launcher": launcher.model_copy(update={"measurements": (measured,)})},
            "images": {n: image.model_copy(update={"id": sealed[n].id}) for n, image in manifest.images.items()},
            "stages": {"prepare": prepare},
            "services": {},
            "releases": (Release(output="joined", party="hospital-a"),),
        }
    )
