"""Trace events: the coroutine function in a request's ``trace`` extension is awaited for each step of the request.

Names and payloads are those that httpx2 documents (``connection.connect_tcp.started``,
``http11.send_request_headers.complete``, …), with the same steps in all versions of HTTP. An event outside the
requester's task is noted (a dial belongs to the pool). The hook gets the noted events, in order, when the requester
runs again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

TraceHook = Callable[[str, dict[str, Any]], Awaitable[None]]

PREFIXES = {"HTTP/1.1": "http11", "HTTP/2": "http2", "HTTP/3": "http3"}


class Tracer:
    """Gives the events of one request to its hook, if it has one.

    :ivar prefix: the first part of events' names: ``"connection"`` during the dial, then one of :data:`PREFIXES`.
    :ivar request: the request, once there is a connection for it.
    """

    __slots__ = ("_hook", "_noted", "prefix", "request")

    def __init__(self, hook: TraceHook | None) -> None:
        self._hook = hook
        self._noted: list[tuple[str, dict[str, Any]]] = []
        self.prefix = "connection"
        self.request: object = None

    def sent(self, piece: bytes) -> None:
        """A piece of the request's body is sent next. It is called only for bodies that come in pieces."""

    def note(self, name: str, info: dict[str, Any]) -> None:
        """Remember an event, from synchronous code or another task."""
        if self._hook is not None:
            self._noted.append((f"{self.prefix}.{name}", info))

    async def tell(self) -> None:
        """Give the noted events to the hook."""
        while self._noted:
            noted, self._noted = self._noted, []
            for name, info in noted:
                await self._told(name, info)

    async def _told(self, name: str, info: dict[str, Any]) -> None:
        if self._hook is not None:
            await self._hook(name, info)
