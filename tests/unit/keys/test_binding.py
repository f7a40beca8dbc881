"""What a release is sealed under, against a vector that was computed without our canonical JSON."""

import hashlib
import json
from typing import Any

import pytest

from cloister.keys._binding import release_info

PLACE: dict[str, Any] = {
    "manifest": "ab" * 32,
    "run": "01" * 16,
    "stage": "train",
    "attempt": 3,
    "session": "cd" * 16,
}
VECTOR = "3b2f6378a415ee15e7ac39926b7545144d9923bfce486bd6ebb58a37ea422ac1"


def test_the_info_of_a_release_is_the_documented_digest() -> None:
    """docs/key-release.md, 7: SHA-256 of ``label ‖ 0x00 ‖ canonical JSON``."""
    text = json.dumps(PLACE, sort_keys=True, separators=(",", ":")).encode()
    assert hashlib.sha256(b"cloister/key-release/v1\0" + text).hexdigest() == VECTOR
    assert release_info(**PLACE).hex() == VECTOR


@pytest.mark.parametrize(
    ("field", "other"),
    [("manifest", "ac" * 32), ("run", "02" * 16), ("stage", "answers"), ("attempt", 4), ("session", "ce" * 16)],
)
def test_each_field_changes_the_info_of_a_release(field: str, other: Any) -> None:
    assert release_info(**PLACE | {field: other}) != release_info(**PLACE)
