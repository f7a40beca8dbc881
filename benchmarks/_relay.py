"""A relay that delays: bytes leave it half a round trip after they came, as many a second as come, or as a rate allows.

    python benchmarks/_relay.py LISTEN_PORT HOST PORT HALF_S RATE     RATE in bytes a second and direction; 0: no limit

Every connection is relayed by itself, both ways. A relay ends TCP: what a long way does to its windows is not shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Awaitable

__all__ = ["pump", "relay"]

_PIECE = 1 << 18
_BURST_S = 0.01  # of a rate: what may leave at once


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, half_s: float, rate: float = 0) -> None:
    """One direction, until its end has been passed on too."""
    loop = asyncio.get_running_loop()
    waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def give() -> None:
        free_at = 0.0  # when all that left has passed the rate
        while True:
            due, data = await waiting.get()
            await _until(due)
            if not data:
                with contextlib.suppress(OSError):
                    writer.write_eof()
                return
            for start in range(0, len(data), piece):
                part = data[start : start + piece]
                writer.write(part)
                await writer.drain()
                if rate:
                    free_at = max(free_at, loop.time()) + len(part) / rate
                    await _until(free_at - _BURST_S)

    piece = max(1, int(rate * _BURST_S)) if rate else _PIECE
    giving = asyncio.create_task(give())
    data = b"?"
    while data:
        try:
            data = await reader.read(_PIECE)
        except OSError:
            data = b""
        waiting.put_nowait((loop.time() + half_s, data))
    with contextlib.suppress(OSError):
        await giving


async def _until(due: float) -> None:
    left = due - asyncio.get_running_loop().time()
    if left > 0:
        await asyncio.sleep(left)


async def relay(port: int, host: str, to_port: int, *, half_s: float, rate: float = 0) -> asyncio.Server:
    """Listens at all addresses; a caller for whom nobody is there is let go."""

    async def called(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            to_reader, to_writer = await asyncio.open_connection(host, to_port)
            for one in (writer, to_writer):
                one.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ways: list[Awaitable[None]] = [
                pump(reader, to_writer, half_s=half_s, rate=rate),
                pump(to_reader, writer, half_s=half_s, rate=rate),
            ]
            await asyncio.gather(*ways)
            to_writer.close()
        writer.close()

    return await asyncio.start_server(called, "0.0.0.0", port, limit=_PIECE)  # noqa: S104 - in a network of its own


async def _serve(port: int, host: str, to_port: int, half_s: float, rate: float) -> None:
    server = await relay(port, host, to_port, half_s=half_s, rate=rate)
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5])))
