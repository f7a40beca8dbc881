"""The header is what Linux's own tools accept."""

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister import seal
from cloister.errors import InputError, IntegrityError
from cloister.seal._luks import HEADER_BYTES, check_key, luks_header
from cloister.wire import Secret


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
    )


def test_header_is_at_most_a_mebibyte_and_never_the_same_twice() -> None:
    key = Secret.random(64)
    first, second = luks_header(key, length=65536), luks_header(key, length=65536)
    assert len(first) == HEADER_BYTES <= 1 << 20
    assert first != second
    assert key.reveal() not in first


def test_only_the_images_key_passes() -> None:
    key = Secret.random(64)
    header = luks_header(key, length=65536)
    check_key(header, key)
    for other in (Secret.random(64), Secret(key.reveal()[:63]), Secret(key.reveal()[:63] + b"\0" * 2)):
        with pytest.raises(InputError) as caught:
            check_key(header, other)
        assert caught.value.code == 2207


@pytest.mark.parametrize("old", [b'"iterations":1000', b'"hash":"sha256"', b'"digests"', b'"salt"', b"{"])
def test_an_authentic_header_without_a_key_digest_is_named(old: bytes) -> None:
    header = luks_header(Secret.random(64), length=65536)
    with pytest.raises(IntegrityError) as caught:
        check_key(header.replace(old, b"~" * len(old)), Secret.random(64))
    assert caught.value.code == 5204


def test_cryptsetup_accepts_the_volume_key_and_no_other(sample, tmp_path: Path, needs: Callable[[str], str]) -> None:
    cryptsetup = needs("cryptsetup")
    (tmp_path / "key").write_bytes(sample.image.key.reveal())
    (tmp_path / "other").write_bytes(os.urandom(64))
    options = ("open", "--test-passphrase", "--key-size", "512", "--volume-key-file")
    assert run(cryptsetup, *options, "key", str(sample.path), cwd=tmp_path).returncode == 0
    refused = run(cryptsetup, *options, "other", str(sample.path), cwd=tmp_path)
    assert "does not match" in refused.stderr


def test_luksdump_reads_the_header(sample, tmp_path: Path, needs: Callable[[str], str]) -> None:
    said = run(needs("cryptsetup"), "luksDump", str(sample.path), cwd=tmp_path).stdout
    assert f"length: {sample.image.descriptor.length} [bytes]" in said
    assert "cipher: aes-xts-plain64" in said
    assert "sector: 4096 [bytes]" in said


def test_cryptsetup_decrypts_the_same_ciphertext_bit_for_bit(
    sample, tmp_path: Path, needs: Callable[[str], str]
) -> None:
    """A 16 MiB header with a keyslot stands in for ours: ``reencrypt`` wants a passphrase."""
    cryptsetup = needs("cryptsetup")
    descriptor = sample.image.descriptor
    header_bytes = 16 << 20
    (tmp_path / "key").write_bytes(sample.image.key.reveal())
    (tmp_path / "passphrase").write_bytes(b"passphrase")
    with open(tmp_path / "device", "wb") as device:
        device.truncate(header_bytes + descriptor.length)
    shape = ("--key-size", "512", "--sector-size", "4096", "--cipher", "aes-xts-plain64", "--offset", "32768")
    cheap = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", "passphrase")
    made = run(
        *(cryptsetup, "luksFormat", "-q", "--type", "luks2", "--volume-key-file", "key", *shape, *cheap, "device"),
        cwd=tmp_path,
    )
    assert made.returncode == 0, made.stderr
    ciphertext = sample.path.read_bytes()[descriptor.offset : descriptor.hash_offset]
    with open(tmp_path / "device", "r+b") as device:
        device.seek(header_bytes)
        device.write(ciphertext)
    options = ("--decrypt", "--force-offline-reencrypt", "--header", "header", "--key-file", "passphrase")
    done = run(cryptsetup, "reencrypt", "-q", *options, "device", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plain = (tmp_path / "device").read_bytes()[: descriptor.length]
    assert plain == sample.content.ljust(descriptor.length, b"\0")


def test_the_kernel_opens_both_layers(sample, tmp_path: Path, needs: Callable[[str], str]) -> None:
    cryptsetup, veritysetup = needs("cryptsetup"), needs("veritysetup")
    if os.geteuid() != 0 or run(needs("dmsetup"), "version", cwd=tmp_path).returncode != 0:
        pytest.skip("needs root and a kernel with device mapper")
    descriptor = sample.image.descriptor
    name = f"cloister-test-{os.getpid()}"
    (tmp_path / "key").write_bytes(sample.image.key.reveal())
    path, offset = str(sample.path), f"--hash-offset={descriptor.hash_offset}"
    try:
        opened = run(veritysetup, "open", path, f"{name}-v", path, descriptor.root, offset, cwd=tmp_path)
        assert opened.returncode == 0, opened.stderr
        options = ("--readonly", "--key-size", "512", "--volume-key-file", "key")
        opened = run(cryptsetup, "open", *options, f"/dev/mapper/{name}-v", f"{name}-c", cwd=tmp_path)
        assert opened.returncode == 0, opened.stderr
        plain = Path(f"/dev/mapper/{name}-c").read_bytes()
        assert plain == sample.content.ljust(descriptor.length, b"\0")
    finally:
        run(cryptsetup, "close", f"{name}-c", cwd=tmp_path)
        run(veritysetup, "close", f"{name}-v", cwd=tmp_path)


def test_header_digest_is_in_the_descriptor(sample) -> None:
    header = sample.path.read_bytes()[:HEADER_BYTES]
    assert hashlib.sha256(header).hexdigest() == sample.image.descriptor.header
    assert sample.image.descriptor.offset == HEADER_BYTES
    assert seal.KEY_BYTES == 64
