"""A service on a socket."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from contextlib import suppress

from cloister.errors import InputError, PeerError
from cloister.keys._http import create_app
from cloister.keys._service import Service

__all__ = ["listen"]

_BACKLOG = 512


def listen(service: Service, address: str, *, ready: Callable[[str], None]) -> None:
    """Serves until the process is told to stop.

    Args:
        service: What answers.
        address: ``HOST:PORT``; port 0 takes a free one.
        ready: Called with the address once connections are accepted.

    Raises:
        InputError: 2006 without the extra ``serve``; 2005 when the address is none.
        PeerError: 6401 when the address cannot be taken.
    """
    try:
        import uvicorn
    except ImportError:
        raise InputError(2006, "a service needs uvicorn", hint="pip install 'cloister[serve]'") from None
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise InputError(2005, "not an address", expected="HOST:PORT", got=address[:80])
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    config = uvicorn.Config(create_app(service), log_config=None, access_log=False, server_header=False, lifespan="off")
    # with the protocol named, asyncio sets TCP_NODELAY: without it each small answer waits 40 ms for an acknowledgement
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind((host, int(port)))
            taken.listen(_BACKLOG)
        except OSError as error:
            raise PeerError(6401, f"cannot listen on {address}: {error.strerror}") from None
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        ready(f"{host}:{taken.getsockname()[1]}" if family == socket.AF_INET else f"[{host}]:{taken.getsockname()[1]}")
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[taken])
    service.close()
