"""A dataset that reaches out of its folder: refused when it is sealed and again when it is unpacked."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cloister import seal
from cloister.errors import InputError, IntegrityError

pytestmark = pytest.mark.skipif(
    shutil.which("mksquashfs") is None, reason="mksquashfs is not installed (package squashfs-tools)"
)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "scan.png").write_bytes(b"scan")
    return folder


def sealing_refuses(dataset: Path, code: int) -> None:
    target = dataset.parent / "image"
    with pytest.raises(InputError) as caught:
        seal.seal_folder(dataset, target)
    assert caught.value.code == code
    assert not target.exists()


def unpacking_refuses(dataset: Path, *options: str) -> None:
    """The same folder, sealed by a party that does not use our scan."""
    squashfs = dataset.parent / "squashfs"
    command = ["mksquashfs", str(dataset), str(squashfs), "-quiet", "-no-progress", *options]
    subprocess.run(command, check=True, capture_output=True)
    image = seal.seal_file(squashfs, dataset.parent / "image")
    with seal.open_image(dataset.parent / "image", image_id=image.id, key=image.key) as reader:
        with pytest.raises(IntegrityError) as caught:
            seal.unpack(reader, dataset.parent / "out")
        assert caught.value.code == 5212
    assert sorted(path.name for path in dataset.parent.iterdir()) == ["dataset", "image", "squashfs"]


@pytest.mark.parametrize("target", ["/etc/shadow", "../../../../etc/shadow", ".."])
def test_symlink_in_the_dataset(target: str, dataset: Path) -> None:
    (dataset / "labels.csv").symlink_to(target)
    sealing_refuses(dataset, 2201)
    unpacking_refuses(dataset)


def test_device_in_the_dataset(dataset: Path) -> None:
    os.mkfifo(dataset / "pipe")
    sealing_refuses(dataset, 2202)
    unpacking_refuses(dataset)


def test_device_that_only_the_image_has(dataset: Path) -> None:
    unpacking_refuses(dataset, "-p", "disk b 666 0 0 8 0")


def test_setuid_program_in_the_dataset(dataset: Path) -> None:
    (dataset / "scan.png").chmod(0o4755)
    sealing_refuses(dataset, 2204)
    unpacking_refuses(dataset)


def test_name_that_forges_a_line(dataset: Path) -> None:
    (dataset / "a\n-rw-r--r-- 0 0").write_bytes(b"")
    sealing_refuses(dataset, 2203)
    unpacking_refuses(dataset)
