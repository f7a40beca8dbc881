"""The fixture ``place``: a run that was granted by two running key managers, and has not begun."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.keyworld import World
from tests.runs import Place, with_logs


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Of a manifest in which ``train`` tells hospital-a what it prints, or as the parameter changes it."""
    world = World.make(tmp_path, change=getattr(request, "param", with_logs))
    world.install()
    yield Place.start(world, tmp_path)
    world.close()
