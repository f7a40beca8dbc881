"""kill -9 at random moments under load: nothing acknowledged is lost, no use is spent twice."""

import random
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.keyserver import KEYS, ServerProcess
from tests.keyworld import IDENTITIES, LAUNCHER, Clock, World, build_manifest

from cloister.attest import SimulatedSite
from cloister.errors import CloisterError
from cloister.keys import (
    KeptHeads,
    KeyManagerClient,
    KeyRelease,
    KeyRule,
    ReleaseEntry,
    Service,
    StageSession,
    initialise,
    install_key,
    open_signed,
    parse_entry,
    require_receipt,
    store_at,
    verify_service,
)
from cloister.keys._time import stamp
from cloister.manifest import Image, Manifest, Release, Validity
from cloister.wire import Secret, VerifyKey

USES, ROUNDS, CLIENTS = 60, 6, 4


def manifest_of(sign: str, root: str) -> Manifest:
    """The world's manifest, with many datasets to install, one after the other, under fire."""
    manifest = build_manifest({"keys": sign}, root)
    images = {**manifest.images, "data-a": manifest.images["data-a"].model_copy(update={"uses": USES})}
    images["scripts"] = manifest.images["scripts"].model_copy(update={"uses": 10_000})
    images["data-b"] = manifest.images["data-b"].model_copy(update={"uses": 10_000})
    stage = manifest.stages["prepare"]
    for number in range(ROUNDS * 10):
        images[f"more-{number}"] = Image(id=f"{number:064x}", kind="dataset", owner="lab", key_manager="keys")
    more = tuple(name for name in images if name.startswith("more"))
    spare = stage.model_copy(update={"inputs": more, "outputs": {"spare": stage.outputs["joined"]}})
    stages = {**manifest.stages, "prepare": stage, "spare": spare}
    now = datetime.now(UTC)
    valid = Validity(not_before=stamp(now - timedelta(hours=1)), not_after=stamp(now + timedelta(hours=1)))
    releases = (*manifest.releases, Release(output="spare", nobody=True))
    return manifest.model_copy(update={"images": images, "stages": stages, "releases": releases, "valid": valid})


class Load:
    """Clients that release and install as fast as they can, and write down only what was acknowledged."""

    def __init__(self, world: World, client: KeyManagerClient) -> None:
        self.world, self.client = world, client
        self.released: list[tuple[str, int]] = []
        self.installed: dict[str, Secret] = {}
        self.unexpected: list[CloisterError] = []
        self.lock, self.stop = threading.Lock(), threading.Event()

    def release(self) -> None:
        world, attester = self.world, self.world.site.attester(LAUNCHER)
        while not self.stop.is_set():
            try:
                run = self.client.start_run(world.manifest.id)
                grant = self.client.start_attempt(run, "prepare")
                session = StageSession(world.manifest, "prepare")
                claims = session.claims(grant, {"keys": self.client.challenge(grant)})
                envelope = self.client.release(session.request("keys", attester.attest(claims.report_data())))
            except CloisterError as error:
                self.expect(error, 6401, 3411)
                continue
            said = open_signed(KeyRelease, envelope, self.client.key)
            require_receipt(said.receipt, self.client.key)
            with self.lock:
                self.released.append((said.run, said.attempt))

    def expect(self, error: CloisterError, *codes: int) -> None:
        if error.code not in codes:
            self.unexpected.append(error)

    def install(self, names: list[str]) -> None:
        world = self.world
        try:
            service = verify_service(self.client, world.manifest, "keys", at=world.clock(), allow_simulated=True)
        except CloisterError as error:
            self.expect(error, 6401)
            return
        for name in names:
            if self.stop.is_set():
                return
            key = Secret.random(64)
            rule = KeyRule(uses=1, simulated=True)
            given = {"manifest": world.manifest, "image": name, "key": key, "rule": rule}
            try:
                install_key(self.client, service, identity=IDENTITIES["lab"], **given)
            except CloisterError as error:
                self.expect(error, 6401)
                continue
            with self.lock:
                self.installed[name] = key


@pytest.mark.slow
def test_killed_at_random_points_under_load(tmp_path: Path) -> None:
    dice = random.Random(20261120)
    url = f"sqlite:///{tmp_path / 'store.db'}"
    site = SimulatedSite.create(tmp_path / "site")
    world = World(site, clock=Clock())
    world.clock.now = datetime.now(UTC)
    made = initialise(store_at(url), now=world.clock(), attester=site.attester(KEYS))
    key = VerifyKey.parse(made.sign)
    world.agree(manifest_of(made.sign, site.root_spki))
    kept = KeptHeads(tmp_path / "heads")
    released: list[tuple[str, int]] = []
    installed: dict[str, Secret] = {}
    for number in range(ROUNDS):
        server = ServerProcess(url, tmp_path / "site")
        client = server.client(key)
        kept.check(client)  # the log goes on where it was, every time
        world.clients = {"keys": client}
        if number == 0:
            world.install("data-a", "data-b", "scripts", uses=USES)
        load = Load(world, client)
        names = [f"more-{number * 10 + each}" for each in range(10)]
        threads = [threading.Thread(target=load.release) for _ in range(CLIENTS)]
        threads.append(threading.Thread(target=load.install, args=(names,)))
        for thread in threads:
            thread.start()
        time.sleep(dice.uniform(0.1, 0.9))
        server.kill()
        load.stop.set()
        for thread in threads:
            thread.join()
        assert not load.unexpected
        released += load.released
        installed |= load.installed
        client.close()

    service = Service(store_at(url), attester=site.attester(KEYS))
    core = service.desk.core
    leaves = [parse_entry(leaf) for leaf in store_at(url).read(0, core.size)]
    in_log = [(e.run, e.attempt) for e in leaves if isinstance(e, ReleaseEntry) and "data-a" in e.images]
    assert released, "no release was acknowledged: the test did not test"
    assert installed, "no key was acknowledged: the test did not test"
    assert set(released) <= set(in_log)
    assert len(in_log) == len(set(in_log)) <= USES
    assert core._state.image_uses[world.manifest.id, "data-a"] == len(in_log)
    for name, secret in installed.items():
        assert core._secrets[f"key/{world.manifest.id}/{name}"].matches(secret)
    service.close()
