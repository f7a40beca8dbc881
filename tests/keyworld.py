"""A world for key-manager tests: two hospitals, two key managers, simulated enclaves, a clock that a test turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cloister.attest import Evidence, SessionClaims, SimulatedSite
from cloister.errors import CloisterError
from cloister.keys import (
    KeyManagerClient,
    KeyRule,
    LocalTransport,
    MemoryStore,
    Obtained,
    RefusalEntry,
    RegistrationRequest,
    Service,
    Settings,
    StageSession,
    create_app,
    initialise,
    install_key,
    obtain,
    open_head,
    open_signed,
    parse_entry,
    verify_service,
)
from cloister.keys._messages import AttemptGrant
from cloister.keys._store import KeyStore
from cloister.manifest import (
    Image,
    KeyManager,
    Manifest,
    Output,
    Party,
    Release,
    SignedManifest,
    Stage,
    Tee,
    Validity,
    sign,
)
from cloister.manifest import Service as ServiceStage
from cloister.party import Identity
from cloister.wire import Envelope, Secret, VerifyKey, digest

__all__ = [
    "IDENTITIES",
    "KEYS",
    "LAUNCHER",
    "NOW",
    "Clock",
    "World",
    "attester_of",
    "build_manifest",
    "code_of",
    "last_refusal",
]

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
LAUNCHER, KEYS = b"\x11" * 48, b"\x22" * 48
IDENTITIES = {name: Identity.generate(name) for name in ("hospital-a", "hospital-b", "lab", "doctor")}


@dataclass
class Clock:
    """The host's clock."""

    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now

    def turn(self, **by: float) -> None:
        self.now += timedelta(**by)


@dataclass
class World:
    """Key managers by name, each with its own store, and the manifest that names them."""

    site: SimulatedSite
    clock: Clock = field(default_factory=Clock)
    stores: dict[str, KeyStore] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)
    clients: dict[str, KeyManagerClient] = field(default_factory=dict)
    signed: SignedManifest | None = None
    keys: dict[str, Secret] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    transports: list[LocalTransport] = field(default_factory=list)

    @classmethod
    def make(
        cls,
        folder: Path,
        *,
        names: tuple[str, ...] = ("keys-a", "keys-b"),
        store: Callable[[str], KeyStore] = lambda _: MemoryStore(),
        change: Callable[[Manifest], Manifest] = lambda manifest: manifest,
        settings: Settings | None = None,
        site: SimulatedSite | None = None,
    ) -> World:
        """Key managers that run, and a manifest that everybody signed; nothing is installed."""
        site = site or _site(folder)
        world = cls(site, settings=settings or Settings())
        signs: dict[str, str] = {}
        for name in names:
            world.stores[name] = store(name)
            signs[name] = initialise(world.stores[name], now=NOW, attester=attester_of(world, KEYS)).sign
            world.start(name, VerifyKey.parse(signs[name]))
        world.agree(change(build_manifest(signs, site.root_spki)))
        return world

    @property
    def manifest(self) -> Manifest:
        assert self.signed is not None
        return self.signed.manifest

    def agree(self, manifest: Manifest) -> SignedManifest:
        """Everybody signs."""
        signed = SignedManifest(manifest=manifest)
        for identity in IDENTITIES.values():
            signed = sign(signed, identity)
        self.signed = signed
        return signed

    def start(self, name: str, key: VerifyKey) -> None:
        """Starts (or restarts) a key manager over its store."""
        service = Service(self.stores[name], attester=attester_of(self, KEYS), clock=self.clock, settings=self.settings)
        transport = LocalTransport(create_app(service))
        self.transports.append(transport)
        self.services[name] = service
        self.clients[name] = KeyManagerClient("http://keys.test", key, transport=transport)

    def restart(self, name: str, store: KeyStore | None = None) -> None:
        """Ends a key manager and starts it again, over another store when given."""
        self.services[name].desk.close()
        if store is not None:
            self.stores[name] = store
        self.start(name, self.clients[name].key)

    def install(self, *images: str, **rule: Any) -> None:
        """The agreement and the owners' keys, everywhere."""
        for client in self.clients.values():
            client.install_manifest(self.signed)
        for image in images or self.manifest.images:
            self.install_one(image, **rule)

    def install_one(self, image: str, **rule: Any) -> None:
        """One owner's key."""
        item = self.manifest.images[image]
        client = self.clients[item.key_manager]
        service = verify_service(client, self.manifest, item.key_manager, at=self.clock(), allow_simulated=True)
        self.keys.setdefault(image, Secret.random(64))
        install_key(
            client,
            service,
            manifest=self.manifest,
            image=image,
            key=self.keys[image],
            rule=KeyRule(**{"uses": item.uses, "simulated": True, **rule}),
            identity=IDENTITIES[item.owner],
        )

    def run(self) -> Envelope:
        """A run."""
        return self.registrar.start_run(self.manifest.id)

    @property
    def registrar(self) -> KeyManagerClient:
        return self.clients[self.manifest.registrar]

    def attempt(self, run: Envelope, consumer: str) -> Attempt:
        """The next attempt, with a launcher that has attested to nothing yet."""
        grant = self.registrar.start_attempt(run, consumer)
        return Attempt(self, StageSession(self.manifest, consumer), grant)

    def finish(self, run: Envelope, stage: str) -> tuple[Obtained, dict[str, str]]:
        """One stage from attempt to registration everywhere."""
        attempt = self.attempt(run, stage)
        obtained = attempt.obtain()
        outputs = {name: digest(f"{stage} {name}".encode()) for name in self.manifest.stages[stage].outputs}
        self.register(obtained.session.registration(outputs=outputs, receipt_digest="0" * 64), obtained)
        return obtained, outputs

    def register(self, registration: Envelope, obtained: Obtained) -> dict[str, Envelope]:
        """Delivers a registration, to the registrar first."""
        first = self.manifest.registrar
        receipts = {first: self.clients[first].register(RegistrationRequest(registration=registration))}
        for name in obtained.session.contributors:
            if name != first:
                request = RegistrationRequest(registration=registration, registrar=receipts[first])
                receipts[name] = self.clients[name].register(request)
        return receipts

    def shown(self, name: str, **asked: Any) -> list[Any]:
        """The entries that a key manager shows its client."""
        client = self.clients[name]
        pages = client.pages(open_head(client.head(), client.key), **{"manifest": self.manifest.id, **asked})
        return [item.entry for _, page in pages for item in page.entries]

    def close(self) -> None:
        for service in self.services.values():
            if not service.locked:
                service.desk.close()
        for transport in self.transports:
            transport.close()


@dataclass
class Attempt:
    """One attempt of a launcher, step by step, so that a test can go wrong at any of them."""

    world: World
    session: StageSession
    grant: Envelope
    code: bytes = LAUNCHER
    attester: Any = None

    @property
    def opened(self) -> AttemptGrant:
        manifest = self.world.manifest
        key = VerifyKey.parse(manifest.key_managers[manifest.registrar].sign)
        return open_signed(AttemptGrant, self.grant, key)

    def obtain(self) -> Obtained:
        attester = self.attester or attester_of(self.world, self.code)
        return obtain(self.session, self.grant, clients=self.world.clients, attester=attester)

    def claims(self) -> SessionClaims:
        challenges = {name: self.world.clients[name].challenge(self.grant) for name in self.session.contributors}
        return self.session.claims(self.grant, challenges)

    def evidence(self, claims: SessionClaims, **how: Any) -> Evidence:
        return attester_of(self.world, self.code, **how).attest(claims.report_data())


def code_of(act: Callable[[], object]) -> int:
    """The code of the error that ``act`` must end with."""
    try:
        act()
    except CloisterError as error:
        return error.code
    raise AssertionError("this must be refused")


def last_refusal(world: World, name: str) -> RefusalEntry:
    """The newest entry of a key manager's log, which must be a refusal."""
    size = world.stores[name].size()
    entry = parse_entry(world.stores[name].read(size - 1, size)[0])
    assert isinstance(entry, RefusalEntry), entry
    return entry


def attester_of(world: World, code: bytes, **how: Any) -> Any:
    """A simulated enclave of the world's site."""
    return world.site.attester(code, clock=world.clock, **how)


_SITES: list[SimulatedSite] = []


def _site(folder: Path) -> SimulatedSite:
    """One site for all tests of a process: making its keys takes longer than most tests."""
    if not _SITES:
        _SITES.append(SimulatedSite.create(folder / "site", created=NOW - timedelta(days=1)))
    return _SITES[0]


def build_manifest(signs: Mapping[str, str], root: str) -> Manifest:
    names = sorted(signs)
    people = {n: Party(sign=str(i.signing_key.public), hpke=str(i.opening_key.public)) for n, i in IDENTITIES.items()}

    def tee(code: bytes) -> Tee:
        return Tee(type="tdx", measurements=(code.hex(),), simulated_root=root)

    return Manifest(
        cloister=1,
        name="two-hospitals",
        valid=Validity(not_before="2026-01-01T00:00:00Z", not_after="2027-01-01T00:00:00Z"),
        parties=people,
        key_managers={name: KeyManager(sign=signs[name], tee="keys") for name in names},
        registrar=names[0],
        tees={"launcher": tee(LAUNCHER), "keys": tee(KEYS)},
        images={
            "data-a": Image(id="a" * 64, kind="dataset", owner="hospital-a", key_manager=names[0], uses=5),
            "data-b": Image(id="b" * 64, kind="dataset", owner="hospital-b", key_manager=names[-1], uses=5),
            "scripts": Image(id="c" * 64, kind="code", owner="lab", key_manager=names[0], uses=50),
        },
        stages={
            "prepare": _stage(("data-a", "data-b"), "joined"),
            "train": _stage(("joined",), "model", "metrics"),
        },
        services={"answers": ServiceStage(tee="launcher", model="model", clients=("doctor",))},
        releases=(
            Release(output="joined", stage="train", uses=3),
            Release(output="model", service="answers", uses=3),
            Release(output="metrics", party="hospital-a", uses=2),
        ),
    )


def _stage(inputs: tuple[str, ...], *outputs: str) -> Stage:
    made = {name: Output(max_bytes=1 << 20) for name in outputs}
    return Stage(tee="launcher", code="scripts", argv=("python", "main.py"), inputs=inputs, outputs=made)
