"""A small valid manifest for tests: two hospitals, one lab, two key managers, a train stage, a service."""

from __future__ import annotations

from cloister.manifest import (
    Image,
    KeyManager,
    Manifest,
    Output,
    Party,
    Release,
    Service,
    SignedManifest,
    Stage,
    Tee,
    Validity,
)
from cloister.party import Identity

__all__ = ["IDENTITIES", "KEY_MANAGERS", "sign_all", "two_hospitals"]

IDENTITIES = {name: Identity.generate(name) for name in ("hospital-a", "hospital-b", "lab", "doctor")}
KEY_MANAGERS = {name: Identity.generate(name) for name in ("keys-a", "keys-b")}


def two_hospitals() -> Manifest:
    """Two stages and a service: ``prepare`` joins both hospitals' data, ``train`` makes the model."""
    people = {n: Party(sign=str(i.signing_key.public), hpke=str(i.opening_key.public)) for n, i in IDENTITIES.items()}
    managers = {n: KeyManager(sign=str(i.signing_key.public), tee="enclave") for n, i in KEY_MANAGERS.items()}
    return Manifest(
        cloister=1,
        name="two-hospitals",
        valid=Validity(not_before="2026-01-01T00:00:00Z", not_after="2027-01-01T00:00:00Z"),
        parties=people,
        key_managers=managers,
        registrar="keys-a",
        tees={"enclave": Tee(type="tdx", measurements=("0" * 96,), simulated_root="1" * 64)},
        images={
            "data-a": Image(id="a" * 64, kind="dataset", owner="hospital-a", key_manager="keys-a"),
            "data-b": Image(id="b" * 64, kind="dataset", owner="hospital-b", key_manager="keys-b"),
            "scripts": Image(id="c" * 64, kind="code", owner="lab", key_manager="keys-a"),
        },
        stages={
            "prepare": Stage(
                tee="enclave",
                code="scripts",
                argv=("python", "prepare.py"),
                inputs=("data-a", "data-b"),
                outputs={"joined": Output(max_bytes=1 << 20)},
            ),
            "train": Stage(
                tee="enclave",
                code="scripts",
                argv=("python", "train.py"),
                inputs=("joined",),
                outputs={"model": Output(max_bytes=1 << 20), "metrics": Output(max_bytes=1 << 16)},
            ),
        },
        services={"answers": Service(tee="enclave", model="model")},
        releases=(
            Release(output="joined", stage="train"),
            Release(output="model", service="answers"),
            Release(output="metrics", party="hospital-a"),
        ),
    )


def sign_all(manifest: Manifest) -> SignedManifest:
    """The manifest with the signature of every party."""
    from cloister.manifest import sign

    signed = SignedManifest(manifest=manifest)
    for identity in IDENTITIES.values():
        signed = sign(signed, identity)
    return signed
