"""A host names where an image lies; it must not thereby choose code that the launcher runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cloister.errors import InputError
from cloister.seal import PLAIN_SCHEMES, open_image, seal_folder
from cloister.wire import Secret

PLACES = [
    "reference://k1::file:///refs.json",
    "zip://a::file:///b.zip",
    "simplecache::s3://bucket/key",
    "tar://x",
    "git://repo",
    "github://a:b@c",
    "dask://x",
    "python://os",
    "filecache::memory://a",
    "blockcache://a",
    "http://host/image",
    "s3::http://a",
]


@pytest.mark.parametrize("place", PLACES)
def test_only_plain_storage_is_opened(place: str, tmp_path) -> None:
    with pytest.raises(InputError) as caught:
        open_image(place, image_id="0" * 64, key=Secret(bytes(range(64))))
    assert caught.value.code == 2213
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("x")
    with pytest.raises(InputError) as caught:
        seal_folder(tmp_path / "folder", place)
    assert caught.value.code == 2213


def test_a_refused_place_imports_no_storage_library() -> None:
    program = (
        "import sys\nfrom cloister.seal import open_image\nfrom cloister.wire import Secret\n"
        "try: open_image('reference://k::file:///r', image_id='0' * 64, key=Secret(bytes(range(64))))\n"
        "except Exception: pass\nprint('fsspec.implementations.reference' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_owner_can_allow_a_protocol_of_their_own() -> None:
    program = (
        "from cloister.seal import allow_scheme, open_image\nfrom cloister.wire import Secret\nallow_scheme('sftp')\n"
        "try: open_image('sftp://h/p', image_id='0' * 64, key=Secret(bytes(range(64))))\n"
        "except Exception as error: print(error.code)\n"
        "try: allow_scheme('nonsense')\nexcept Exception as error: print(error.code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2006", "2208"]
    assert "sftp" not in PLAIN_SCHEMES
