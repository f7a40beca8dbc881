"""Logging for commands and services: stdlib loggers, one a room, plain lines or JSON objects on stderr."""

from __future__ import annotations

import json as jsonlib
import logging
import sys
from datetime import UTC, datetime

from cloister.errors import InputError

__all__ = ["configure"]


class _JsonLines(logging.Formatter):
    """``at`` (UTC), ``level``, ``room`` (the logger's name), ``message``; ``traceback`` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"at": at, "level": record.levelname.lower(), "room": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return jsonlib.dumps(line, sort_keys=True)


def configure(level: str, *, json: bool = False) -> None:
    """Sends the ``cloister`` loggers to stderr.

    Raises:
        InputError: 2015 for a level that is not one.
    """
    levels = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
    if level not in levels:
        raise InputError(2015, f"no such log level: {level!r}", expected=", ".join(levels))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if json else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("cloister")
    logger.handlers[:] = [handler]
    logger.setLevel(levels[level])
    logger.propagate = False
