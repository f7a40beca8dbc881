"""Where each question goes."""

from __future__ import annotations

from typing import Final

from cloister.keys._entries import Action

__all__ = ["PATHS"]

PATHS: Final[dict[Action, str]] = {
    "install-manifest": "/v1/manifests",
    "install-key": "/v1/keys",
    "run": "/v1/runs",
    "attempt": "/v1/attempts",
    "challenge": "/v1/challenges",
    "release": "/v1/releases",
    "register": "/v1/registrations",
    "checkpoint": "/v1/checkpoints",
    "collect-challenge": "/v1/collect-challenges",
    "collect": "/v1/collect",
    "suspend": "/v1/suspensions",
    "revoke": "/v1/revocations",
}
