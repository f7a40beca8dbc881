"""One small sealed image, made once; tests that write to it take a copy."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cloister import seal


@dataclass(frozen=True)
class Sample:
    """A sealed file with what it was made of."""

    path: Path
    image: seal.SealedImage
    content: bytes


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """An image of random bytes: 600 data blocks, so that the tree has two levels."""
    folder = tmp_path_factory.mktemp("sample")
    content = os.urandom(2_400_000)
    (folder / "content").write_bytes(content)
    image = seal.seal_file(folder / "content", folder / "image")
    return Sample(folder / "image", image, content)


@pytest.fixture
def copy(sample: Sample, tmp_path: Path) -> Path:
    """A copy of the sample to spoil."""
    return Path(shutil.copyfile(sample.path, tmp_path / "copy"))


@pytest.fixture
def needs() -> Callable[[str], str]:
    """``needs("veritysetup")``: the program's path, or the test is skipped with the package's name."""
    packages = {"veritysetup": "cryptsetup-bin", "cryptsetup": "cryptsetup-bin", "mksquashfs": "squashfs-tools"}

    def find(program: str) -> str:
        path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if path is None:
            pytest.skip(f"{program} is not installed (package {packages.get(program, program)})")
        return path

    return find
