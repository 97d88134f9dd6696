"""Trace events: what happens to a request, told to the coroutine function in its ``trace`` extension.

Names and payloads are those that httpx2 documents (``connection.connect_tcp.started``,
``http11.send_request_headers.complete``, …), alike in all versions of HTTP. What happens outside the requester's task
(a dial belongs to the pool) is noted there and told, in order, as soon as the requester runs again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

TraceHook = Callable[[str, dict[str, Any]], Awaitable[None]]

PREFIXES = {"HTTP/1.1": "http11", "HTTP/2": "http2", "HTTP/3": "http3"}


class Tracer:
    """Tells one request's events to its hook, if there is one.

    :ivar prefix: the part that acts: ``"connection"`` until there is one, then the version of HTTP.
    :ivar request: the request, once there is a connection for it.
    """

    __slots__ = ("_hook", "_noted", "prefix", "request")

    def __init__(self, hook: TraceHook | None) -> None:
        self._hook = hook
        self._noted: list[tuple[str, dict[str, Any]]] = []
        self.prefix = "connection"
        self.request: object = None

    def sent(self, piece: bytes) -> None:
        """A piece of the request's body is sent next, where its caller makes it piece by piece."""

    def note(self, name: str, info: dict[str, Any]) -> None:
        """Remember an event, from synchronous code or another task."""
        if self._hook is not None:
            self._noted.append((f"{self.prefix}.{name}", info))

    async def tell(self) -> None:
        """Tell what was noted."""
        while self._noted:
            noted, self._noted = self._noted, []
            for name, info in noted:
                await self._told(name, info)

    async def _told(self, name: str, info: dict[str, Any]) -> None:
        if self._hook is not None:
            await self._hook(name, info)
