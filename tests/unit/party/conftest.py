"""Key files of tests take the cheapest derivation that a reader accepts; one test holds the real cost."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def cheap_derivation():
    from cloister.party import _keyfile

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_keyfile, "_COST", _keyfile._LEAST)
        yield
