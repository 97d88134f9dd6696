"""allswell under httpx (extra ``httpx``): ``httpx.AsyncClient(transport=allswell.httpx.AsyncTransport())``."""

from __future__ import annotations

from typing import Any, cast

import httpx2

import allswell  # noqa: F401 - whole, although another thread may be about to import it
from allswell._errors import AllswellError
from allswell._patched import Library
from allswell._report import CloseReport
from allswell._transport import ResponseStream, Sender, raise_as

try:
    import httpx
except ImportError as error:
    raise ImportError("allswell.httpx needs the package httpx: install allswell[httpx]") from error


class _Stream(ResponseStream, httpx.AsyncByteStream):
    _library = httpx


class AsyncTransport(Sender[httpx.Limits, httpx.URL | httpx.Proxy], httpx.AsyncBaseTransport):
    """A transport for ``httpx.AsyncClient``; parameters as in :class:`allswell.AsyncTransport`."""

    _library = httpx
    _asks = httpx.Request
    _core = "httpcore"
    _stream = _Stream
    _patches = Library(httpx, "httpcore")

    async def aclose(self, timeout: float | None = None, *, cut: bool = False) -> CloseReport:  # type: ignore[override]
        """Close the transport: leave the pool, which closes if nobody else uses it.

        :param timeout: the grace in seconds; ``None``: the ``grace`` of the pool. 0: say everything, wait for nothing.
        :param cut: do not wait for requests in flight.
        :return: how each connection ended; empty if the pool stays open.
        """
        return await self.leave(timeout, cut=cut)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request. The client calls this.

        :raises httpx.TransportError: one of its subclasses, with the :class:`allswell.AllswellError` as ``__cause__``.
        """
        if self._patches.is_patched():
            return cast(httpx.Response, await self._hand_over(request))
        # The requests of both libraries have the same shape: httpx2 continues httpx.
        try:
            response = await self._send(cast(httpx2.Request, request))
        except AllswellError as error:
            raise_as(self._library, error)
        stream = _Stream(response)
        answer = httpx.Response(
            status_code=response.status,
            headers=cast(Any, response.headers),
            stream=stream,
            extensions=self._facts(response),
        )
        stream.extensions = answer.extensions
        return answer
