"""A response of the pool. The head is there at once, and the body comes as it is read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from allswell._connection.connection import Connection
from allswell._connection.exchange import Exchange
from allswell._errors import LocalProtocolError
from allswell._late import Late
from allswell._messages import Headers, ResponseHead
from allswell._request.network_stream import ExchangeStream, NetworkStream, StartTls
from allswell._trace import Tracer

if TYPE_CHECKING:
    from allswell._request import datagrams as http_datagrams
else:
    http_datagrams = Late("allswell._request.datagrams")


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt at a request after which the request was sent again.

    :ivar why: how the attempt ended, in words.
    :ivar processed: whether the peer can have acted on it. ``"no"``: the protocol proves that it did not.
        ``"perhaps"``: the connection ended before any answer, or the answer was a failure. ``"declined"``: the server
        asked for another connection (421) or another moment (425), or took no WebSocket in this version of HTTP.
    :ivar http_version: the HTTP version of its connection; empty if there was none.
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
    :ivar headers: pairs of name and value, in bytes, in the order in which they came.
    :ivar http_version: ``b"HTTP/1.1"``, ``b"HTTP/2"`` or ``b"HTTP/3"``.
    :ivar reason: the reason phrase (HTTP/1.1 only).
    :ivar plain: see :class:`ResponseHead`.
    :ivar attempts: the earlier attempts at this request, oldest first: a list of :class:`Attempt`.
    """

    __slots__ = (
        "_content",
        "_datagrams",
        "_exchange",
        "_start_tls",
        "_traced",
        "_tracer",
        "attempts",
        "headers",
        "http_version",
        "plain",
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
        self.plain = head.plain
        self.http_version = head.http_version
        self.reason = head.reason
        self.attempts = attempts
        self._exchange = exchange
        self._content: bytes | None = None
        self._datagrams: http_datagrams.HttpDatagrams | None = None
        self._start_tls = start_tls
        self._tracer = tracer
        self._traced = ""  # the last trace event about the body

    def __del__(self) -> None:
        # The response was dropped without being closed. Its connection, or its stream, must not stay in use for ever.
        if self._exchange.needs_requester:
            self._exchange.connection.host.call_soon_threadsafe(self._exchange.abandon)

    def __repr__(self) -> str:
        return f"<Response {self.http_version.decode()} {self.status}>"

    @property
    def informational(self) -> list[ResponseHead]:
        """The 1xx responses that came before this one. Of many, the newest 64."""
        return self._exchange.informational

    @property
    def trailers(self) -> Headers:
        """The trailer section, as pairs of name and value. It is complete once the body was read."""
        return self._exchange.trailers

    @property
    def network_stream(self) -> NetworkStream:
        """The raw byte stream after 101 or CONNECT. Otherwise only its ``get_extra_info`` is of use."""
        return NetworkStream(self._exchange, self._start_tls)

    @property
    def datagrams(self) -> http_datagrams.HttpDatagrams:
        """The HTTP datagrams after an upgrade or an extended CONNECT, in place of ``network_stream``.

        :raises LocalProtocolError: after any other request.
        """
        if self._datagrams is None:
            if not self._has_datagrams:
                told = "this response has no datagrams: only one with status 101, or to an extended CONNECT, has them"
                raise LocalProtocolError(told)
            self._datagrams = http_datagrams.HttpDatagrams(self._exchange)
        return self._datagrams

    @property
    def _has_datagrams(self) -> bool:
        exchange = self._exchange
        return exchange.tunnel is not None and (exchange.request.protocol is not None or self.status == 101)

    def tunnel(self) -> ExchangeStream:
        """The raw byte stream after CONNECT, for use as the lowest layer of another stack."""
        return ExchangeStream(self._exchange)

    @property
    def stream_id(self) -> int:
        """The stream id in HTTP/2 and HTTP/3; in HTTP/1.1 the request's number on its connection."""
        return self._exchange.number

    async def receive(self) -> bytes:
        """Return the next piece of the body; ``b""`` at its end. If ``network_stream`` takes its place, always ``b""``.

        :raises AllswellError: when the body ends before it is complete.
        """
        if self._exchange.tunnel:
            return b""
        if self._tracer is not None:
            return await self._receive_traced(self._tracer)
        return await self._exchange.receive()

    async def read(self) -> bytes:
        """Return the whole body.

        :raises AllswellError: when the body ends before it is complete.
        """
        if self._content is None:
            self._content = await self.read_counted(_uncounted)
        return self._content

    def read_nowait(self) -> bool:
        """Read the whole body without waiting, if that leaves nothing to do. Return whether it does."""
        self._content = self.take_whole()
        return self._content is not None

    def take_whole(self) -> bytes | None:
        """The whole body, if it has come and the response needs nothing more; else ``None``."""
        if self._tracer is not None or self._exchange.tunnel is not None:
            return None
        return self._exchange.take_whole()

    async def read_counted(self, count: Callable[[int], None]) -> bytes:
        """Return the whole body, of which nothing was read before.

        :param count: called with the number of bytes that have come, also if the body does not become complete.
        """
        if self._tracer is None and self._exchange.tunnel is None:
            try:
                content = await self._exchange.receive_whole()
            except BaseException:
                count(self._exchange.body.come)
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

    def reprioritize(self, priority: str | bytes) -> None:
        """Ask the server to send the rest of this response before others, or after them (RFC 9218 §7).

        HTTP/3 has a frame for that. So has HTTP/2, if the server says that it knows the frame. Otherwise nothing is
        sent. Nothing is sent either if the response is complete, or one side is leaving (GOAWAY).

        :param priority: in the form of the Priority field: ``"u=1, i"``. It replaces the earlier one as a whole.
        :raises LocalProtocolError: if it is not valid.
        """
        self._exchange.reprioritize(priority)

    async def finish(self) -> None:
        """Wait until the request was sent in full. (If the whole response came early, some may be left to send.)"""
        if self._exchange.upload is not None:
            await self._exchange.finish()

    @property
    def settled(self) -> bool:
        """Whether it needs nothing more. Then to close it changes nothing, and no tracer is told."""
        exchange = self._exchange
        return self._tracer is None and exchange.upload is None and exchange.all_read and not exchange.sending.open

    async def aclose(self) -> None:
        """Read no more of the body. The connection is kept if the protocol allows it after what was read.

        If the whole response was read before the request was sent in full, this waits for the rest of the request.

        :raises BaseException: what the request's body has raised meanwhile.
        """
        try:
            if self._exchange.all_read:
                await self.finish()
        finally:
            await self.drop()

    async def drop(self) -> None:
        """Read no more of the body, and do not wait for the rest of the request."""
        if self._tracer is not None:
            self._tell_body_over(self._tracer, "failed", {"exception": GeneratorExit()})
            self._tracer.note("response_closed.started", {})
        self._exchange.abandon()
        if self._tracer is not None:
            self._tracer.note("response_closed.complete", {"return_value": None})
            await self._tracer.tell()

    async def _receive_traced(self, tracer: Tracer) -> bytes:
        if not self._traced:
            self._traced = "started"
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
        if self._traced == "started":
            self._traced = how
            tracer.note(f"receive_response_body.{how}", info)

    def extension_facts(self) -> dict[str, Any]:
        """The response's ``extensions``, in httpx2's word, but for those that the transport adds.

        ``informational`` grows as 1xx responses come.
        """
        exchange = self._exchange
        facts: dict[str, Any] = {
            "http_version": self.http_version,
            "informational": exchange.informational,
            "attempts": self.attempts,
        }
        if self.http_version in (b"HTTP/1.1", b"HTTP/1.0"):
            facts["reason_phrase"] = self.reason
        else:
            facts["stream_id"] = exchange.number
        if exchange.tunnel is not None and self._has_datagrams:
            facts["datagrams"] = self.datagrams
        return facts


def _uncounted(size: int) -> None:
    """Do nothing: the size is not needed."""


class _Pieces:
    """A body, piece by piece. (It is not a generator, because trio warns if one is left half-way and not closed.)"""

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
