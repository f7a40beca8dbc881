"""The service's own process: keys for the model, the model into memory, then requests until it is stopped.

1. The manifest is signed by everybody whose data reached the model, and the grant is the registrar's, for this service.
2. Fresh keys are made and attested; every contributor releases its part of the model's key.
3. The model is verified, decrypted, unpacked by a process that sees nothing else, read into memory; its files go.
4. A process in a sandbox of its own loads it: this one never parses it (``_model``).
5. The service says what it attested to, and answers.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from cloister.attest import Attester, Evidence, SessionClaims
from cloister.enclave import (
    AttemptKeys,
    Job,
    ObtainKeys,
    Sandboxed,
    Workspace,
    check_unpacked,
    obtain_keys,
)
from cloister.errors import CloisterError, InputError, RefusedError
from cloister.keys import AttemptGrant, open_signed
from cloister.manifest import Service, require_signed
from cloister.seal import open_image
from cloister.serve._core import Identity, ServiceCore
from cloister.serve._messages import ModelCard
from cloister.serve._model import SandboxedModel, sealed_file
from cloister.wire import Digest, Envelope, Message, Name, VerifyKey, read_bounded

__all__ = ["OpenService", "ServiceJob", "ServiceStarted", "open_service"]

MAX_MODEL_BYTES = 2 << 30  # protobuf's own limit on one message
MAX_CARD_BYTES = 1 << 20


class ServiceJob(Message):
    """What the host tells a service: where things lie, and where to listen."""

    format: Literal["cloister/service-job/v1"] = "cloister/service-job/v1"
    job: Job
    listen: str


class ServiceStarted(Message):
    """What a service tells the host once it is ready: public parts, for clients and for the audit."""

    format: Literal["cloister/service-started/v1"] = "cloister/service-started/v1"
    claims: SessionClaims
    evidence: Evidence
    releases: dict[Name, Envelope]
    model: Digest


@dataclass(frozen=True, slots=True)
class OpenService:
    """A service that can answer; its model's process lives until ``model`` is closed."""

    core: ServiceCore
    started: ServiceStarted
    model: SandboxedModel


def open_service(
    job: Job,
    *,
    attester: Callable[[str], Attester],
    sandbox: Callable[[Service], Sandboxed],
    private: Path,
    obtain: ObtainKeys = obtain_keys,
) -> OpenService:
    """Steps 1 to 4; whatever happens, the model's files are gone when this returns.

    Args:
        job: From the host; nothing in it is trusted. Its ``stage`` is the service's name.
        attester: The TEE of a kind that this process runs in.
        sandbox: Makes a fresh one, in which the image is unpacked, and another one for each start of the model.
        private: An empty folder in private memory.
        obtain: Attests and gets the keys.

    Raises:
        InputError: 2501 when the manifest has no such service; 2505 when the job does not say where the model lies;
            2006 without ONNX Runtime.
        RefusedError: 3502 when the grant is for something else; whatever a key manager refused.
        IntegrityError: when the model's image is not what was registered.
        UnsupportedError: 8601, 8602 when it is not a model that can be served.
        PeerError: 6603, 6604, 6605 when the model's process does not come up.
    """
    if find_spec("onnxruntime") is None or find_spec("onnx") is None:
        raise InputError(2006, "serving a model needs ONNX Runtime", hint='pip install "cloister[serve]"')
    require_signed(job.manifest)  # (1)
    manifest = job.manifest.manifest
    service = manifest.services.get(job.stage)
    if service is None:
        raise InputError(2501, f"the manifest has no service {job.stage!r}", expected=", ".join(manifest.services))
    registrar = VerifyKey.parse(manifest.key_managers[manifest.registrar].sign)
    grant = open_signed(AttemptGrant, job.grant, registrar)
    if (grant.manifest, grant.consumer) != (manifest.id, job.stage):
        raise RefusedError(3502, expected=f"{job.stage} of {manifest.id}", got=f"{grant.consumer} of {grant.manifest}")
    if service.model not in job.inputs:
        raise InputError(2505, f"the job names no place for the input {service.model!r}")
    platform = attester(manifest.tees[service.tee].type)
    keys = obtain(job, grant, platform)  # (2)
    model, card = _load(job, service, keys, sandbox, private)  # (3), (4)
    identity = Identity(
        manifest=manifest.id,
        run=grant.run,
        service=job.stage,
        attempt=grant.attempt,
        model=keys.image_of(service.model),
        clients={name: VerifyKey.parse(manifest.parties[name].sign) for name in service.clients},
    )
    core = ServiceCore(identity, attester=platform, signing=keys.sign, predict=model.predict, card=card)
    started = ServiceStarted(
        claims=keys.claims, evidence=keys.evidence, releases=dict(keys.releases), model=identity.model
    )
    return OpenService(core, started, model)


def _load(
    job: Job, service: Service, keys: AttemptKeys, sandbox: Callable[[Service], Sandboxed], private: Path
) -> tuple[SandboxedModel, ModelCard]:
    name = service.model
    work = Workspace.create(private, outputs=())
    handle = os.memfd_create(name)
    try:
        with (
            open_image(job.inputs[name], image_id=keys.image_of(name), key=keys.key_of(name)) as reader,
            os.fdopen(os.dup(handle), "wb") as file,
        ):
            reader.copy_to(file)
        target = work.input(name)
        target.parent.mkdir(mode=0o700)
        with sandbox(service) as confined:
            confined.unpack(handle, target, name=name)
        check_unpacked(target, name=name)
        names = _names(target / "model.json")
        content = sealed_file(read_bounded(target / "model.onnx", max_bytes=MAX_MODEL_BYTES, what="the model"))
    finally:
        os.close(handle)
        work.wipe()
    model = SandboxedModel(content, sandbox=lambda: sandbox(service), time_s=service.limits.time_s)
    return model, ModelCard(inputs=model.inputs, features=names.get("features"), classes=names.get("classes"))


def _names(path: Path) -> dict[str, tuple[str, ...]]:
    """The model's own names for columns and classes, where ``model.json`` lists any.

    The file is a script's, with fractions in it, so it is ordinary JSON; nothing but two lists of names is taken.
    """
    said: object = {}
    with contextlib.suppress(CloisterError, ValueError, RecursionError):
        said = json.loads(read_bounded(path, max_bytes=MAX_CARD_BYTES, what="the model's description"))
    names: dict[str, tuple[str, ...]] = {}
    for key in ("features", "classes"):
        value = said.get(key) if isinstance(said, dict) else None
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            names[key] = tuple(value)
    return names
