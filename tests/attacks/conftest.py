"""The fixture ``key_world``: two running key managers, a manifest that everybody signed, all keys installed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.keyworld import World


@pytest.fixture
def key_world(tmp_path: Path) -> Iterator[World]:
    world = World.make(tmp_path)
    world.install()
    yield world
    world.close()
