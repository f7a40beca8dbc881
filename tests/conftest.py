"""What every test may use: where the shared data and vectors are, or why the test is skipped."""

import os
from pathlib import Path

import platformdirs
import pytest
from hypothesis import settings

# A busy machine is no failure of what is tested. Examples are the same in every run; --hypothesis-profile=explore has
# others.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("same")

# compiled functions of this tree, for all processes of all runs: each would compile for ten seconds otherwise
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(platformdirs.user_cache_dir("cloister")) / "compiled"))

if not list(Path("/dev").glob("nvidia[0-9]*")):  # no GPU: Triton interprets, which is chosen before its first import
    os.environ["TRITON_INTERPRET"] = "1"

_DATA = Path(os.environ.get("CLOISTER_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets (CLOISTER_TEST_DATA, default ../shared/data)."""
    if not _DATA.is_dir():
        pytest.skip(f"no shared data at {_DATA}: set CLOISTER_TEST_DATA")
    return _DATA


@pytest.fixture(scope="session")
def attestation_vectors() -> Path:
    """The folder of real attestation evidence, beside the shared data."""
    folder = _DATA.parent / "vectors" / "attestation"
    if not folder.is_dir():
        pytest.skip(f"no attestation vectors at {folder}: set CLOISTER_TEST_DATA")
    return folder
