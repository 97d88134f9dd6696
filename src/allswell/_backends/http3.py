"""HTTP/3 (RFC 9114) on a QUIC connection: a backend whose input is QUIC's events and whose output is QUIC's streams.

Theory of operation. The framing is ours and not aioquic's (``aioquic.h3``), for four reasons, measured or read: it
drops GOAWAY, it takes a malformed response for the end of the connection (RFC 9114 §4.1.2: of the stream), its buffers
grow by what a peer sends, and it looks at every byte of every field in a loop of Python's. QPACK is ls-qpack's.

The dynamic table of QPACK is used for requests (which repeat their fields), not for responses (we announce a capacity
of 0): a reference into it is a byte that can stand for 4 KiB, so a small header section could fill our memory; and
without it no response ever waits for another stream. RFC 9204 §3.2.3, §4.2 leave that choice to the decoder.

Credit. Every byte of a stream uses its window and the connection's. Framing is credited as it is parsed, a body when
the application says ``consumed``, and what nobody will read any more (a cancelled exchange) at once.

A request that may not go yet waits here, *held*, with its stream's number taken: one that is not safe while there is
only 0-RTT (RFC 8470 §4), and an extended CONNECT until the server's settings say that it may (RFC 9220 §3).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from pylsqpack import Decoder, DecoderStreamError, DecompressionFailed, EncoderStreamError, StreamBlocked

from allswell._backends import http3_frames as h3
from allswell._backends.announcements import ORIGIN, named_origins
from allswell._backends.http3_exchange import Http3Exchange
from allswell._backends.http3_frames import ControlReader, FrameReader, H3Error, Malformed
from allswell._backends.http3_qpack import SectionEncoder
from allswell._backends.interface import (
    WORK,
    BackPressure,
    BodyReceived,
    CapacityChanged,
    ConnectionBroken,
    DatagramReceived,
    Event,
    ExchangeFailed,
    InformationalReceived,
    PeerLeaving,
    ResponseCompleted,
    ResponseReceived,
    SendWindowOpened,
    SilenceChanged,
    UploadRefused,
)
from allswell._errors import (
    AllswellError,
    LocalProtocolError,
    NotProcessed,
    RemoteProtocolError,
    TransportError,
)
from allswell._fields import (
    MalformedSection,
    RequestSection,
    RequestSections,
    SectionTooLarge,
    as_pair,
    received_section,
    request_trailers,
    response_section,
    section_size,
    trailer_section,
)
from allswell._halves import RECEIVE_FAILED, SEND_ENDED, LengthError
from allswell._messages import SAFE_METHODS, Field, Headers, RequestHead, ResponseHead
from allswell._quic import varint
from allswell._quic.interface import (
    ConnectionTerminated,
    DatagramFrameReceived,
    End,
    HandshakeCompleted,
    Multiplexer,
    QuicEvent,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
    why_ended,
)

#: Bytes of one request's body that may wait here to be sent a first time; and how many must be free to go on.
_SEND_BUFFER, _SEND_RESUME = 256 * 1024, 64 * 1024
#: Frames of an exchange, and bytes of another stream, that are looked into in one call.
_MOST_FRAMES, _SLICE = 1024, 16 * 1024
#: What the encoder may keep of our requests' fields, where the peer allows as much.
_ENCODER_TABLE = 4096
#: Bytes of the largest frame on a control stream.
_CONTROL_LIMIT = 16 * 1024
#: RFC 9000 §2.1: the two low bits of a stream's number.
_KIND, _OURS_BOTH_WAYS, _THEIRS_ONE_WAY = 0b11, 0b00, 0b11


@dataclass(slots=True)
class _Frames:
    """Frames of one stream that came together.

    :ivar framing: bytes of them that nobody will consume: headers, and what is skipped.
    :ivar end: the stream ends with them.
    """

    stream_id: int
    state: Http3Exchange
    frames: deque[tuple[int, bytes]]
    framing: int
    end: bool


class Http3:
    """HTTP/3 on one connection.

    :param quic: the connection; its handshake is complete, or 0-RTT is possible.
    :param max_header_size: bytes of a header section that are accepted, compressed and not.
    :param alternative: an origin, and which alternative service of its this is; both as authorities.
    """

    name = "h3"
    http_version = "HTTP/3"
    in_order = False
    back_pressure = BackPressure.CREDIT
    kept_idle = math.inf
    must_abort = False

    def __init__(
        self, quic: Multiplexer, *, max_header_size: int = 100 * 1024, alternative: tuple[bytes, bytes] | None = None
    ) -> None:
        self.says_goodbye = "GOAWAY"
        self._quic = quic
        self._limit = max_header_size
        self._exchanges: dict[int, Http3Exchange] = {}
        self._unread: dict[int, int] = {}
        self._blocked: set[int] = set()
        self._input: deque[QuicEvent | _Frames] = deque()  # not acted on yet
        self._work = 0  # steps that are left to this call
        self._held: list[int] = []
        self._events: list[Event] = []
        self._max_streams = self._side_by_side = quic.max_streams
        self._silent = False
        self._leaving = False  # we said GOAWAY
        self._goaway: int | None = None  # the peer did
        self._over = False
        self._decoder = Decoder(0, 0)
        self._encoder = SectionEncoder()
        self._alternative = alternative
        self._requests = RequestSections(as_pair, end_to_end=True)
        self._settings: dict[int, int] | None = None
        self._control = ControlReader(_CONTROL_LIMIT)
        self._critical: dict[int, int] = {}  # the peer's control and QPACK streams, by their types
        self._untyped: dict[int, bytes] = {}  # the peer's other unidirectional streams: the beginnings of their types
        self._encoder_stream: int | None = None
        ours = {h3.MAX_FIELD_SECTION_SIZE: max_header_size} | ({h3.H3_DATAGRAM: 1} if quic.datagrams else {})
        self._control_stream = quic.get_next_available_stream_id(is_unidirectional=True)
        quic.send_stream_data(self._control_stream, varint.encode(h3.CONTROL_STREAM) + h3.settings(ours))
        # There are no pushes without MAX_PUSH_ID (RFC 9114 §7.2.7), and no decoder stream without a dynamic table.

    # Requests

    def open(self, head: RequestHead, *, end: bool) -> int:
        quic = self._quic
        if self.capacity() <= 0:
            full = TransportError("the connection takes no more requests", operation="write", by="peer")
            raise NotProcessed(full, proven=True)
        request = self._requests.section(head, end=end)
        fields = request.pseudo_fields + request.fields + self._alt_used(request)
        settings = self._settings
        if settings is not None:
            if head.protocol is not None and not settings.get(h3.ENABLE_CONNECT_PROTOCOL):
                raise LocalProtocolError("the server does not support extended CONNECT (RFC 9220)")
            limit = settings.get(h3.MAX_FIELD_SECTION_SIZE)
            if limit is not None and section_size(fields) > limit:
                raise LocalProtocolError(f"the server accepts header sections of {limit} bytes only")  # RFC 9114 §4.2.2
        end = end and head.method != b"CONNECT"  # RFC 9114 §4.4: what follows is the tunnel's
        early = not quic.handshake_complete
        stream_id = quic.get_next_available_stream_id()
        reader = FrameReader(h3.NOT_ON_REQUEST, self._limit)
        exchange = Http3Exchange(head, reader, end=end, owed=request.content_length, with_early_data=early)
        self._exchanges[stream_id] = exchange
        if (early and head.method not in SAFE_METHODS) or (head.protocol is not None and settings is None):
            exchange.held = fields
            exchange.with_early_data = False
            self._held.append(stream_id)
            quic.send_stream_data(stream_id, b"")  # takes the number
        else:
            self._send_fields(stream_id, fields, end)
        return stream_id

    def _alt_used(self, request: RequestSection[Field]) -> Headers:
        """What goes to an alternative service names it: Alt-Used (RFC 7838 §5)."""
        if self._alternative is None:
            return []
        origin, used = self._alternative
        if request.authority != origin or any(name == b"alt-used" for name, _ in request.fields):
            return []  # it is of another origin, that shares this connection; or its caller knows better
        return [(b"alt-used", used)]

    def send_body(self, exchange: int, data: bytes, *, end: bool, trailers: Headers | None = None) -> None:
        state = self._exchanges.get(exchange)
        if state is None or not state.sending.open:
            return
        last: Headers = []
        if trailers:
            last = [(name.lower(), value) for name, value in request_trailers(trailers)]
        try:
            state.sending.count(len(data), end=end)
        except LengthError:
            raise LocalProtocolError("the body is not as long as its Content-Length says") from None
        if state.held is not None:
            state.waiting.append((data, end, last))
        else:
            self._send_piece(exchange, data, end, last)
        if end:
            state.sending.move(SEND_ENDED)
            if state.over:
                del self._exchanges[exchange]

    def _send_piece(self, stream_id: int, data: bytes, end: bool, trailers: Headers) -> None:
        if data:
            self._quic.send_stream_data(stream_id, varint.encode(h3.DATA) + varint.encode(len(data)))
            self._quic.send_stream_data(stream_id, data, end and not trailers)
        elif end and not trailers:
            self._quic.send_stream_data(stream_id, b"", True)
        if trailers:
            self._send_fields(stream_id, trailers, True)

    def send_window(self, exchange: int) -> int:
        state = self._exchanges.get(exchange)
        if state is None or not state.sending.open:
            return 0
        window = self._room(exchange) - _waiting(state)
        if window <= 0:
            self._blocked.add(exchange)
            return 0
        return window

    def unsent(self, exchange: int) -> int:
        state = self._exchanges.get(exchange)
        return 0 if state is None else self._quic.unsent(exchange) + _waiting(state)

    def _room(self, stream_id: int) -> int:
        """Bytes that may yet be kept to be sent a first time. Datagrams wait in one line, so they count for all."""
        return _SEND_BUFFER - self._quic.unsent(stream_id) - self._quic.unsent_datagrams

    def datagram_room(self, exchange: int) -> int:
        if exchange not in self._exchanges or not (self._settings or {}).get(h3.H3_DATAGRAM):
            return 0
        return max(0, self._quic.largest_datagram - len(varint.encode(exchange // 4)))

    def send_datagram(self, exchange: int, payload: bytes) -> None:
        if len(payload) <= self.datagram_room(exchange):
            self._quic.send_datagram_frame(varint.encode(exchange // 4) + payload)

    def _send_fields(self, stream_id: int, fields: Headers, end: bool) -> None:
        instructions, section = self._encoder.encode(stream_id, fields)
        self._instruct(instructions)
        self._quic.send_stream_data(stream_id, h3.frame(h3.HEADERS, section), end)

    def _instruct(self, instructions: bytes) -> None:
        if not instructions:
            return
        if self._encoder_stream is None:
            self._encoder_stream = self._quic.get_next_available_stream_id(is_unidirectional=True)
            instructions = varint.encode(h3.ENCODER_STREAM) + instructions
        self._quic.send_stream_data(self._encoder_stream, instructions)

    def _release(self, stream_id: int, state: Http3Exchange) -> None:
        """Send a request that was held."""
        fields, state.held = state.held, None
        assert fields is not None
        self._held.remove(stream_id)
        self._send_fields(stream_id, fields, not state.sending.open and not state.waiting)
        for data, end, trailers in state.waiting:
            self._send_piece(stream_id, data, end, trailers)
        state.waiting.clear()

    def _release_held(self) -> None:
        for stream_id in self._held[:]:
            state = self._exchanges[stream_id]
            if not self._quic.handshake_complete and state.head.method not in SAFE_METHODS:
                continue
            if state.head.protocol is None:
                self._release(stream_id, state)
            elif self._settings is not None:
                if self._settings.get(h3.ENABLE_CONNECT_PROTOCOL):
                    self._release(stream_id, state)
                else:
                    error = LocalProtocolError("the server does not support extended CONNECT (RFC 9220)")
                    self._fail(stream_id, error, h3.H3_REQUEST_CANCELLED)

    # Flow control, and the ends of exchanges

    def consumed(self, exchange: int, credit: int) -> None:
        unread = self._unread.get(exchange, 0)
        if credit >= unread:
            credit = unread
            self._unread.pop(exchange, None)
        else:
            self._unread[exchange] = unread - credit
        if credit:
            self._credit(exchange, self._exchanges.get(exchange), credit)

    def _credit(self, stream_id: int, state: Http3Exchange | None, size: int) -> None:
        self._quic.credit(size)
        if state is not None and not state.receiving.over:
            state.freed += size
            if state.freed >= self._quic.stream_window >> 2:
                self._quic.credit_stream(stream_id, state.freed)
                state.freed = 0

    def stop(self, exchange: int) -> None:
        state = self._exchanges.pop(exchange, None)
        if state is not None and state.sending.open:
            self._blocked.discard(exchange)
            self._quic.reset_stream(exchange, h3.H3_NO_ERROR)

    def reprioritize(self, exchange: int, priority: bytes) -> None:
        state = self._exchanges.get(exchange)
        if state is not None and not state.receiving.over and not self.exhausted:
            payload = varint.encode(exchange) + priority
            self._quic.send_stream_data(self._control_stream, h3.frame(h3.PRIORITY_UPDATE, payload))

    def cancel(self, exchange: int) -> None:
        if exchange in self._exchanges:
            self._drop(exchange, h3.H3_REQUEST_CANCELLED)
        else:
            self.consumed(exchange, self._unread.get(exchange, 0))

    def _drop(self, stream_id: int, code: int) -> None:
        """Forget an exchange, and end both halves of its stream as far as they are open (RFC 9114 §4.1.1)."""
        state = self._exchanges.pop(stream_id)
        self._blocked.discard(stream_id)
        if state.held is not None:
            self._held.remove(stream_id)
        self.consumed(stream_id, self._unread.get(stream_id, 0))
        if not state.receiving.over:
            self._quic.stop_stream(stream_id, code)
        if not state.over:
            self._quic.reset_stream(stream_id, code)

    def _fail(self, stream_id: int, error: AllswellError, code: int) -> None:
        self._drop(stream_id, code)
        self._events.append(ExchangeFailed(stream_id, error))

    # The connection

    def capacity(self) -> int:
        return 0 if self.exhausted or self._quic.silent else self._quic.streams_left

    @property
    def capacity_expected(self) -> bool:
        quiet = self.exhausted or self._quic.silent
        return not quiet and self.capacity() <= 0 and len(self._exchanges) < max(1, self._side_by_side)

    @property
    def exhausted(self) -> bool:
        return self._over or self._leaving or self._goaway is not None

    def goodbye(self) -> None:
        """GOAWAY (RFC 9114 §5.2). A client's names a push, of which there were none."""
        if not self._leaving and not self._over:
            self._leaving = True
            self._quic.send_stream_data(self._control_stream, h3.frame(h3.GOAWAY, varint.encode(0)))

    def ping(self) -> bool:
        self._quic.send_ping(0)
        return True

    def take_output(self) -> bytes:
        return b""

    def receive_eof(self, why: AllswellError | None) -> list[Event]:
        self._lost(why or TransportError("the QUIC connection is gone", operation="read"))
        return self._take_events()

    @property
    def unfinished(self) -> bool:
        return bool(self._input)

    def receive(self, data: Sequence[QuicEvent]) -> list[Event]:
        self._input.extend(data)
        return self.go_on()

    def go_on(self) -> list[Event]:
        self._work = WORK
        try:
            while self._input and self._work > 0:
                self._work -= 1
                self._on_input(self._input.popleft())
        except H3Error as error:
            self._input.clear()
            self._break(error)
        if self._blocked:
            self._resume_blocked()
        if self._quic.silent != self._silent:
            self._silent = not self._silent
            self._events.append(SilenceChanged(self._silent))
        if self._quic.max_streams != self._max_streams:
            self._max_streams = self._quic.max_streams
            self._events.append(CapacityChanged())
        return self._take_events()

    def _on_input(self, event: QuicEvent | _Frames) -> None:
        if isinstance(event, StreamDataReceived):
            stream_id = event.stream_id
            state = self._exchanges.get(stream_id)
            if state is not None:
                self._on_data(stream_id, state, event.data, event.end_stream)
            elif not self._over:
                if len(event.data) > _SLICE:
                    self._work = 0
                    self._input.appendleft(StreamDataReceived(stream_id, event.data[_SLICE:], event.end_stream))
                    event = StreamDataReceived(stream_id, event.data[:_SLICE], False)
                self._on_other_data(stream_id, event.data, event.end_stream)
        elif isinstance(event, _Frames):
            self._on_frames(event)
        elif isinstance(event, StreamReset):
            self._on_reset(event.stream_id, event.error_code)
        elif isinstance(event, StopSendingReceived):
            self._on_stop_sending(event.stream_id, event.error_code)
        elif isinstance(event, HandshakeCompleted):
            self._release_held()
        elif isinstance(event, DatagramFrameReceived):
            self._on_datagram(event.data)
        elif isinstance(event, ConnectionTerminated):
            self._on_terminated(event.end)

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _resume_blocked(self) -> None:
        for stream_id in list(self._blocked):
            state = self._exchanges.get(stream_id)
            if state is None or not state.sending.open:
                self._blocked.discard(stream_id)
            elif state.held is None and self._room(stream_id) >= _SEND_RESUME:
                self._blocked.discard(stream_id)
                self._events.append(SendWindowOpened(stream_id))

    # Responses

    def _on_data(self, stream_id: int, state: Http3Exchange, data: bytes, end: bool) -> None:
        try:
            if state.held is not None:
                raise Malformed("a response to a request that was not sent")
            frames = state.reader.feed(data, _MOST_FRAMES)
        except Malformed as error:
            self._fail(stream_id, RemoteProtocolError(str(error), reach="exchange"), error.code)
            self._credit(stream_id, self._exchanges.get(stream_id), len(data))
            return
        rest = state.reader.rest
        if rest:
            self._input.appendleft(StreamDataReceived(stream_id, rest, end))
            end = False
        self._on_frames(_Frames(stream_id, state, deque(frames), len(data) - len(rest), end))
        if rest:
            self._work = 0

    def _on_frames(self, left: _Frames) -> None:
        stream_id, state, frames = left.stream_id, left.state, left.frames
        try:
            while frames and self._exchanges.get(stream_id) is state:  # (or it has failed, or is to be sent again)
                if self._work <= 0:
                    self._input.appendleft(left)
                    return
                self._work -= 1
                kind, payload = frames.popleft()
                if kind == h3.DATA:
                    self._on_body(stream_id, state, payload)
                    left.framing -= len(payload)
                elif kind == h3.HEADERS:
                    self._on_fields(stream_id, state, payload)
                else:
                    raise H3Error(h3.H3_ID_ERROR, "a push that was never allowed")  # RFC 9114 §7.2.5
            if left.end and self._exchanges.get(stream_id) is state:
                self._on_end(stream_id, state)
        except Malformed as error:
            self._fail(stream_id, RemoteProtocolError(str(error), reach="exchange"), error.code)
        if left.framing:
            self._credit(stream_id, self._exchanges.get(stream_id), left.framing)

    def _on_body(self, stream_id: int, state: Http3Exchange, data: bytes) -> None:
        if not state.receiving.answered or state.trailers is not None:
            raise H3Error(h3.H3_FRAME_UNEXPECTED, "DATA outside of a body")  # RFC 9114 §4.1
        if not data:
            return
        size = len(data)
        try:
            state.receiving.count(size)
        except LengthError:
            raise Malformed("more body than Content-Length says") from None
        self._unread[stream_id] = self._unread.get(stream_id, 0) + size
        self._events.append(BodyReceived(stream_id, data, size))

    def _on_fields(self, stream_id: int, state: Http3Exchange, section: bytes) -> None:
        if state.trailers is not None or state.receiving.tunnel:
            raise H3Error(h3.H3_FRAME_UNEXPECTED, "HEADERS after the trailer section")
        try:
            _, fields = self._decoder.feed_header(stream_id, section)
        except (DecompressionFailed, StreamBlocked) as error:
            raise H3Error(h3.QPACK_DECOMPRESSION_FAILED, "a header section that QPACK cannot decode") from error
        try:
            fields = received_section(fields, self._limit)
            state.touched = True
            if state.receiving.answered:
                state.trailers = trailer_section(fields)
                return
            status, fields, content = response_section(fields, state.head.method)
        except SectionTooLarge as error:
            raise Malformed(str(error), h3.H3_EXCESSIVE_LOAD) from None
        except MalformedSection as error:
            raise Malformed(str(error)) from None
        head = ResponseHead(status, fields, b"HTTP/3")
        if status < 200:
            self._events.append(InformationalReceived(stream_id, head))
            return
        if status == 425 and state.with_early_data:
            # RFC 8470 §5.2: not processed; to be sent again, not as early data.
            refused = RemoteProtocolError("425 Too Early", reach="exchange")
            self._fail(stream_id, NotProcessed(refused, proven=True), h3.H3_REQUEST_CANCELLED)
            return
        state.receiving.begin(status, content)
        self._events.append(ResponseReceived(stream_id, head, state.receiving.tunnel))

    def _on_end(self, stream_id: int, state: Http3Exchange) -> None:
        if not state.reader.between_frames:
            raise H3Error(h3.H3_FRAME_ERROR, "the stream ends within a frame")  # RFC 9114 §7.1
        if not state.receiving.answered:
            raise Malformed("the stream ends before a response")
        try:
            state.receiving.end()
        except LengthError:
            raise Malformed("less body than Content-Length says") from None
        self._events.append(ResponseCompleted(stream_id, state.trailers or []))
        if state.over:
            del self._exchanges[stream_id]

    def _on_reset(self, stream_id: int, code: int) -> None:
        if stream_id in self._critical:
            raise H3Error(h3.H3_CLOSED_CRITICAL_STREAM, "a control or QPACK stream was reset")
        self._untyped.pop(stream_id, None)
        state = self._exchanges.get(stream_id)
        if state is None or state.receiving.over:
            return  # RFC 9000 §3.2: behind the end of its half a reset says nothing
        if not h3.is_error(code) and state.whole:
            # RFC 9114 §4.1 has the stream ended. But all of the content has come, and the server names no error.
            self._on_end(stream_id, state)
        else:
            error = state.reset_error(code)
            state.receiving.move(RECEIVE_FAILED)
            self._fail(stream_id, error, h3.H3_REQUEST_CANCELLED)

    def _on_stop_sending(self, stream_id: int, code: int) -> None:
        if stream_id in (self._control_stream, self._encoder_stream):
            raise H3Error(h3.H3_CLOSED_CRITICAL_STREAM, "the peer stopped a control or QPACK stream")
        state = self._exchanges.get(stream_id)
        if state is None:
            return
        if state.held is not None:
            state.sending.stop("peer")  # QUIC has reset our half by itself (RFC 9000 §3.5)
            self._fail(stream_id, state.reset_error(code), h3.H3_REQUEST_CANCELLED)
        elif state.sending.stop("peer"):
            # Whatever the code says, the response does not need the rest of the request: RFC 9114 §4.1, "Clients MUST
            # NOT discard complete responses as a result of having their request terminated abruptly".
            self._events.append(UploadRefused(stream_id))
            if state.over:
                del self._exchanges[stream_id]

    def _on_datagram(self, data: bytes) -> None:
        try:
            quarter, position = varint.decode(data, 0)
        except IndexError:
            quarter = _NO_QUARTER
        if quarter >= _NO_QUARTER:
            raise H3Error(h3.H3_DATAGRAM_ERROR, "a datagram without its stream")  # RFC 9297 §2.1
        if quarter * 4 in self._exchanges:
            self._events.append(DatagramReceived(quarter * 4, data[position:]))

    # The peer's unidirectional streams

    def _on_other_data(self, stream_id: int, data: bytes, end: bool) -> None:
        self._quic.credit(len(data))
        if stream_id & _KIND == _OURS_BOTH_WAYS:
            return  # of an exchange that is over
        if stream_id & _KIND != _THEIRS_ONE_WAY:
            raise H3Error(h3.H3_STREAM_CREATION_ERROR, "a stream both ways from the server")  # RFC 9114 §6.1
        kind = self._critical.get(stream_id)
        if kind is None:
            before = self._untyped.pop(stream_id, b"")
            data = before + data
            try:
                kind, position = varint.decode(data, 0)
            except IndexError:
                if not end:
                    self._untyped[stream_id] = data
                return
            data = data[position:]
            if kind == h3.PUSH_STREAM:
                raise H3Error(h3.H3_ID_ERROR, "a push that was never allowed")  # RFC 9114 §4.6
            if kind not in (h3.CONTROL_STREAM, h3.ENCODER_STREAM, h3.DECODER_STREAM):
                if not end:
                    # RFC 9114 §6.2.3: unknown is fine. What still comes is credited, and must not be read as a type.
                    if before != _UNKNOWN:
                        self._quic.stop_stream(stream_id, h3.H3_STREAM_CREATION_ERROR)
                    self._untyped[stream_id] = _UNKNOWN
                return
            if kind in self._critical.values():
                raise H3Error(h3.H3_STREAM_CREATION_ERROR, "a second control or QPACK stream")  # RFC 9114 §6.2.1
            self._critical[stream_id] = kind
        self._quic.credit_stream(stream_id, len(data))
        if kind == h3.CONTROL_STREAM:
            self._on_control(data)
        elif data:
            self._on_qpack(kind, data)
        if end:
            raise H3Error(h3.H3_CLOSED_CRITICAL_STREAM, "a control or QPACK stream was closed")

    def _on_qpack(self, kind: int, data: bytes) -> None:
        try:
            if kind == h3.ENCODER_STREAM:
                self._decoder.feed_encoder(data)
            else:
                self._encoder.feed_decoder(data)
        except EncoderStreamError as error:
            raise H3Error(h3.QPACK_ENCODER_STREAM_ERROR, "QPACK instructions that make no sense") from error
        except DecoderStreamError as error:
            raise H3Error(h3.QPACK_DECODER_STREAM_ERROR, "QPACK instructions that make no sense") from error

    def _on_control(self, data: bytes) -> None:
        try:
            frames = self._control.feed(data)
        except Malformed as error:
            raise H3Error(error.code, str(error)) from error
        for kind, payload in frames:
            if self._settings is None:
                if kind != h3.SETTINGS:
                    raise H3Error(h3.H3_MISSING_SETTINGS, "the control stream does not begin with SETTINGS")
                self._on_settings(h3.parse_settings(payload))
            elif kind == h3.SETTINGS:
                raise H3Error(h3.H3_FRAME_UNEXPECTED, "SETTINGS came twice")  # RFC 9114 §7.2.4
            elif kind == h3.GOAWAY:
                self._on_goaway(h3.one_varint(payload, "GOAWAY"))
            elif kind == ORIGIN:
                self._on_origin(payload)
            else:
                raise H3Error(h3.H3_ID_ERROR, "CANCEL_PUSH for a push that was never allowed")  # RFC 9114 §7.2.3

    def _on_settings(self, settings: dict[int, int]) -> None:
        self._settings = settings
        table = min(settings.get(h3.QPACK_MAX_TABLE_CAPACITY, 0), _ENCODER_TABLE)
        instructions = self._encoder.apply_settings(table, settings.get(h3.QPACK_BLOCKED_STREAMS, 0))
        self._instruct(instructions)
        self._release_held()

    def _on_goaway(self, first_refused: int) -> None:
        """RFC 9114 §5.2: requests from this stream on were not and will not be processed."""
        if first_refused & _KIND != _OURS_BOTH_WAYS:
            raise H3Error(h3.H3_ID_ERROR, "GOAWAY names what is no request")
        if self._goaway is not None and first_refused > self._goaway:
            raise H3Error(h3.H3_ID_ERROR, "GOAWAY takes back what it said")
        if self._goaway is None:
            self._events.append(PeerLeaving())
        self._goaway = first_refused
        for stream_id in [stream_id for stream_id in self._exchanges if stream_id >= first_refused]:
            cause = TransportError("the server is leaving (GOAWAY)", operation="write", by="peer")
            self._fail(stream_id, self._exchanges[stream_id].not_processed(cause), h3.H3_REQUEST_CANCELLED)

    def _on_origin(self, payload: bytes) -> None:
        try:
            self._events.append(named_origins(payload))
        except ValueError as error:
            raise H3Error(h3.H3_FRAME_ERROR, str(error)) from error  # RFC 9114 §7.1

    # The end

    def _break(self, error: H3Error) -> None:
        """The peer broke the protocol: QUIC is closed with the code (RFC 9114 §8)."""
        if not self._over:
            self._quic.close(error_code=error.code, reason_phrase=error.reason)
            broken = RemoteProtocolError(f"the server broke HTTP/3: {error.reason}")
            self._lost(broken)
            self._events.append(ConnectionBroken(broken))

    def _on_terminated(self, end: End) -> None:
        if self._over:
            return
        self.says_goodbye = ""  # nobody would hear it
        error = why_ended(end, "the server closed the connection")
        self._lost(error)
        # An orderly end is one that RFC 9000 §10.1 or §10.2 knows and that names no error.
        if end.by == "network" or (end.by == "peer" and end.code in (0, h3.H3_NO_ERROR)):
            self._events.append(PeerLeaving())
        else:
            self._events.append(ConnectionBroken(error))

    def _lost(self, error: AllswellError) -> None:
        self._over = True
        for stream_id, state in self._exchanges.items():
            # Likely it crossed with the peer's goodbye: an idempotent request may go again (RFC 9110 §9.2.2).
            replay = not state.touched and not isinstance(error, RemoteProtocolError)
            failure = NotProcessed(error, proven=state.held is not None) if replay else error
            self._events.append(ExchangeFailed(stream_id, failure))
        self._exchanges.clear()
        self._unread.clear()
        self._blocked.clear()
        self._held.clear()


#: Stands for the type of a stream that nobody knows: a reserved one (RFC 9114 §6.2.3), whatever follows it.
_UNKNOWN = bytes.fromhex("c000000000000021")
#: No quarter of a stream id is so large (RFC 9297 §2.1).
_NO_QUARTER = 1 << 60


def _waiting(state: Http3Exchange) -> int:
    return sum(len(data) for data, _, _ in state.waiting)
