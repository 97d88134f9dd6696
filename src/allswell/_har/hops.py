"""What is recorded of each request.

Theory of operation. A recording is a transport around the client's transport. So a redirect and a step of ``auth`` are
separate requests here: hops. A hop gets its facts from three sources:

- the events of its pool, by :class:`Ear`: the attempts, their connections, how those were made and how they ended.
- its tracer, which is the hop itself: heads, and the pieces of uploads. A transport that is not ours may send the same
  by the ``trace`` extension, and also how it connects. Or it may send nothing.
- the body of its response, as the caller reads it. The recording itself does not read it.
"""

from __future__ import annotations

import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import time
from typing import Any, NamedTuple

import httpx2

from allswell._clock import monotonic
from allswell._errors import NotProcessed
from allswell._events import (
    ConnectionEnded,
    ConnectionOpened,
    ConnectionUsed,
    DialBegan,
    Event,
    Peer,
    PhaseEnded,
    RequestAnswered,
    RequestBegan,
    RequestFailed,
    RequestSent,
    RequestSentBack,
    RequestWaits,
)
from allswell._messages import Headers
from allswell._observers import Observers
from allswell._report import ConnectionEnd
from allswell._trace import Tracer
from allswell._transport import AsyncTransport

#: The phases of a dial, by the names of trace events of other transports.
_PHASES = {"connect_tcp": "tcp", "connect_unix_socket": "tcp", "start_tls": "tls"}


class Heard:
    """The recorded part of a body.

    :param most: how many bytes of it are kept.
    :ivar kept: its first bytes.
    :ivar size: how many bytes of it were sent or read, kept or not.
    :ivar whole: whether its end has come.
    """

    __slots__ = ("_most", "kept", "size", "whole")

    def __init__(self, most: int, content: bytes | None = None) -> None:
        self._most = most
        self.kept = bytearray()
        self.size = 0
        self.whole = content is not None
        if content:
            self.piece(content)

    def piece(self, piece: bytes) -> None:
        """Record the next piece of it."""
        self.size += len(piece)
        if (room := self._most - len(self.kept)) > 0:
            self.kept += piece[:room]


class Phase(NamedTuple):
    """A phase of a dial. See :class:`PhaseEnded`."""

    name: str
    began: float
    ended: float
    failed: bool


class Made:
    """What is recorded of a connection.

    :ivar phases: the phases of its dial.
    :ivar used_at: when it last went from idle to active.
    :ivar opened: the event of its opening; ``None`` if that came before the recording, or not yet.
    :ivar end: how it ended; ``None`` if it has not ended.
    """

    __slots__ = ("end", "opened", "phases", "used_at")

    def __init__(self) -> None:
        self.phases: list[Phase] = []
        self.used_at = 0.0
        self.opened: ConnectionOpened | None = None
        self.end: ConnectionEnd | None = None


class Answer:
    """The head of a response."""

    __slots__ = ("headers", "http_version", "reason", "status")

    def __init__(self, status: int, reason: bytes, http_version: str, headers: Headers) -> None:
        self.status = status
        self.reason = reason
        self.http_version = http_version
        self.headers = headers


class Attempt:
    """One attempt at a request. All times are seconds of :func:`monotonic`.

    :ivar made: the connection that was made for it. It may have gone to another request.
    :ivar carried_by: the connection that carried it.
    :ivar sent_at: when its head was sent.
    :ivar uploaded_at: when the last piece of its body was taken.
    :ivar answered_at: when the head of its response had come.
    :ivar over_at: when the attempt was over.
    :ivar connection: the number of its connection.
    :ivar peer: what that connection is connected to.
    :ivar why: why the attempt did not serve the request, so another one followed or was considered; empty if it did.
    :ivar decoded: whether only the decoded body is recorded, and not the body as it was sent.
    """

    def __init__(self, began: float, most: int) -> None:
        self.began = began
        self.made: Made | None = None
        self.carried_by: Made | None = None
        self.sent_at: float | None = None
        self.uploaded_at: float | None = None
        self.answered_at: float | None = None
        self.over_at: float | None = None
        self.http_version = ""
        self.connection: int | None = None
        self.peer: Peer | None = None
        self.upload = Heard(most)
        self.answer: Answer | None = None
        self.body: Heard | None = None
        self.decoded = False
        self.error = ""
        self.why = self.processed = ""

    def end(self) -> None:
        """The attempt is over."""
        if self.over_at is None:
            self.over_at = monotonic()


class Hop(Tracer):
    """A request, and what is recorded of it.

    :param ear: gives it the events of pools.
    :param most: how many bytes of each body are kept.
    :ivar attempts: the attempts at it, the first one first.
    :ivar began_at: when it began, in seconds since the epoch.
    """

    def __init__(self, request: httpx2.Request, ear: Ear, most: int) -> None:
        super().__init__(request.extensions.get("trace"))
        self._most = most
        self.ear = ear
        self.began_at, began = time(), monotonic()
        self.method = request.method
        self.url = request.url
        self.headers: Headers = list(request.headers.raw)
        try:
            self.content: bytes | None = request.content
        except httpx2.RequestNotRead:
            self.content = None
        self.attempts = [Attempt(began, most)]
        self._connecting: dict[str, float] = {}  # by the phase's name: when a trace event said that it began

    @contextmanager
    def current(self) -> Iterator[None]:
        """Requests that a pool gets inside this context belong to this hop."""
        token = _HOP.set(weakref.ref(self))
        try:
            yield
        finally:
            _HOP.reset(token)

    def under_way(self) -> Attempt:
        """The attempt that is under way. It began when the one before it was over, so it has the pause between them."""
        last = self.attempts[-1]
        if last.why:
            assert last.over_at is not None
            self.attempts.append(Attempt(last.over_at, self._most))
        return self.attempts[-1]

    # What the tracer is given

    def note(self, name: str, info: dict[str, Any]) -> None:
        self._hear(name)
        last = self.attempts[-1]
        if name == "receive_response_headers.complete":
            version, status, reason, headers = info["return_value"]
            last.answer = Answer(status, reason, version.decode("ascii"), list(headers))
        elif name == "receive_response_headers.failed":
            last.error = _words(info["exception"])
        super().note(name, info)

    def _hear(self, name: str) -> None:
        if name == "send_request_headers.started":
            attempt = self.under_way()
            attempt.sent_at = attempt.sent_at or monotonic()
            attempt.error = ""  # the same attempt is sent again, because its connection had fallen silent
        elif name == "receive_response_headers.complete":
            self.attempts[-1].answered_at = monotonic()

    async def __call__(self, name: str, info: dict[str, Any]) -> None:
        """Take a trace event of a transport that is not ours."""
        word = name.partition(".")[2]
        step, _, how = word.rpartition(".")
        if step in _PHASES:
            attempt, now = self.under_way(), monotonic()
            made = attempt.made = attempt.carried_by = attempt.made or Made()
            if how == "started":
                self._connecting[step] = now
            else:
                made.phases.append(Phase(_PHASES[step], self._connecting.pop(step, now), now, how == "failed"))
        self._hear(word)
        await self._told(name, info)

    def sent(self, piece: bytes) -> None:
        attempt = self.under_way()
        attempt.uploaded_at = monotonic()
        attempt.upload.piece(piece)

    # The events of the pool

    def sent_on(self, event: RequestSent, connection: Made) -> None:
        """An attempt goes out. (If it waited for a connection, this event comes late: when its task runs again.)"""
        attempt = self.under_way()
        alone = event.http_version == "HTTP/1.1" or attempt.made is connection
        attempt.sent_at = connection.used_at if alone and connection.used_at >= attempt.began else monotonic()
        attempt.connection, attempt.carried_by = event.connection, connection
        attempt.http_version, attempt.peer = event.http_version, event.peer

    def sent_back(self, why: str, processed: str) -> None:
        """An attempt has failed."""
        if self.attempts[-1].why != why:  # (the pool's rules and the caller's retries may both report it)
            attempt = self.under_way()
            attempt.end()
            attempt.why, attempt.processed = why, processed

    # What the transport returns and raises

    def answered(self, response: httpx2.Response) -> None:
        """Its response has come."""
        attempt = self.under_way()
        attempt.answered_at = attempt.answered_at or monotonic()
        reason = response.extensions.get("reason_phrase", b"")
        attempt.answer = Answer(response.status_code, reason, response.http_version, list(response.headers.raw))
        attempt.http_version = response.http_version
        network = response.extensions.get("network_stream")
        if attempt.peer is None and network is not None:
            address = network.get_extra_info("server_addr")
            attempt.peer = address[:2] if isinstance(address, tuple) else address
        try:
            attempt.body, attempt.decoded = Heard(self._most, response.content), True
            attempt.end()
        except httpx2.ResponseNotRead:
            attempt.body = Heard(self._most)
            response.stream = _Stream(response.stream, attempt, attempt.body)

    def failed(self, error: BaseException) -> None:
        """The transport has raised an error."""
        attempt = self.attempts[-1]
        if attempt.why != str(error):  # (if they are equal, it is the error of the last attempt)
            attempt = self.under_way()
        attempt.error = _words(error)
        attempt.end()


def _words(error: BaseException) -> str:
    if not isinstance(error, Exception):
        return "cancelled"
    told = error.cause if isinstance(error, NotProcessed) else error
    return f"{type(told).__name__}: {told}"


class _Stream(httpx2.AsyncByteStream):
    """The body of a response. It is recorded as it is read."""

    def __init__(self, stream: Any, attempt: Attempt, body: Heard) -> None:
        self._stream = stream
        self._attempt = attempt
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces = aiter(self._stream)
        try:
            async for piece in pieces:
                self._body.piece(piece)
                yield piece
            self._body.whole = True
        except GeneratorExit:  # the reader has stopped
            raise
        except BaseException as error:
            self._attempt.error = _words(error)
            raise
        finally:
            self._attempt.end()
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            self._attempt.end()


#: The hop of the requests in this context. The reference is weak, because tasks inherit it and may live long.
_HOP: ContextVar[weakref.ref[Hop] | None] = ContextVar("allswell recorded", default=None)


class Ear:
    """Gives the events of pools to the hops of one client.

    :ivar connections: by number: the connections that were made or used since it began to listen.
    """

    def __init__(self) -> None:
        self.connections: dict[int, Made] = {}
        self._requests: dict[int, Hop] = {}
        self._listening: set[Observers] = set()

    def listen(self, transport: httpx2.AsyncBaseTransport) -> None:
        """Listen to the pool of a transport, if it is ours."""
        if isinstance(transport, AsyncTransport) and transport.pool.observers not in self._listening:
            self._listening.add(transport.pool.observers)
            transport.pool.observers.add(self.hear)

    def stop(self) -> None:
        """Stop to listen to all pools."""
        for observers in self._listening:
            observers.remove(self.hear)
        self._listening.clear()

    def hear(self, event: Event) -> None:
        """Take an event of a pool."""
        match event:
            case RequestBegan():
                hop = _HOP.get()
                if hop is not None and (found := hop()) is not None and found.ear is self:
                    self._requests[event.request] = found
            case RequestAnswered() | RequestFailed():
                self._requests.pop(event.request, None)
            case RequestWaits() if event.request in self._requests:
                self._requests[event.request].under_way()
            case RequestSent() if event.request in self._requests:
                self._requests[event.request].sent_on(event, self._connection(event.connection))
            case RequestSentBack() if event.request in self._requests:
                self._requests[event.request].sent_back(event.why, event.processed)
            case DialBegan() if event.request in self._requests:
                self._requests[event.request].under_way().made = self._connection(event.connection)
            case PhaseEnded():
                phase = Phase(event.phase, event.began, event.began + event.seconds, event.error is not None)
                self._connection(event.connection).phases.append(phase)
            case ConnectionUsed() if event.active:
                self._connection(event.connection).used_at = monotonic()
            case ConnectionOpened():
                self._connection(event.connection).opened = event
            case ConnectionEnded():
                self._connection(event.connection).end = event.end

    def _connection(self, number: int) -> Made:
        return self.connections.setdefault(number, Made())


class Recorded(httpx2.AsyncBaseTransport):
    """A transport that records each request.

    :param most: how many bytes of each body are kept.
    :param hops: the lists of the recordings. Each gets the hop.
    """

    def __init__(self, transport: httpx2.AsyncBaseTransport, ear: Ear, most: int, *hops: list[Hop]) -> None:
        self._transport = transport
        self._ear = ear
        self._most = most
        self._hops = hops

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self._ear.listen(self._transport)
        hop = Hop(request, self._ear, self._most)
        for hops in self._hops:
            hops.append(hop)
        given = request.extensions
        request.extensions = {**given, "trace": hop}
        try:
            with hop.current():
                response = await self._transport.handle_async_request(request)
        except BaseException as error:
            hop.failed(error)
            raise
        finally:
            request.extensions = given
        hop.answered(response)
        return response
