"""Sealing and opening one file: Cloister against cryptsetup and veritysetup, on the same bytes, in the same run.

Sealing is compared with ``cryptsetup reencrypt --encrypt`` (the header in the file, as in an image) followed by
``veritysetup format``, and a second time with cryptsetup's fastest options (detached header, ``--resilience none``);
opening with ``veritysetup verify`` followed by ``cryptsetup reencrypt --decrypt``. The floor is what one core needs for
the AES-256-ECB and the SHA-256 of the same bytes, in memory, in calls of 1 MiB. mksquashfs, which comes before sealing
a folder, is timed apart. Where sealing's processor time goes is measured by one more seal a round, whose steps are
wrapped in clocks of their threads. Medians of interleaved rounds.

    python benchmarks/sealing.py [--quick] [--json FILE] [--dir FOLDER]

Files lie in memory (/dev/shm) where there is room, so that a disk's moods decide nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from _machine import machine
from cloister import seal
from cloister.seal import _sealing, _sink, _verity

TARGET = 2.0  # times as fast as the system's tools
MIB = 1 << 20
CHEAP = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")  # no time goes into passphrases


class _Nowhere:
    """Where opened bytes go."""

    def write(self, data: bytes) -> int:
        return len(data)


def _tool(name: str) -> str:
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        sys.exit(f"{name} is not installed")
    return found


def _seconds(call: Callable[[], object]) -> float:
    os.sync()  # what the row before has left to the disk is not this one's
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class _Clocks:
    """Processor seconds by name, of whichever threads."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(("read", "XTS", "hash tree", "write"), 0.0)
        self._lock = threading.Lock()

    def around(self, name: str, call: Callable[..., object]) -> Callable[..., object]:
        def timed(*arguments: object, **options: object) -> object:
            start = time.thread_time()
            try:
                return call(*arguments, **options)
            finally:
                with self._lock:
                    self.spent[name] += time.thread_time() - start

        return timed


class _Bench:
    """The files of one run."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.content = folder / "content"
        with open(self.content, "wb") as file:
            for _ in range(size // MIB):
                file.write(os.urandom(MIB))
        (folder / "key").write_bytes(os.urandom(64))
        self.image: seal.SealedImage | None = None
        self.root = ""

    def run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def cryptsetup_encrypt(self, *where: str) -> None:
        shape = ("--type", "luks2", "--cipher", "aes-xts-plain64", "--key-size", "512", "--sector-size", "4096")
        keys = ("--volume-key-file", "key", "--key-file", "key", *CHEAP)
        self.run(_tool("cryptsetup"), "reencrypt", "--encrypt", "--batch-mode", *where, *shape, *keys)

    def cryptsetup_decrypt(self) -> None:
        options = ("--header", "header", "--resilience", "none", "--batch-mode", "--key-file", "key")
        self.run(_tool("cryptsetup"), "reencrypt", "--decrypt", "--force-offline-reencrypt", *options, "device")

    def veritysetup_format(self) -> None:
        said = self.run(_tool("veritysetup"), "format", "device", "hashes")
        self.root = said.rsplit("Root hash:", 1)[1].split()[0]

    def veritysetup_verify(self) -> None:
        self.run(_tool("veritysetup"), "verify", "device", "hashes", self.root)

    def cloister_seal(self) -> None:
        self.image = seal.seal_file(self.content, self.folder / "image")

    def phases(self) -> dict[str, float]:
        """Processor seconds of one seal by step, over all its threads; waiting for the disk is none."""
        (self.folder / "image").unlink()
        clocks = _Clocks()
        with (
            mock.patch.object(_sealing, "_read_padded", clocks.around("read", _sealing._read_padded)),
            mock.patch.object(_sealing.Xts, "__call__", clocks.around("XTS", _sealing.Xts.__call__)),
            mock.patch.object(_verity.HashRows, "digests", clocks.around("hash tree", _verity.HashRows.digests)),
            mock.patch.object(_sink.LocalSink, "write", clocks.around("write", _sink.LocalSink.write)),
        ):
            before = time.process_time()
            self.cloister_seal()
            whole = time.process_time() - before
        clocks.spent["syncing and the rest"] = whole - sum(clocks.spent.values())
        return dict(clocks.spent)

    def cloister_open(self) -> None:
        assert self.image is not None
        with seal.open_image(self.folder / "image", image_id=self.image.id, key=self.image.key) as reader:
            reader.copy_to(_Nowhere())

    def cloister_verify(self) -> None:
        assert self.image is not None
        seal.verify_image(self.folder / "image", image_id=self.image.id)

    def floor(self) -> float:
        data, out = os.urandom(MIB), bytearray(MIB + 16)
        context = Cipher(algorithms.AES(os.urandom(32)), modes.ECB()).encryptor()  # noqa: S305 - a speed, not a cipher

        def work() -> None:
            for _ in range(self.size // MIB):
                context.update_into(data, out)
                hashlib.sha256(data).digest()

        return _seconds(work)

    def mksquashfs(self) -> None:
        seal.squash_folder(self.folder / "tree", self.folder / "squashfs")

    def round(self) -> dict[str, float]:
        """One round: every row once."""
        for name in ("device", "in-place", "header", "hashes", "image", "squashfs"):
            (self.folder / name).unlink(missing_ok=True)
        for name in ("device", "in-place"):
            shutil.copyfile(self.content, self.folder / name)
        with open(self.folder / "in-place", "ab") as device:
            device.truncate(self.size + 32 * MIB)  # room for the header
        fastest = ("--header", "header", "--resilience", "none", "device")
        tree = self.folder / "tree"
        tree.mkdir(exist_ok=True)
        if not (tree / "content").exists():
            os.link(self.content, tree / "content")
        rows = {
            "cryptsetup reencrypt --encrypt": _seconds(
                lambda: self.cryptsetup_encrypt("--reduce-device-size", "32M", "in-place")
            ),
            "the same, its fastest options": _seconds(lambda: self.cryptsetup_encrypt(*fastest)),
            "veritysetup format": _seconds(self.veritysetup_format),
            "cloister seal": _seconds(self.cloister_seal),
            "veritysetup verify": _seconds(self.veritysetup_verify),
            "cryptsetup reencrypt --decrypt": _seconds(self.cryptsetup_decrypt),
            "cloister open, verified read": _seconds(self.cloister_open),
            "cloister image verify": _seconds(self.cloister_verify),
            "one core, AES-ECB + SHA-256": self.floor(),
            "mksquashfs (before sealing)": _seconds(self.mksquashfs),
        }
        with open(self.folder / "device", "rb") as device, open(self.content, "rb") as content:
            assert device.read(MIB) == content.read(MIB), "cryptsetup did not return the plaintext"
        return rows


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


def measure(*, quick: bool, folder: Path) -> dict[str, object]:
    size = (256 if quick else 1024) * MIB
    bench = _Bench(folder, size)
    bench.round()  # warms caches and imports
    rounds = [(bench.round(), bench.phases()) for _ in range(5)]
    rows = _medians([row for row, _ in rounds])
    phases = _medians([split for _, split in rounds])
    seal_tools = rows["cryptsetup reencrypt --encrypt"] + rows["veritysetup format"]
    fastest_tools = rows["the same, its fastest options"] + rows["veritysetup format"]
    open_tools = rows["veritysetup verify"] + rows["cryptsetup reencrypt --decrypt"]
    floor = rows["one core, AES-ECB + SHA-256"]
    return {
        "benchmark": "sealing",
        "machine": machine(),
        "bytes": size,
        "rounds": len(rounds),
        "in_memory": str(folder).startswith("/dev/shm"),  # noqa: S108
        "seconds": {name: round(value, 4) for name, value in rows.items()},
        "processor_seconds_a_gb": {name: round(value / size * 1e9, 3) for name, value in phases.items()},
        "seal_times_as_fast": round(seal_tools / rows["cloister seal"], 2),
        "seal_times_as_fast_as_fastest_options": round(fastest_tools / rows["cloister seal"], 2),
        "open_times_as_fast": round(open_tools / rows["cloister open, verified read"], 2),
        "seal_part_of_one_core_floor": round(floor / rows["cloister seal"], 2),
        "open_part_of_one_core_floor": round(floor / rows["cloister open, verified read"], 2),
        "target": TARGET,
        "target_met": seal_tools / rows["cloister seal"] >= TARGET,
    }


def _default_folder(size: int) -> str | None:
    memory = Path("/dev/shm")  # noqa: S108
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > 6 * size else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="256 MiB instead of 1 GiB")
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON")
    parser.add_argument("--dir", metavar="FOLDER", help="where the files lie")
    options = parser.parse_args()
    size = (256 if options.quick else 1024) * MIB
    with tempfile.TemporaryDirectory(prefix="sealing-", dir=options.dir or _default_folder(size)) as folder:
        result = measure(quick=options.quick, folder=Path(folder))
    place = "in memory" if result["in_memory"] else "on disk"
    print(f"{result['machine']}; {size // MIB} MiB {place}, median of {result['rounds']}")
    for name, seconds in result["seconds"].items():
        print(f"  {name:34} {seconds:8.3f} s  {size / seconds / 1e9:7.2f} GB/s")
    verdict = "met" if result["target_met"] else "MISSED"
    print(
        f"sealing is {result['seal_times_as_fast']} times as fast as the system's tools (target {TARGET}: {verdict}),"
    )
    print(f"  {result['seal_times_as_fast_as_fastest_options']} times as fast as with cryptsetup's fastest options")
    print(f"opening is {result['open_times_as_fast']} times as fast as the system's tools")
    print(f"of one core's raw AES-ECB + SHA-256 speed: sealing {result['seal_part_of_one_core_floor']},", end=" ")
    print(f"opening {result['open_part_of_one_core_floor']}")
    split = result["processor_seconds_a_gb"]
    print(f"processor seconds a GB sealed: {sum(split.values()):.2f} (", end="")
    print(", ".join(f"{name} {seconds:.2f}" for name, seconds in split.items()) + ")")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
