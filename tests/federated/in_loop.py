"""An ASGI application reached through httpx without a network: it runs in an event loop of its own thread."""

import asyncio
import threading

import httpx


class InLoop(httpx.BaseTransport):
    """A transport for `httpx.Client`; used from any number of threads."""

    def __init__(self, app: object) -> None:
        self._inner = httpx.ASGITransport(app, raise_app_exceptions=False)  # type: ignore[arg-type]
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        body = request.read()

        async def ask() -> tuple[int, httpx.Headers, bytes]:
            copy = httpx.Request(request.method, request.url, headers=request.headers, content=body)
            response = await self._inner.handle_async_request(copy)
            return response.status_code, response.headers, await response.aread()

        status, headers, content = asyncio.run_coroutine_threadsafe(ask(), self._loop).result(60)
        return httpx.Response(status, headers=headers, content=content)
