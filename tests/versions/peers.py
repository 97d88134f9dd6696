"""One server's side of an exchange, said once for all versions of HTTP: a handler is given a :class:`Side`.

The handler is called when a request's head has come, in the server's thread. It may say what it likes, and what to do
once the whole request has come (:meth:`Side.when_sent`); what comes of the request is counted meanwhile.
"""

from __future__ import annotations

import select
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio.to_thread
from aioquic.quic.events import StreamReset

from allswell import ConnectionPool
from tests.support.certificates import certificates
from tests.support.h2_script import INITIAL_WINDOW_SIZE, Request, Talk
from tests.support.peer import PeerConnection, scripted_peer
from tests.support.quic_server import QuicServer, ServedConnection

VERSIONS = ["h1", "h2", "h3"]


@dataclass
class Saw:
    """What the server saw of a request's body.

    :ivar size: bytes that came.
    :ivar whole: it came to its end.
    :ivar stopped: how it ended else: the code of RST_STREAM or RESET_STREAM; in HTTP/1.1, the connection's end.
    """

    size: int = 0
    whole: bool = False
    stopped: int | str | None = None


class Side(ABC):
    """The server's side of one exchange."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.sent: Callable[[], None] | None = None
        #: Whether the request's body is read.
        self.reads = True

    @abstractmethod
    def informational(self, status: int, *fields: tuple[str, str]) -> None:
        """A 1xx response."""

    @abstractmethod
    def head(self, status: int, *fields: tuple[str, str], length: int | None = None) -> None:
        """The final response's head; ``length`` announces a body (0: the response ends here)."""

    @abstractmethod
    def data(self, data: bytes, *, end: bool) -> None:
        """A piece of its body."""

    @abstractmethod
    def stop(self, code: int = 0) -> None:
        """Say that the rest of the request is not wanted. (In HTTP/1.1 only the head can: ``Connection: close``.)"""

    @abstractmethod
    def abort(self, code: int) -> None:
        """End the whole exchange by a reset: RST_STREAM, or RESET_STREAM and STOP_SENDING."""

    def when_sent(self, action: Callable[[], None]) -> None:
        """Do this once the request's body has come."""
        self.sent = action

    def answer(self, status: int, body: bytes = b"", *fields: tuple[str, str]) -> None:
        """A whole response at once."""
        self.head(status, *fields, length=len(body))
        if body:
            self.data(body, end=True)


class _Http1(Side):
    def __init__(self, connection: PeerConnection, path: str) -> None:
        super().__init__(path)
        self._connection = connection

    def informational(self, status: int, *fields: tuple[str, str]) -> None:
        self._lines(status, fields)

    def head(self, status: int, *fields: tuple[str, str], length: int | None = None) -> None:
        framing = ("Transfer-Encoding", "chunked") if length is None else ("Content-Length", str(length))
        self._chunked = length is None
        self._lines(status, (*fields, framing))

    def _lines(self, status: int, fields: tuple[tuple[str, str], ...]) -> None:
        lines = [f"HTTP/1.1 {status} -", *(f"{name}: {value}" for name, value in fields), "", ""]
        self._connection.send("\r\n".join(lines).encode())

    def data(self, data: bytes, *, end: bool) -> None:
        if self._chunked:
            self._connection.send((b"%x\r\n%s\r\n" % (len(data), data)) * bool(data) + b"0\r\n\r\n" * end)
        else:
            self._connection.send(data)

    def stop(self, code: int = 0) -> None:
        """There is no such thing."""

    def abort(self, code: int) -> None:
        self._connection.reset()


class _Http2(Side):
    def __init__(self, talk: Talk, request: Request) -> None:
        super().__init__(request.path)
        self._talk, self._request = talk, request

    def informational(self, status: int, *fields: tuple[str, str]) -> None:
        self._talk.send(self._talk.headers(self._request.stream, [(":status", str(status)), *fields]))

    def head(self, status: int, *fields: tuple[str, str], length: int | None = None) -> None:
        lengths = [("content-length", str(length))] if length is not None else []
        self._talk.answer(self._request, b"", status=status, fields=[*fields, *lengths], end=length == 0)

    def data(self, data: bytes, *, end: bool) -> None:
        self._talk.body(self._request, data, end=end)

    def stop(self, code: int = 0) -> None:
        self._talk.rst(self._request.stream, code)

    def abort(self, code: int) -> None:
        self._talk.rst(self._request.stream, code)


class _Http3(Side):
    def __init__(self, connection: ServedConnection, stream: int, path: str) -> None:
        super().__init__(path)
        self._connection, self._stream = connection, stream

    def informational(self, status: int, *fields: tuple[str, str]) -> None:
        self._connection.head(self._stream, status, *_encoded(fields))

    def head(self, status: int, *fields: tuple[str, str], length: int | None = None) -> None:
        lengths = [(b"content-length", b"%d" % length)] if length is not None else []
        self._connection.head(self._stream, status, *_encoded(fields), *lengths, end=length == 0)

    def data(self, data: bytes, *, end: bool) -> None:
        self._connection.data(self._stream, data, end=end)

    def stop(self, code: int = 0) -> None:
        self._connection.quic.stop_stream(self._stream, code or 0x100)

    def abort(self, code: int) -> None:
        self._connection.flush()  # aioquic throws away what has not gone
        self._connection.quic.reset_stream(self._stream, code or 0x100)
        self.stop(code)


def _encoded(fields: tuple[tuple[str, str], ...]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in fields]


Handler = Callable[[Side], None]


@dataclass
class Server:
    """A server of one version.

    :ivar url: its origin.
    :ivar saw: what it saw of each path's request body.
    :ivar sides: the last exchange of each path, for the test to say more; by way of ``call``.
    """

    version: str
    url: str = ""
    saw: dict[str, Saw] = field(default_factory=dict)
    sides: dict[str, Side] = field(default_factory=dict)
    call: Callable[[Callable[[], None]], object] = lambda action: action()
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def pool(self, **settings: Any) -> ConnectionPool:
        """A pool that speaks its version."""
        if self.version == "h3":
            return ConnectionPool(http3="only", ssl_context=certificates().client_context(), **settings)
        return ConnectionPool(http1=self.version == "h1", http2=self.version == "h2", **settings)

    async def ended(self, path: str) -> Saw:
        """What it saw of that request, once its body has ended, this way or that."""

        def over() -> bool:
            saw = self.saw.get(path)
            return saw is not None and (saw.whole or saw.stopped is not None)

        await anyio.to_thread.run_sync(self._wait_for, over)
        return self.saw[path]

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            if not self._changed.wait_for(condition, 10):
                raise TimeoutError(f"it does not come: {self.saw}")

    async def say(self, path: str, what: Callable[[Side], None]) -> None:
        """Have that exchange's side say something more, once the request's head has come."""
        await anyio.to_thread.run_sync(self._wait_for, lambda: path in self.sides)
        self.call(lambda: what(self.sides[path]))

    def begun(self, side: Side) -> None:
        """A request's head has come."""
        self.sides[side.path] = side
        self.note(side.path, 0)

    def note(self, path: str, size: int, *, whole: bool = False, stopped: int | str | None = None) -> None:
        """Something came."""
        with self._changed:
            saw = self.saw.setdefault(path, Saw())
            saw.size += size
            saw.whole = saw.whole or whole
            saw.stopped = saw.stopped if stopped is None else stopped
            self._changed.notify_all()


@contextmanager
def serving(version: str, handler: Handler, *, window: int = 65536) -> Iterator[Server]:
    """A server that gives every request to the handler.

    :param window: bytes of a request's body that may come before it is read (in HTTP/1.1, about so many).
    """
    server = Server(version)
    if version == "h3":
        yield from _serve_http3(server, handler, window)
        return
    script = _http1(server, handler) if version == "h1" else _http2(server, handler, window)
    with scripted_peer(script, receive_buffer=window if version == "h1" else None) as peer:
        server.url = peer.url
        yield server


def _http1(server: Server, handler: Handler) -> Callable[[PeerConnection], None]:
    def script(connection: PeerConnection) -> None:
        while head := connection.read_head():
            path = head.split(b" ", 2)[1].decode()
            side = _Http1(connection, path)
            server.begun(side)
            handler(side)
            if not side.reads:
                _wait_hung_up(connection)
                server.note(path, 0, stopped="the connection")
                return
            size, whole = _read_body(connection, head)
            server.note(path, size, whole=whole, stopped=None if whole else "the connection")
            if whole and side.sent is not None:
                side.sent()

    return script


def _wait_hung_up(connection: PeerConnection) -> None:
    """Wait for the client's end without reading what lies before it."""
    poll = select.poll()
    poll.register(connection.raw, select.POLLRDHUP)
    while not connection.stopping and not poll.poll(50):  # (between two looks; the end wakes it at once)
        pass


def _read_body(connection: PeerConnection, head: bytes) -> tuple[int, bool]:
    """How much of a body came, and whether it came to its end."""
    if b"chunked" not in head.lower():
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
        size = len(connection.read_exactly(length))
        return size, size == length
    body = connection.read_body(head)
    size = position = 0
    while (line := body.find(b"\r\n", position)) >= 0:
        chunk = int(body[position:line], 16)
        if not chunk:
            return size, True
        size += min(chunk, len(body) - line - 2)
        position = line + 4 + chunk
    return size, False


def _http2(server: Server, handler: Handler, window: int) -> Callable[[PeerConnection], None]:
    def script(connection: PeerConnection) -> None:
        talk = Talk(connection)
        talk.greet({INITIAL_WINDOW_SIZE: window})
        sides: dict[int, _Http2] = {}
        counted: dict[int, int] = {}
        while (frame := talk.read()) is not None:
            request = talk.requests.get(frame.stream_id)
            if request is None:
                continue
            path = request.path
            side = sides.get(request.stream)
            if side is None:
                side = sides[request.stream] = _Http2(talk, request)
                server.begun(side)
                handler(side)
                talk.credits_at_once = side.reads
            more = len(request.body) - counted.get(request.stream, 0)
            counted[request.stream] = len(request.body)
            server.note(path, more, whole=request.ended, stopped=request.reset)
            if request.ended and side.sent is not None:
                action, side.sent = side.sent, None
                action()

    return script


def _serve_http3(server: Server, handler: Handler, window: int) -> Iterator[Server]:
    sides: dict[int, _Http3] = {}

    def serve(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        side = sides[stream] = _Http3(connection, stream, fields[b":path"].decode())
        server.begun(side)
        handler(side)
        if not side.reads:
            connection.quic._write_stream_limits = lambda **_: None  # type: ignore[method-assign]  # aioquic always does

    class Routes(dict[bytes, Any]):
        def get(self, path: bytes, default: Any = None) -> Any:
            return serve

    class Counting(QuicServer):
        def _on_http(self, connection: ServedConnection, event: Any) -> None:
            super()._on_http(connection, event)
            side = sides.get(event.stream_id)
            if side is None:
                return
            server.note(side.path, len(getattr(event, "data", b"")), whole=event.stream_ended)
            if event.stream_ended and side.sent is not None:
                side.sent()

        def _on_event(self, connection: ServedConnection, event: Any) -> None:
            super()._on_event(connection, event)
            if isinstance(event, StreamReset) and event.stream_id in sides:
                server.note(sides[event.stream_id].path, 0, stopped=event.error_code)

    with Counting(max_stream_data=window, max_data=1 << 20) as quic:
        quic.routes = Routes()
        server.url = f"https://127.0.0.1:{quic.port}"
        server.call = lambda action: quic.call(lambda _: action())
        yield server
