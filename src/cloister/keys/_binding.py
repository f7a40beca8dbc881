"""What each sealed message is bound to, and how an output's key comes from its parts."""

from __future__ import annotations

from collections.abc import Mapping

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloister.wire import Secret, canonical, labelled_digest

__all__ = [
    "administrator_info",
    "collect_info",
    "derive_checkpoint_key",
    "derive_output_key",
    "install_info",
    "release_info",
    "share_info",
    "unlock_info",
]

OUTPUT_KEY_BYTES = 64  # AES-XTS-512: two AES-256 keys
CHECKPOINT_KEY_BYTES = 32
PART_BYTES = 32


def _info(label: str, **fields: str | int) -> bytes:
    return bytes.fromhex(labelled_digest(label, fields))


def install_info(*, manifest: str, image: str, owner: str) -> bytes:
    """For an owner's key on its way to the key manager."""
    return _info("cloister/key-install/v1", manifest=manifest, image=image, owner=owner)


def release_info(*, manifest: str, run: str, stage: str, attempt: int, session: str) -> bytes:
    """For released keys on their way to the launcher."""
    return _info("cloister/key-release/v1", manifest=manifest, run=run, stage=stage, attempt=attempt, session=session)


def share_info(*, manifest: str, run: str, stage: str, attempt: int, key_manager: str) -> bytes:
    """For the launcher's share on its way to a key manager."""
    return _info("cloister/share/v1", manifest=manifest, run=run, stage=stage, attempt=attempt, key_manager=key_manager)


def collect_info(*, manifest: str, run: str, output: str, party: str, session: str) -> bytes:
    """For an output's key part on its way to a party."""
    return _info("cloister/collect/v1", manifest=manifest, run=run, output=output, party=party, session=session)


def administrator_info(*, store: str, administrator: str) -> bytes:
    """For a share of the state key, made at init, on its way to an administrator."""
    return _info("cloister/administrator-share/v1", store=store, administrator=administrator)


def unlock_info(*, administrator: str, claims: str) -> bytes:
    """For a share of the state key on its way to the locked service whose claims have this digest."""
    return _info("cloister/unlock/v1", administrator=administrator, claims=claims)


def derive_output_key(
    contributions: Mapping[str, Secret],
    *,
    share: Secret,
    grant: str,
    manifest: str,
    run: str,
    stage: str,
    attempt: int,
    output: str,
) -> Secret:
    """The 64-byte key of one output of one attempt.

    Args:
        contributions: By the key manager's name, one from every contributor; 32 bytes each.
        share: The launcher's own 32 bytes.
        grant: Digest of the attempt grant.
        manifest: The agreement.
        run: The run.
        stage: The producer.
        attempt: Its attempt.
        output: The output.

    Security: secret while one contribution *or* the share is; fresh while one of them is fresh. The names are bound
    beside the bytes, so that two key managers cannot trade places.

    Source: RFC 5869; docs/key-release.md, 8.
    """
    names = sorted(contributions)
    parts = [contributions[name].reveal() for name in names]
    if any(len(part) != PART_BYTES for part in (*parts, share.reveal())):
        raise ValueError("every part of an output key has 32 bytes")
    context = canonical(
        {
            "label": "cloister/output-key/v1",
            "manifest": manifest,
            "run": run,
            "stage": stage,
            "attempt": attempt,
            "output": output,
            "key_managers": names,
        }
    )
    kdf = HKDF(algorithm=SHA256(), length=OUTPUT_KEY_BYTES, salt=bytes.fromhex(grant), info=context)
    return Secret(kdf.derive(b"".join(parts) + share.reveal()))


def derive_checkpoint_key(contributions: Mapping[str, Secret], *, manifest: str, run: str, stage: str) -> Secret:
    """The 32-byte key of a stage's checkpoints in one run: every attempt's, and nobody else's.

    Args:
        contributions: By the key manager's name, one from every contributor; 32 bytes each.
        manifest: The agreement.
        run: The run.
        stage: The stage.

    Security: secret while one contribution is. No launcher has a share in it, or its successor could not have the key;
    each checkpoint is sealed under a key of its own, which a fresh salt makes of this one.

    Source: RFC 5869; docs/key-release.md, 14.
    """
    names = sorted(contributions)
    parts = [contributions[name].reveal() for name in names]
    if not parts or any(len(part) != PART_BYTES for part in parts):
        raise ValueError("every part of a checkpoint key has 32 bytes")
    context = canonical(
        {
            "label": "cloister/checkpoint-key/v1",
            "manifest": manifest,
            "run": run,
            "stage": stage,
            "key_managers": names,
        }
    )
    kdf = HKDF(algorithm=SHA256(), length=CHECKPOINT_KEY_BYTES, salt=bytes.fromhex(manifest), info=context)
    return Secret(kdf.derive(b"".join(parts)))
