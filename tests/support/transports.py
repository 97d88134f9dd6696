"""Transports of httpx2 that wrap ours, as users' do."""

from __future__ import annotations

import anyio
import httpx2


class Wrapper(httpx2.AsyncBaseTransport):
    """As transports that cache, try again or trace: it hands on, and closes what it wraps.

    :param elsewhere: it closes that in another task.
    """

    def __init__(self, inner: httpx2.AsyncBaseTransport, *, elsewhere: bool = False) -> None:
        self._hidden, self._elsewhere = inner, elsewhere

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return await self._hidden.handle_async_request(request)

    async def aclose(self) -> None:
        if self._elsewhere:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._hidden.aclose)
        else:
            await self._hidden.aclose()
