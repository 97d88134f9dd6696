"""A response as the pool gives it: head at once, body as it is read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Literal

from allswell._connection.connection import Connection
from allswell._connection.exchange import Exchange
from allswell._messages import Headers, ResponseHead
from allswell._request.network_stream import ExchangeStream, NetworkStream, StartTls
from allswell._trace import Tracer


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt at a request that did not give its response, so that the request was sent again.

    :ivar why: how it ended, in words.
    :ivar processed: whether the peer can have acted on it. ``"no"``: the protocol proves that it did not.
        ``"perhaps"``: its connection ended before any answer, or it answered that it failed, so only an idempotent
        request is sent again.
        ``"declined"``: it said that another connection (421) or another moment (425) is the right one.
    :ivar http_version: of the connection that carried it; empty where none did.
    """

    why: str
    processed: Literal["no", "perhaps", "declined"]
    http_version: str

    def __str__(self) -> str:
        carried = f"{self.http_version}; " if self.http_version else ""
        return f"{self.why} ({carried}processed: {self.processed})"


class Response:
    """The response to one request of a :class:`ConnectionPool`.

    :ivar status: the status code.
    :ivar headers: names and values as they came.
    :ivar http_version: ``b"HTTP/1.1"``, ``b"HTTP/2"`` or ``b"HTTP/3"``.
    :ivar reason: the reason phrase (HTTP/1.1 only).
    :ivar attempts: the earlier attempts at this request, oldest first.
    """

    __slots__ = (
        "_content",
        "_exchange",
        "_start_tls",
        "_told",
        "_tracer",
        "attempts",
        "headers",
        "http_version",
        "reason",
        "status",
    )

    def __init__(
        self,
        head: ResponseHead,
        exchange: Exchange[Connection],
        attempts: list[Attempt],
        start_tls: StartTls,
        tracer: Tracer | None,
    ) -> None:
        self.status = head.status
        self.headers = head.headers
        self.http_version = head.http_version
        self.reason = head.reason
        self.attempts = attempts
        self._exchange = exchange
        self._content: bytes | None = None
        self._start_tls = start_tls
        self._tracer = tracer
        self._told = ""  # of the body, to the tracer

    def __del__(self) -> None:
        # Dropped without being closed: it must not hold its connection, or its share of one, for ever.
        if self._exchange.needs_requester:
            self._exchange.connection.host.call_soon_threadsafe(self._exchange.abandon)

    def __repr__(self) -> str:
        return f"<Response {self.http_version.decode()} {self.status}>"

    @property
    def informational(self) -> list[ResponseHead]:
        """The 1xx responses that came before this one."""
        return self._exchange.informational

    @property
    def trailers(self) -> Headers:
        """The trailer section; there once the body was read."""
        return self._exchange.trailers

    @property
    def network_stream(self) -> NetworkStream:
        """The raw byte stream after 101 or CONNECT; else good for ``get_extra_info`` only."""
        return NetworkStream(self._exchange, self._start_tls)

    def tunnel(self) -> ExchangeStream:
        """The raw byte stream after CONNECT, for filters to sit on."""
        return ExchangeStream(self._exchange)

    @property
    def stream_id(self) -> int:
        """The exchange's number on its connection: the stream id in HTTP/2 and HTTP/3."""
        return self._exchange.number

    async def receive(self) -> bytes:
        """The next piece of the body; ``b""`` at its end. (Always, where ``network_stream`` took its place.)

        :raises AllswellError: when the body ends before it is complete.
        """
        if self._exchange.tunnel:
            return b""
        if self._tracer is not None:
            return await self._receive_traced(self._tracer)
        return await self._exchange.receive()

    async def read(self) -> bytes:
        """The whole body.

        :raises AllswellError: when the body ends before it is complete.
        """
        if self._content is None:
            self._content = await self.read_counted(_uncounted)
        return self._content

    async def read_counted(self, count: Callable[[int], None]) -> bytes:
        """The whole body, of which nothing was read yet.

        :param count: called with how many bytes have come; of a body that is not complete, too.
        """
        if self._tracer is None and self._exchange.tunnel is None:
            try:
                content = await self._exchange.receive_whole()
            except BaseException:
                count(self._exchange.come)
                raise
            count(len(content))
            return content
        pieces = []
        while piece := await self.receive():
            count(len(piece))
            pieces.append(piece)
        return b"".join(pieces)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Pieces(self, self._content)

    async def finish(self) -> None:
        """Wait until the request was sent too. (It was, unless the whole response came early.)"""
        if self._exchange.upload is not None:
            await self._exchange.finish()

    async def aclose(self) -> None:
        """Take no more of the body. The connection is kept where the protocol, and what was read, allow it.

        Of a response that was read and came before the request was sent, the rest of the request is waited for.

        :raises BaseException: what the request's body raised since.
        """
        try:
            if self._exchange.all_read:
                await self.finish()
        finally:
            await self.drop()

    async def drop(self) -> None:
        """The same for a caller that fails: nothing is waited for."""
        if self._tracer is not None:
            self._tell_body_over(self._tracer, "failed", {"exception": GeneratorExit()})
            self._tracer.note("response_closed.started", {})
        self._exchange.abandon()
        if self._tracer is not None:
            self._tracer.note("response_closed.complete", {"return_value": None})
            await self._tracer.tell()

    async def _receive_traced(self, tracer: Tracer) -> bytes:
        if not self._told:
            self._told = "started"
            tracer.note("receive_response_body.started", {"request": tracer.request})
            await tracer.tell()
        try:
            piece = await self._exchange.receive()
        except BaseException as error:
            self._tell_body_over(tracer, "failed", {"exception": error})
            await tracer.tell()
            raise
        if not piece:
            self._tell_body_over(tracer, "complete", {"return_value": None})
            await tracer.tell()
        return piece

    def _tell_body_over(self, tracer: Tracer, how: str, info: dict[str, Any]) -> None:
        if self._told == "started":
            self._told = how
            tracer.note(f"receive_response_body.{how}", info)

    def extension_facts(self) -> dict[str, Any]:
        """What httpx2 calls a response's extensions. ``trailers`` and ``informational`` are filled as they come."""
        facts: dict[str, Any] = {
            "http_version": self.http_version,
            "network_stream": self.network_stream,
            "informational": self._exchange.informational,
            "attempts": self.attempts,
        }
        if self.http_version in (b"HTTP/1.1", b"HTTP/1.0"):
            facts["reason_phrase"] = self.reason
        else:
            facts["stream_id"] = self._exchange.number
        return facts


def _uncounted(size: int) -> None:
    """Nobody wants to know."""


class _Pieces:
    """A body, piece by piece. (Not a generator: one that is left half-way has to be closed, or trio warns.)"""

    __slots__ = ("_content", "_response")

    def __init__(self, response: Response, content: bytes | None) -> None:
        self._response = response
        self._content = content

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> bytes:
        if self._content is None:
            piece = await self._response.receive()
        else:
            piece, self._content = self._content, b""
        if not piece:
            raise StopAsyncIteration
        return piece
