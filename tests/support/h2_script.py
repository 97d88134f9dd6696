"""A scripted HTTP/2 server over :mod:`tests.support.peer`: what it is told to say, and every frame that it saw.

It knows no more of HTTP/2 than it must (hyperframe's frames, hpack's compression, the client's windows), so nothing
keeps it from breaking the protocol. :class:`Http2Server` is a script: it greets, reads frames and hands each request,
once its head is there, to a handler::

    def leave(talk: Talk, request: Request) -> None:
        talk.goaway(request.stream)
        talk.answer(request)

    server = Http2Server(leave)
    with scripted_peer(server, tls=h2_tls()) as peer:
        ...
        assert server.talks[0].said_last == "GOAWAY"

The handler runs in the connection's thread. From the test's thread a :class:`Talk` may be told to send too, while the
client is quiet.
"""

from __future__ import annotations

import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from hpack import Decoder, Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.support.certificates import certificates
from tests.support.peer import PeerConnection

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM = 7, 8, 11

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 1, 2, 3, 4
MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE, ENABLE_CONNECT_PROTOCOL = 5, 6, 8

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_OPEN_WINDOW = 1 << 30

Fields = Sequence[tuple[str, str]]


def h2_tls() -> ssl.SSLContext:
    """A server's TLS that chooses h2."""
    return certificates().server_context(alpn=["h2"])


@dataclass
class Request:
    """What came on one stream.

    :ivar headers: all fields, pseudo-header fields included.
    :ivar ended: the client has sent END_STREAM.
    :ivar reset: the error code with which the client reset it.
    """

    stream: int
    headers: dict[str, str]
    body: bytearray = field(default_factory=bytearray)
    trailers: dict[str, str] = field(default_factory=dict)
    ended: bool = False
    reset: int | None = None
    window: int = 65535

    @property
    def path(self) -> str:
        return self.headers.get(":path", "")


class Talk:
    """One connection's side of the server.

    :ivar frames: every frame that the client sent, in order.
    :ivar requests: by stream.
    :ivar window: what we may send on the connection.
    :ivar credits: whether uploads get their credit at once.
    """

    def __init__(self, connection: PeerConnection, *, credits_at_once: bool = True) -> None:
        self.connection = connection
        self.frames: list[Frame] = []
        self.requests: dict[int, Request] = {}
        self.window = 65535
        self.client_settings: dict[int, int] = {}
        self.credits_at_once = credits_at_once
        self.acks_pings = True
        self._finished = False
        self._encoder, self._decoder = Encoder(), Decoder()
        self._data = bytearray()
        self._block = bytearray()
        self._begun: deque[Request] = deque()  # those that read_request is still to give
        self._changed = threading.Condition()

    # What was seen

    @property
    def seen(self) -> list[str]:
        """Names of the frames: ``"SETTINGS"``, ``"HEADERS 1"``, ``"RST_STREAM 1 CODE"``, ``"GOAWAY CODE"``."""
        return [_name(frame) for frame in list(self.frames)]

    @property
    def said_last(self) -> str:
        """The client's last frame."""
        return self.seen[-1]

    def wait_for(self, what: str, count: int = 1, timeout: float = 30.0) -> None:
        """Block until the client has sent such a frame (see :attr:`seen`; a prefix will do) so often.

        :raises TimeoutError: with what it sent.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: sum(each.startswith(what) for each in self.seen) >= count, timeout):
                raise TimeoutError(f"no {count} x {what!r} within {timeout} s, but {self.seen[-20:]}")

    # Reading

    def greet(self, settings: dict[int, int] | None = None) -> None:
        """Our SETTINGS, then the client's preface."""
        self.send(SettingsFrame(0, settings=settings or {}))
        self.read_preface()

    def read_preface(self) -> None:
        """The client's connection preface (RFC 9113 §3.4)."""
        while len(self._data) < len(_PREFACE):
            if not self._more():
                return
        assert self._data.startswith(_PREFACE), bytes(self._data[:64])
        del self._data[: len(_PREFACE)]

    def read(self) -> Frame | None:
        """The next frame, answered as far as the protocol asks; ``None`` at the client's end."""
        while len(self._data) < 9 or len(self._data) < 9 + int.from_bytes(self._data[:3], "big"):
            if not self._more():
                return None
        frame, length = Frame.parse_frame_header(memoryview(bytes(self._data[:9])))
        frame.parse_body(memoryview(bytes(self._data[9 : 9 + length])))
        del self._data[: 9 + length]
        self._account(frame, length)
        with self._changed:
            self.frames.append(frame)
            self._changed.notify_all()
        return frame

    def read_request(self) -> Request | None:
        """The next request's head; ``None`` at the client's end. (It may have come while a body was read.)"""
        while not self._begun:
            if self.read() is None:
                return None
        return self._begun.popleft()

    def read_body(self, request: Request) -> bytes:
        """Read on until the request is complete (or reset, or the client ended)."""
        while not request.ended and request.reset is None and self.read() is not None:
            pass
        return bytes(request.body)

    def wait_for_goaway(self) -> None:
        """Read on until the client says GOAWAY, or ends."""
        while (frame := self.read()) is not None and not isinstance(frame, GoAwayFrame):
            pass

    def _more(self) -> bool:
        data = self.connection.recv()
        self._data += data
        return bool(data)

    def _account(self, frame: Frame, length: int) -> None:
        stream = frame.stream_id
        if isinstance(frame, SettingsFrame):
            if "ACK" not in frame.flags:
                self._apply(frame.settings)
                self.send(SettingsFrame(0, flags=["ACK"]))
        elif isinstance(frame, PingFrame):
            if "ACK" not in frame.flags and self.acks_pings:
                self.send(PingFrame(0, opaque_data=frame.opaque_data, flags=["ACK"]))
        elif isinstance(frame, WindowUpdateFrame):
            if stream == 0:
                self.window += frame.window_increment
            elif stream in self.requests:
                self.requests[stream].window += frame.window_increment
        elif isinstance(frame, HeadersFrame):
            self._head(frame)
        elif isinstance(frame, DataFrame):
            request = self.requests[stream]
            request.body += frame.data
            request.ended = "END_STREAM" in frame.flags
            if self.credits_at_once and length:
                streams = (0,) if request.ended else (0, stream)
                self.send(*(WindowUpdateFrame(each, window_increment=length) for each in streams))
        elif isinstance(frame, RstStreamFrame):
            self.requests[stream].reset = frame.error_code

    def _apply(self, settings: dict[int, int]) -> None:
        size = settings.get(INITIAL_WINDOW_SIZE)
        if size is not None:
            for request in self.requests.values():
                request.window += size - self.client_settings.get(INITIAL_WINDOW_SIZE, 65535)
        self.client_settings |= settings

    def _head(self, frame: HeadersFrame) -> None:
        assert "END_HEADERS" in frame.flags, "these clients' heads fit in one frame"
        fields = {_text(name): _text(value) for name, value in self._decoder.decode(frame.data, raw=True)}
        request = self.requests.get(frame.stream_id)
        if request is None:
            request = self.requests[frame.stream_id] = Request(frame.stream_id, fields)
            request.window = self.client_settings.get(INITIAL_WINDOW_SIZE, 65535)
            self._begun.append(request)
        else:
            request.trailers = fields
        request.ended = "END_STREAM" in frame.flags

    # Speaking

    def send(self, *frames: Frame) -> None:
        """Any frames, in one write; nothing after :meth:`end`."""
        if self._finished:
            return
        self.connection.send(b"".join(frame.serialize() for frame in frames))

    def raw(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        """A frame of any type and length."""
        self.connection.send(
            struct.pack("!I", len(payload))[1:] + bytes((kind, flags)) + struct.pack("!I", stream) + payload
        )

    def headers(self, stream: int, fields: Fields, *, end: bool = False) -> HeadersFrame:
        """A header section as a frame."""
        return HeadersFrame(stream, self._encoder.encode(fields), flags=["END_HEADERS"] + ["END_STREAM"] * end)

    def answer(
        self, request: Request, body: bytes | None = None, *, status: int = 200, fields: Fields = (), end: bool = True
    ) -> None:
        """A response, as far as the client's windows go in one write; its path is the body by default."""
        body = request.path.encode() if body is None else body
        head = self.headers(request.stream, [(":status", str(status)), *fields], end=end and not body)
        if len(body) <= 16384:
            self.take_window(request, len(body))
            data = [DataFrame(request.stream, body, flags=["END_STREAM"] * end)] * bool(body)
            self.send(head, *data)
        else:
            self.send(head)
            self.body(request, body, end=end)

    def answer_tunnel(self, request: Request) -> None:
        """Say what comes in capitals, until the client ends its half; then end ours."""
        done = 0
        while not request.ended and request.reset is None:
            if self.read() is None:
                return
            piece = bytes(request.body[done:])
            done += len(piece)
            if piece:
                self.body(request, piece.upper(), end=False)
        if request.reset is None:
            self.send(DataFrame(request.stream, b"", flags=["END_STREAM"]))

    def take_window(self, request: Request, size: int) -> None:
        """Read until the windows have room for so much."""
        while min(self.window, request.window) < size and request.reset is None:
            if self.read() is None:
                return
        self.window -= size
        request.window -= size

    def body(self, request: Request, data: bytes, *, end: bool = True) -> None:
        """DATA, in step with the client's windows; stops when the client resets the stream."""
        for start in range(0, len(data), 16384):
            piece = data[start : start + 16384]
            self.take_window(request, len(piece))
            if request.reset is not None:
                return
            last = end and start + 16384 >= len(data)
            self.send(DataFrame(request.stream, piece, flags=["END_STREAM"] * last))

    def end(self) -> None:
        """close_notify (over TLS) and FIN; what the client still says is read."""
        self._finished = True
        self.connection.send_close_notify()
        self.connection.fin()

    def goaway(self, last: int, code: int = NO_ERROR, debug: bytes = b"") -> None:
        """GOAWAY."""
        self.send(GoAwayFrame(0, last_stream_id=last, error_code=code, additional_data=debug))

    def rst(self, stream: int, code: int) -> None:
        """RST_STREAM."""
        self.send(RstStreamFrame(stream, error_code=code))

    def ping(self, data: bytes = b"12345678") -> None:
        """PING."""
        self.send(PingFrame(0, opaque_data=data))

    def settings(self, **values: int) -> None:
        """SETTINGS, by their names in lower case."""
        self.send(SettingsFrame(0, settings={globals()[name.upper()]: value for name, value in values.items()}))

    def continuation(self, stream: int, data: bytes, *flags: str) -> ContinuationFrame:
        """A CONTINUATION frame."""
        return ContinuationFrame(stream, data, flags=list(flags))


Handler = Callable[[Talk, Request], None]


class Http2Server:
    """A script that serves HTTP/2, and remembers all its connections.

    :param handler: called with each request once its head has come; answers at once with the path by default.
    :param settings: our first SETTINGS; a list of them goes connection by connection, the last one for all others.
    :param complete: call the handler only when the body has come too.
    :ivar talks: one for each connection, in the order of their prefaces.
    :ivar served: the paths that handlers were called with, in order, over all connections.
    """

    def __init__(
        self,
        handler: Handler | None = None,
        *,
        settings: dict[int, int] | Sequence[dict[int, int]] | None = None,
        complete: bool = False,
    ) -> None:
        self.talks: list[Talk] = []
        self.served: list[str] = []
        self._handler = handler or (lambda talk, request: talk.answer(request))
        self._settings: Sequence[dict[int, int]] = [settings or {}] if isinstance(settings, dict | None) else settings
        self._complete = complete
        self._lock = threading.Lock()

    def __call__(self, connection: PeerConnection) -> None:
        talk = Talk(connection)
        with self._lock:
            self.talks.append(talk)
            number = len(self.talks) - 1
        talk.greet(self._settings[min(number, len(self._settings) - 1)])
        while (request := talk.read_request()) is not None:
            if self._complete:
                talk.read_body(request)
            with self._lock:
                self.served.append(request.path)
            self._handler(talk, request)

    @property
    def requests(self) -> Iterator[Request]:
        """All requests, of all connections."""
        for talk in self.talks:
            yield from talk.requests.values()

    def talk(self, number: int = 0, timeout: float = 30.0) -> Talk:
        """The connection of that number, once it is there."""
        until = time.monotonic() + timeout
        while len(self.talks) <= number:
            if time.monotonic() > until:
                raise TimeoutError(f"only {len(self.talks)} connections came")
            time.sleep(0.001)  # between two looks, bounded
        return self.talks[number]


def _name(frame: Frame) -> str:
    name = type(frame).__name__.removesuffix("Frame").upper()
    if isinstance(frame, GoAwayFrame):
        return f"GOAWAY {frame.error_code}"
    if isinstance(frame, RstStreamFrame):
        return f"RST_STREAM {frame.stream_id} {frame.error_code}"
    name = {"WINDOWUPDATE": "WINDOW_UPDATE"}.get(name, name)
    if isinstance(frame, SettingsFrame | PingFrame) and "ACK" in frame.flags:
        return f"{name} ACK"
    return f"{name} {frame.stream_id}" if frame.stream_id else name


def _text(value: bytes | str) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
