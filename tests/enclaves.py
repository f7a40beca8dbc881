"""A launcher's world without a network: a signed manifest, sealed images, and keys that are simply there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cloister.attest import SessionClaims, SimulatedSite
from cloister.enclave import Job, StageOutcome
from cloister.enclave._confinement import InProcess, Sandboxed
from cloister.enclave._launcher import launch
from cloister.keys import AttemptGrant, CheckpointRecord, Checkpoints, sign_message
from cloister.manifest import (
    Image,
    KeyManager,
    Limits,
    Manifest,
    OffloadTerms,
    Output,
    Party,
    Release,
    SignedManifest,
    Stage,
    Tee,
    Validity,
    Worker,
    sign,
)
from cloister.party import Identity
from cloister.seal import open_image, seal_file, seal_folder, unpack
from cloister.wire import Envelope, OpeningKey, Secret, SigningKey, digest

__all__ = ["IDENTITIES", "KEY_MANAGER", "World", "offload_workers"]

IDENTITIES = {name: Identity.generate(name) for name in ("hospital", "lab")}
OPERATORS = {name: Identity.generate(name) for name in ("cloud-x", "cloud-y")}
KEY_MANAGER = Identity.generate("keys")
LIMITS = Limits(memory_bytes=1 << 29, time_s=60, processes=64)


@dataclass
class SimpleKeys:
    """An :class:`AttemptKeys` of keys that the test made."""

    claims: SessionClaims
    evidence: object
    sign: SigningKey
    ids: Mapping[str, str]
    keys: Mapping[str, Secret]
    outputs: dict[str, Secret]
    assurance: str = "simulated"
    releases: dict[str, Envelope] = field(default_factory=dict)
    checkpoints: Checkpoints | None = None
    saved: list[CheckpointRecord] = field(default_factory=list)

    def save_checkpoint(self, sequence: int, checkpoint: str) -> None:
        attempt = self.claims.attempt or 0
        self.saved.append(CheckpointRecord(attempt=attempt, sequence=sequence, checkpoint=checkpoint))

    def image_of(self, name: str) -> str:
        return self.ids[name]

    def key_of(self, name: str) -> Secret:
        return self.keys[name]

    def output_key(self, name: str) -> Secret:
        return self.outputs.setdefault(name, Secret.random(64))

    def register(self, outputs: Mapping[str, str], receipt: Envelope) -> tuple[Envelope, dict[str, Envelope]]:
        del outputs
        return receipt, {"keys": receipt}

    def close(self) -> None:
        return


@dataclass
class World:
    """Everything that one attempt at the stage ``train`` needs."""

    folder: Path
    site: SimulatedSite
    signed: SignedManifest
    job: Job
    keys: Mapping[str, Secret]
    session: SigningKey = field(default_factory=SigningKey.generate)
    outputs: dict[str, Secret] = field(default_factory=dict)
    obtained: int = 0
    checkpoint_key: Secret = field(default_factory=lambda: Secret.random(32))
    saved: list[CheckpointRecord] = field(default_factory=list)

    @classmethod
    def build(
        cls,
        folder: Path,
        script: str = "",
        *,
        files: Mapping[str, str] | None = None,
        data: Path | None = None,
        squashfs: Path | None = None,
        stage: Mapping[str, object] | None = None,
        simulated: bool = True,
        max_bytes: int = 1 << 20,
        workers: bool = False,
        offload: OffloadTerms | None = None,
        links: Mapping[str, Worker] | None = None,
    ) -> World:
        """A world in which ``train.py`` is ``script``, and the dataset has one file ``x.txt``, or is ``squashfs``.

        Layers of the stage are offloaded by the terms ``offload``, to made-up workers or to those of ``links``.
        """
        folder.mkdir(parents=True, exist_ok=True)
        code = folder / "code"
        code.mkdir()
        for name, text in {"train.py": script, **(files or {})}.items():
            (code / name).write_text(text)
        if data is None:
            data = folder / "data"
            data.mkdir()
            (data / "x.txt").write_text("secret 42")
        sealed = {"code": seal_folder(code, folder / "code.image")}
        image = folder / "data.image"
        sealed["data"] = seal_folder(data, image) if squashfs is None else seal_file(squashfs, image)
        site = SimulatedSite.create(folder / "site")
        if offload is not None:
            stage = {"network": offload.workers, "offload": offload, **(stage or {})}
            links = links or offload_workers(*offload.workers)
        manifest = _manifest({n: i.id for n, i in sealed.items()}, site, stage or {}, simulated, max_bytes)
        gpu = {"gpu": Worker(operator="lab", url="https://gpu.invalid")} if workers else {}
        manifest = manifest.model_copy(update={"workers": {**gpu, **(links or {})}})
        signed = SignedManifest(manifest=manifest)
        for identity in IDENTITIES.values():
            signed = sign(signed, identity)
        return cls(
            folder=folder,
            site=site,
            signed=signed,
            job=Job(
                manifest=signed,
                stage="train",
                grant=cls.granted(manifest),
                key_managers={"keys": "http://unused.invalid"},
                inputs={"code": str(folder / "code.image"), "data": str(folder / "data.image")},
                outputs={"model": str(folder / "model.image")},
                checkpoint=str(folder / "train.checkpoint"),
                workers={name: worker.url for name, worker in (links or {}).items()},
                site=str(folder / "site"),
            ),
            keys={name: image.key for name, image in sealed.items()},
        )

    @staticmethod
    def granted(manifest: Manifest, *, manifest_id: str | None = None, **changes: object) -> Envelope:
        """An attempt grant of the registrar."""
        fields = {
            "manifest": manifest_id or manifest.id,
            "run": "0" * 32,
            "consumer": "train",
            "attempt": 1,
            "issued_at": "2026-06-01T00:00:00Z",
        }
        return sign_message(AttemptGrant(**(fields | changes)), KEY_MANAGER.signing_key)

    def obtain(self, job, grant, attester):
        """Keys without key managers; the evidence is real (simulated) evidence over real claims."""
        self.obtained += 1
        claims = SessionClaims(
            purpose="stage",
            nonces={"keys": bytes(32)},
            hpke=str(OpeningKey.generate(post_quantum=False).public),
            sign=str(self.session.public),
            manifest=grant.manifest,
            run=grant.run,
            stage=grant.consumer,
            attempt=grant.attempt,
        )
        ids = {name: image.id for name, image in job.manifest.manifest.images.items()}
        evidence = attester.attest(claims.report_data())
        keys = SimpleKeys(claims, evidence, self.session, ids, self.keys, self.outputs, saved=self.saved)
        if job.manifest.manifest.stages[job.stage].checkpoint is not None:
            keys.checkpoints = Checkpoints(self.checkpoint_key, self.saved[-1] if self.saved else None)
        return keys

    @property
    def grant_digest(self) -> str:
        """What a log is bound to."""
        return digest(self.job.grant.payload)

    def launch(self, job: Job | None = None, *, inline: bool = False, platform=None, offloader=None) -> StageOutcome:
        """The attempt, in this process, with the real sandbox unless ``inline``."""
        private = self.folder / "private"
        private.mkdir(exist_ok=True)
        opened = []

        def confinement(stage):
            opened.append(InProcess() if inline else Sandboxed(stage.limits).__enter__())
            return opened[0]

        try:
            return launch(
                job or self.job,
                attester=lambda tee: platform or self.site.attester(bytes(48)),
                confinement=confinement,
                private=private,
                now=lambda: datetime(2026, 6, 1, tzinfo=UTC),
                obtain=self.obtain,
                offloader=offloader,
            )
        finally:
            for each in opened:
                if isinstance(each, Sandboxed):
                    each.__exit__()

    def unpacked(self, outcome: StageOutcome, name: str = "model") -> Path:
        """An output, opened with the key that the attempt sealed it with."""
        target = self.folder / f"unpacked-{name}"
        image = outcome.require().images[name]
        with open_image(self.job.outputs[name], image_id=image, key=self.outputs[name]) as reader:
            unpack(reader, target)
        return target


def offload_workers(*names: str) -> dict[str, Worker]:
    """Workers that are nowhere: the first is the lab's, each other of an operator of its own."""
    found = {}
    for number, name in enumerate(names):
        key = str(OpeningKey.generate(post_quantum=False).public)
        found[name] = Worker(operator=("lab", *OPERATORS)[number], url="tcp://127.0.0.1:1", key=key)
    return found


def _manifest(ids, site, stage, simulated, max_bytes) -> Manifest:
    everybody = {**IDENTITIES, **OPERATORS}
    parties = {n: Party(sign=str(i.signing_key.public), hpke=str(i.opening_key.public)) for n, i in everybody.items()}
    fields = {
        "tee": "enclave",
        "code": "code",
        "argv": ("python", "train.py"),
        "inputs": ("data",),
        "outputs": {"model": Output(max_bytes=max_bytes)},
        "limits": LIMITS,
    }
    return Manifest(
        cloister=1,
        name="small",
        valid=Validity(not_before="2026-01-01T00:00:00Z", not_after="2027-01-01T00:00:00Z"),
        parties=parties,
        key_managers={"keys": KeyManager(sign=str(KEY_MANAGER.signing_key.public), tee="enclave")},
        registrar="keys",
        tees={
            "enclave": Tee(
                type="tdx",
                measurements=("0" * 96,),
                rtmrs=(("0" * 96, "0" * 96, "0" * 96, "any"),),
                simulated_root=site.root_spki if simulated else None,
            )
        },
        images={
            "code": Image(id=ids["code"], kind="code", owner="lab", key_manager="keys"),
            "data": Image(id=ids["data"], kind="dataset", owner="hospital", key_manager="keys"),
        },
        stages={"train": Stage(**{**fields, **stage})},
        releases=(Release(output="model", party="hospital"),),
    )
