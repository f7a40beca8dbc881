"""A service without a socket: an ``httpx`` transport straight into the ASGI application."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx

__all__ = ["LocalTransport"]


class LocalTransport(httpx.BaseTransport):
    """Carries a synchronous client's requests to an application that runs in a thread of its own.

    Args:
        app: The ASGI application.
    """

    def __init__(self, app: Any) -> None:
        self._inner = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cloister-local", daemon=True)
        self._thread.start()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """One request, one answer, read whole."""
        return asyncio.run_coroutine_threadsafe(self._carry(request), self._loop).result()

    def close(self) -> None:
        """Ends the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _carry(self, request: httpx.Request) -> httpx.Response:
        body = request.read()
        inner = httpx.Request(request.method, request.url, headers=request.headers, content=body)
        answer = await self._inner.handle_async_request(inner)
        data = await answer.aread()
        return httpx.Response(answer.status_code, headers=answer.headers, stream=httpx.ByteStream(data))
