"""The full manifest, as a fixture."""

import pytest
from tests.unit.manifest.full import FULL_MANIFEST, FULL_YAML, PEOPLE


@pytest.fixture(scope="session")
def full_yaml():
    return FULL_YAML


@pytest.fixture(scope="session")
def full():
    return FULL_MANIFEST


@pytest.fixture(scope="session")
def people():
    return PEOPLE
