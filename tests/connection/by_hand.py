"""A connection without an event loop or a socket: its driver only takes notes, its server is pretended.

One face for all versions: what a server says is fed to the backend in pieces of any size, and what that means to the
connection.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Generator, Iterable
from types import coroutine
from typing import Any, cast

from hpack import Encoder
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, SettingsFrame
from pylsqpack import Encoder as FieldEncoder

from allswell._backends import http3_frames as h3
from allswell._backends.http1 import Http1
from allswell._backends.http2 import Http2
from allswell._backends.http2_core import CONNECTION_WINDOW, INITIAL_WINDOW
from allswell._backends.http3 import Http3
from allswell._backends.interface import AlternativeOffered, Backend, OriginsNamed
from allswell._config import PoolConfig, Timeouts
from allswell._connection.connection import Connection, Drives
from allswell._connection.exchange import Exchange
from allswell._connection.lifecycle import State
from allswell._messages import RequestHead
from allswell._quic import varint
from allswell._quic.interface import StreamDataReceived
from allswell._report import ConnectionEnd
from tests.backends.h3_peer import CONTROL, Quic

VERSIONS = ["h1", "h2", "h3"]


@coroutine
def _turn() -> Generator[None, None, None]:
    yield


class _Signal:
    """Whoever waits goes on when the test says so.

    :ivar sets: how often it was set.
    """

    def __init__(self) -> None:
        self.sets = 0

    def set(self) -> None:
        self.sets += 1

    async def wait(self) -> None:
        await _turn()

    def listen(self, function: Callable[[], None] | None) -> bool:
        return False


class _Alarm:
    at = float("inf")

    def set(self, at: float) -> None:
        self.at = at


class Driver:
    """A driver that does nothing of what it is told to.

    :ivar told: what that was.
    :ivar sent: what was written.
    :ivar writes: how often.
    :ivar soon: what the event loop was asked to call.
    """

    unsent = 0

    def __init__(self, *, pushes: bool) -> None:
        self.pushes = pushes
        self.told: list[str] = []
        self.sent = b""
        self.writes = 0
        self.soon: list[Callable[[], None]] = []
        self.host = self.writer = self
        self.alarm = _Alarm()

    def signal(self) -> _Signal:
        """As of an event loop."""
        return _Signal()

    def write(self, data: bytes, *, answers: bool = False) -> None:
        """As of a writer."""
        self.sent += data
        self.writes += 1

    def call_soon(self, function: Callable[[], None]) -> None:
        """As of an event loop."""
        self.soon.append(function)

    @property
    def full(self) -> Any:
        """Of a writer and of a driver: never."""
        return False

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: self.told.append(name)


class Server(ABC):
    """What a server says, in one version.

    :ivar backend: the client's.
    :ivar number: of the exchange that is answered.
    """

    backend: Backend[Any]
    number = 0

    @abstractmethod
    def greeting(self) -> list[Any]:
        """What it says first."""

    @abstractmethod
    def head(self, status: int, length: int, *, end: bool = False) -> list[Any]:
        """The head of a response with so much content."""

    @abstractmethod
    def body(self, data: bytes, *, end: bool) -> list[Any]:
        """Content."""

    @abstractmethod
    def leaving(self) -> list[Any]:
        """It takes no more requests."""

    @abstractmethod
    def pieces(self, said: Iterable[Any], size: int) -> Iterable[Any]:
        """What it says, as input of this size."""


class _Bytes(Server):
    def pieces(self, said: Iterable[Any], size: int) -> Iterable[Any]:
        """."""
        data = b"".join(said)
        for start in range(0, len(data), size):
            piece = bytearray(data[start : start + size])
            yield memoryview(piece)
            piece[:] = b"\xaa" * len(piece)  # the buffer is used again


class Http1Server(_Bytes):
    """HTTP/1.1."""

    def __init__(self) -> None:
        self.backend = Http1(max_header_size=65536)
        self.closes = False

    def greeting(self) -> list[bytes]:
        """."""
        return []

    def head(self, status: int, length: int, *, end: bool = False) -> list[bytes]:
        """."""
        closes = b"Connection: close\r\n" * self.closes
        return [b"HTTP/1.1 %d Said\r\n%bContent-Length: %d\r\n\r\n" % (status, closes, length)]

    def body(self, data: bytes, *, end: bool) -> list[bytes]:
        """."""
        return [data]

    def leaving(self) -> list[bytes]:
        """With the next response."""
        self.closes = True
        return []


class Http2Server(_Bytes):
    """HTTP/2."""

    def __init__(self) -> None:
        self.backend = Http2(max_header_size=65536, initial_window=INITIAL_WINDOW, connection_window=CONNECTION_WINDOW)
        self._encoder = Encoder()

    def greeting(self) -> list[bytes]:
        """."""
        return [SettingsFrame(0).serialize(), SettingsFrame(0, flags=["ACK"]).serialize()]

    def head(self, status: int, length: int, *, end: bool = False) -> list[bytes]:
        """."""
        fields = [(":status", str(status)), ("content-length", str(length))]
        flags = ["END_HEADERS", "END_STREAM"] if end else ["END_HEADERS"]
        return [HeadersFrame(self.number, self._encoder.encode(fields), flags=flags).serialize()]

    def body(self, data: bytes, *, end: bool) -> list[bytes]:
        """."""
        cut = [data[start : start + 16384] for start in range(0, len(data), 16384)]
        frames: list[Frame] = [DataFrame(self.number, piece) for piece in cut]
        if end:
            frames[-1].flags.add("END_STREAM")
        return [frame.serialize() for frame in frames]

    def leaving(self) -> list[bytes]:
        """."""
        return [GoAwayFrame(0, last_stream_id=self.number).serialize()]


class Http3Server(Server):
    """HTTP/3."""

    def __init__(self) -> None:
        self.quic = Quic(handshake_complete=True)
        self.backend = Http3(self.quic)
        self._encoder = FieldEncoder()

    def greeting(self) -> list[StreamDataReceived]:
        """."""
        return [self._said(varint.encode(h3.CONTROL_STREAM) + h3.settings({}), stream=CONTROL)]

    def head(self, status: int, length: int, *, end: bool = False) -> list[StreamDataReceived]:
        """."""
        fields = [(b":status", b"%d" % status), (b"content-length", b"%d" % length)]
        return [self._said(h3.frame(h3.HEADERS, self._encoder.encode(self.number, fields)[1]), end=end)]

    def body(self, data: bytes, *, end: bool) -> list[StreamDataReceived]:
        """."""
        return [self._said(h3.frame(h3.DATA, data), end=end)]

    def leaving(self) -> list[StreamDataReceived]:
        """."""
        return [self._said(h3.frame(h3.GOAWAY, varint.encode(self.number + 4)), stream=CONTROL)]

    def _said(self, data: bytes, *, stream: int | None = None, end: bool = False) -> StreamDataReceived:
        number = self.number if stream is None else stream
        return StreamDataReceived(data=data, end_stream=end, stream_id=number)

    def pieces(self, said: Iterable[Any], size: int) -> Iterable[Any]:
        """."""
        events = list(said)
        if sum(len(event.data) for event in events) <= size:
            yield events
            return
        for event in events:
            data, stream = event.data, event.stream_id
            for start in range(0, len(data), size):
                last = start + size >= len(data)
                piece = data[start : start + size]
                yield [StreamDataReceived(data=piece, end_stream=last and event.end_stream, stream_id=stream)]


SERVERS: dict[str, type[Server]] = {"h1": Http1Server, "h2": Http2Server, "h3": Http3Server}


def goes_on(requester: Coroutine[Any, Any, bytes]) -> bytes | None:
    """Give a requester its turn: what it has read, or ``None`` while it waits."""
    try:
        requester.send(None)
    except StopIteration as end:
        return cast(bytes, end.value)
    return None


class ByHand:
    """A connection, its owner, its driver and its server.

    :param size: of the pieces that arrive.
    :ivar told: what the owner was told.
    """

    def __init__(self, version: str, size: int, **config: Any) -> None:
        self.server = SERVERS[version]()
        self.driver = Driver(pushes=version == "h3")
        self.told: list[str] = []
        self._size = size
        self.connection = Connection(
            cast(Drives, self.driver),
            self.server.backend,
            label="https://example.org",
            owner=self,
            config=PoolConfig(**config),
        )
        self.say(self.server.greeting())
        self.told.clear()

    def open(
        self, method: bytes = b"GET", body: bytes | None = None, *, upload: int = 0, timeouts: Timeouts | None = None
    ) -> Exchange[Connection]:
        """A request, which is the one that is answered from now on."""
        fields = [(b"Host", b"example.org")]
        if upload or body is not None:
            fields.append((b"Content-Length", b"%d" % (upload or len(body or b""))))
        head = RequestHead(method, b"https", b"example.org", b"/", fields)
        exchange = self.connection.open(head, body, timeouts=timeouts or Timeouts(), upload=bool(upload))
        self.server.number = exchange.number
        return exchange

    def say(self, *said: list[Any]) -> None:
        """The server says this."""
        for each in said:
            for piece in self.server.pieces(each, self._size):
                if not self.connection.reads:
                    return
                self.connection.received(self.server.backend.receive(piece))
                while self.server.backend.unfinished:
                    self.connection.received(self.server.backend.go_on())
        if self.connection.reads:
            self.connection.settle()

    def state(self) -> State:
        """Where the connection is in its life."""
        return self.connection.state

    def connection_available(self, connection: Connection) -> None:
        """Part of what an owner is."""
        self.told.append("available")

    def connection_wanted(self, connection: Connection) -> bool:
        """Part of what an owner is."""
        return False

    def connection_leaving(self, connection: Connection) -> None:
        """Part of what an owner is."""
        self.told.append("leaving")

    def connection_announced(self, connection: Connection, news: OriginsNamed | AlternativeOffered) -> None:
        """Part of what an owner is."""

    def connection_ended(self, connection: Connection, end: ConnectionEnd) -> None:
        """Part of what an owner is."""
