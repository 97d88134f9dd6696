"""A mock of the origin: a transport of httpx2 without sockets, with the same routes, record and ways to misbehave."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import httpx2

from allswell.testing._events import RequestExecuted, RequestReceived, RequestRefused, ResponseSent
from allswell.testing._script import Request, Response, Routes, Scripted

_PIECE_SECONDS = 0.02


class MockOrigin(Scripted, httpx2.AsyncBaseTransport):
    """A transport for ``AsyncClient(transport=…)``, of allswell or httpx2, that answers by its routes.

    It misbehaves by the methods of :class:`Origin`. The client's code gets the error that a real origin would cause, at
    once: ``httpx2.ReadTimeout`` for :meth:`silence` and :meth:`stall`, ``httpx2.ConnectError`` for :meth:`refuse`,
    ``httpx2.RemoteProtocolError`` for :meth:`truncate` and :meth:`restart`, ``httpx2.ReadError`` for :meth:`reset`.
    It has no connections, so it cannot tell how they end.

    :param routes: as for :class:`Origin`.
    """

    def __init__(self, routes: Routes | None = None) -> None:
        super().__init__(routes)
        self._next: httpx2.TransportError | None = None
        self._open: set[_MockBody] = set()

    def reset(self) -> None:
        """Fail the responses under way with ``httpx2.ReadError``; if there are none, the next request."""
        self._break(httpx2.ReadError("connection reset by the mock origin"))

    def restart(self) -> None:
        """Like :meth:`reset`, but with ``httpx2.RemoteProtocolError``, as if the server had disconnected."""
        self._break(httpx2.RemoteProtocolError("the mock origin disconnected without sending a response"))

    def behave(self) -> None:
        """End all misbehaviour. What was held back is sent, and the next request does not fail."""
        super().behave()
        self._next = None

    def _break(self, error: httpx2.TransportError) -> None:
        if not self._open:
            self._next = error
        for body in self._open:
            body.error = error

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer by the routes, and misbehave as the faults say."""
        body = await request.aread()
        target = request.url.raw_path.decode("ascii")
        number, now = len(self.record.of(RequestReceived)) + 1, self.record.now
        self.record.add(RequestReceived(0, now, number, request.method, target))
        if self.faults.refuses():
            self.record.add(RequestRefused(0, self.record.now, number, request.method, target))
            raise httpx2.ConnectError("the mock origin refused the connection", request=request)
        if self._next is not None:
            error, self._next = self._next, None
            raise error
        self.record.add(RequestExecuted(0, self.record.now, number, request.method, target))
        fields = tuple((name.lower(), value) for name, value in request.headers.multi_items())
        response = await self.answer(Request(request.method, target, fields, body))
        if self.faults.silent or (self.faults.stalled and not response.body):
            raise httpx2.ReadTimeout("the mock origin sends no response", request=request)
        headers = httpx2.Headers(response.fields)
        if response.framing == "length":
            headers["content-length"] = str(len(response.body))
        stream = _MockBody(self, number, request, response)
        return httpx2.Response(response.status, headers=headers, stream=stream, request=request)

    def opened(self, body: _MockBody) -> None:
        """A response is under way."""
        self._open.add(body)

    def over(self, body: _MockBody) -> None:
        """A response was read to its end, or closed."""
        self._open.discard(body)


class _MockBody(httpx2.AsyncByteStream):
    """The body of a response. The origin's faults apply as they are when it is read.

    :ivar error: the error that the next read raises; ``None`` for none.
    """

    def __init__(self, origin: MockOrigin, number: int, request: httpx2.Request, response: Response) -> None:
        self.error: httpx2.TransportError | None = None
        self._origin, self._number, self._request, self._response = origin, number, request, response
        self._cut = origin.faults.truncates()
        origin.opened(self)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        body = b"" if self._response.bodiless(self._request.method) else self._response.body
        half, sent = len(body) // 2, 0
        while sent < len(body):
            faults = self._origin.faults
            stopped = self._cut or faults.stalled
            if self.error is not None:
                raise self.error
            if faults.silent or (sent >= half and faults.stalled):
                raise httpx2.ReadTimeout("the mock origin has stopped in the middle of the body", request=self._request)
            if self._cut and sent >= half:
                raise httpx2.RemoteProtocolError("the mock origin truncated the body", request=self._request)
            size = (half if stopped or sent < half else len(body)) - sent
            if faults.rate is not None:
                size = min(size, max(1, int(faults.rate * _PIECE_SECONDS)))
                await anyio.sleep(size / faults.rate)
            yield body[sent : sent + size]
            sent += size
        self._origin.record.add(ResponseSent(0, self._origin.record.now, self._number, self._response.status))

    async def aclose(self) -> None:
        """The response was closed."""
        self._origin.over(self)
