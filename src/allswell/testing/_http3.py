"""HTTP/3 at an origin, without I/O, by aioquic. GOAWAY is read here, because aioquic has no event for it."""

from __future__ import annotations

from collections.abc import Iterator

from aioquic._buffer import Buffer, BufferReadError  # aioquic.buffer has them, and does not export them
from aioquic.buffer import encode_uint_var
from aioquic.h3.connection import ErrorCode, FrameType, H3Connection, StreamType, encode_frame
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import QuicEvent, StopSendingReceived, StreamDataReceived, StreamReset

from allswell.testing._engine import Body, Complete, GivenUp, Head, Heard, Leaving, Streams
from allswell.testing._script import Response

#: The first unidirectional stream that a server opens: H3Connection makes it its control stream.
_OUR_CONTROL = 3


class Http3:
    """The engine of one connection."""

    version = "HTTP/3"
    last = False  # HTTP/3 has GOAWAY for that

    def __init__(self, quic: QuicConnection) -> None:
        self._quic = quic
        self._h3 = H3Connection(quic)
        self._begun: set[int] = set()
        self._unheard: set[int] = set()  # streams of requests whose head has not come in full
        self._answered: set[int] = set()  # streams whose response has a body that has not ended
        self._uni: dict[int, bytearray] = {}  # the client's unidirectional streams, until their type is known
        self._control: int | None = None

    @property
    def streams(self) -> Streams:
        """This engine has these methods itself."""
        return self

    def receive(self, event: QuicEvent) -> Iterator[Heard]:
        """Take an event of QUIC. Return the events of HTTP/3."""
        if isinstance(event, StreamReset):
            self._unheard.discard(event.stream_id)
            yield GivenUp(event.stream_id, "RESET_STREAM", event.error_code)
        elif isinstance(event, StopSendingReceived):
            yield GivenUp(event.stream_id, "STOP_SENDING", event.error_code)
        elif isinstance(event, StreamDataReceived) and event.stream_id & 3 == 2:
            yield from self._on_unidirectional(event.stream_id, event.data)
        elif isinstance(event, StreamDataReceived) and event.stream_id not in self._begun:
            self._unheard.add(event.stream_id)
        for http in self._h3.handle_event(event):
            if isinstance(http, HeadersReceived):
                if http.stream_id not in self._begun:  # else they are trailers
                    self._begun.add(http.stream_id)
                    self._unheard.discard(http.stream_id)
                    fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in http.headers]
                    pseudo = dict(fields)
                    others = tuple((name, value) for name, value in fields if not name.startswith(":"))
                    yield Head(http.stream_id, pseudo[":method"], pseudo.get(":path", ""), others)
                if http.stream_ended:
                    yield Complete(http.stream_id)
            elif isinstance(http, DataReceived):
                yield Body(http.stream_id, http.data)
                if http.stream_ended:
                    yield Complete(http.stream_id)

    def _on_unidirectional(self, stream: int, data: bytes) -> Iterator[Heard]:
        """Read GOAWAY from the control stream. aioquic drops it without an event."""
        if stream not in self._uni and self._control != stream:
            if data[:1] != encode_uint_var(StreamType.CONTROL):
                self._uni[stream] = bytearray()  # QPACK's, or another type that does not matter here
                return
            self._control, data = stream, data[1:]
        if stream != self._control:
            return
        waiting = self._uni.setdefault(stream, bytearray())
        waiting += data
        buf = Buffer(data=bytes(waiting))
        taken = 0
        try:
            while True:
                kind = buf.pull_uint_var()
                payload = buf.pull_bytes(buf.pull_uint_var())
                taken = buf.tell()
                if kind == FrameType.GOAWAY:
                    yield Leaving(Buffer(data=payload).pull_uint_var(), 0)
        except BufferReadError:
            del waiting[:taken]  # the rest is still to come

    @property
    def unfinished(self) -> str:
        """The beginning of a request."""
        return "a request's head" if self._unheard else ""

    def head(self, stream: int, method: str, response: Response, *, last: bool) -> None:
        """See the base class."""
        fields = [(b":status", str(response.status).encode())]
        fields += [(name.lower().encode(), value.encode("latin-1")) for name, value in response.fields]
        if response.framing == "length" and response.status not in (204, 304):
            fields.append((b"content-length", str(len(response.body)).encode()))
        ends = not response.body or response.bodiless(method)
        self._h3.send_headers(stream, fields, ends)
        if not ends:
            self._answered.add(stream)

    def room(self, stream: int) -> int:
        """Any number: QUIC buffers what it cannot send at once."""
        return 1 << 16

    def body(self, stream: int, data: bytes) -> None:
        """See the base class."""
        self._h3.send_data(stream, data, end_stream=False)

    def finish(self, stream: int) -> None:
        """See the base class."""
        if stream in self._answered:
            self._answered.remove(stream)
            self._h3.send_data(stream, b"", end_stream=True)

    def done(self, stream: int) -> Iterator[Heard]:
        """The exchange is over."""
        return iter(())

    def refuse(self, stream: int) -> None:
        """Send RESET_STREAM(H3_REQUEST_REJECTED)."""
        self._quic.reset_stream(stream, ErrorCode.H3_REQUEST_REJECTED)

    def reset(self, stream: int) -> None:
        """Send RESET_STREAM(H3_INTERNAL_ERROR)."""
        self._quic.reset_stream(stream, ErrorCode.H3_INTERNAL_ERROR)

    def goaway(self, last: int) -> None:
        """Send GOAWAY with the first stream that is not executed (RFC 9114, section 5.2)."""
        frame = encode_frame(FrameType.GOAWAY, encode_uint_var(max(0, last + 4)))
        self._quic.send_stream_data(_OUR_CONTROL, frame)
