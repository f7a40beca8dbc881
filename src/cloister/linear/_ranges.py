"""What every size of a session is held against: the field, the statistical distance, and how ranges are proven."""

from __future__ import annotations

__all__ = ["MODULUS_BITS", "PROJECTIONS", "SIGMA"]

MODULUS_BITS = 183
"""2^183 < p."""
SIGMA = 40
"""A session's statistical distance is at most 2^-40."""
PROJECTIONS = 64
"""Random projections of a group of values that are proven in range."""
