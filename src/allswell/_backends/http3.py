"""HTTP/3 (RFC 9114) on a QUIC connection: a backend whose input is QUIC's events and whose output is QUIC's streams.

Theory of operation. This file has the exchanges and what becomes of them. The streams that belong to no exchange are
in `http3_control.py`, header sections in `http3_qpack.py`, frames in `http3_frames.py`.

We do not use ``aioquic.h3``, for four reasons. It drops GOAWAY. It ends the connection for a malformed response, where
RFC 9114 §4.1.2 has the stream end. A peer can make its buffers grow. And it looks at every byte of every field in a
Python loop.

*Credit.* Every byte of a stream uses its window and the connection's. Framing is credited as it is parsed, content when
the application has consumed it. What nobody will read any more (of a cancelled exchange) is credited at once.

*Held requests.* A request that may not go yet waits here, and its stream's number is taken already. While there is only
0-RTT this is so for methods that are not safe (RFC 8470 §4). For extended CONNECT it is so until the server's settings
allow it (RFC 9220 §3).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from allswell._backends import http3_frames as h3
from allswell._backends.announcements import named_origins
from allswell._backends.http3_control import Control, PeerStreams, is_request
from allswell._backends.http3_exchange import Held, Http3Exchange
from allswell._backends.http3_frames import FrameReader, H3Error, Malformed
from allswell._backends.http3_qpack import Qpack
from allswell._backends.http3_room import BodyRoom, RequestRoom
from allswell._backends.interface import (
    WORK,
    BackPressure,
    BodyReceived,
    ConnectionBroken,
    DatagramReceived,
    Event,
    ExchangeFailed,
    InformationalReceived,
    PeerLeaving,
    ResponseCompleted,
    ResponseReceived,
    SendWindowOpened,
    UploadRefused,
)
from allswell._backends.unread import Unread
from allswell._errors import (
    AllswellError,
    LocalProtocolError,
    NotOffered,
    NotProcessed,
    RemoteProtocolError,
    TransportError,
)
from allswell._fields import (
    MalformedSection,
    ReceivedSections,
    RequestSection,
    RequestSections,
    SectionTooLarge,
    as_pair,
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

#: How many frames of an exchange, and bytes of another stream, are parsed in one go.
_MOST_FRAMES, _SLICE = 1024, 16 * 1024
#: A quarter of a stream's number is smaller than this (RFC 9297 §2.1).
_NO_QUARTER = 1 << 60
_NO_EXTENDED_CONNECT = "the server does not support extended CONNECT (RFC 9220)"


@dataclass(slots=True)
class _Frames:
    """Frames of one exchange that came together.

    :ivar framing: how many of their bytes nobody will consume: all but the content of DATA.
    :ivar end: the stream ends with them.
    """

    stream_id: int
    state: Http3Exchange
    frames: list[tuple[int, bytes]]
    framing: int
    end: bool


class Http3:
    """HTTP/3 on one connection.

    :param quic: the connection. Its handshake is complete, or 0-RTT is possible.
    :param max_header_size: bytes of a header section that are accepted, compressed and not.
    :param alternative: if this is an alternative service: its origin, and the service; both as authorities.
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
        self._alternative = alternative
        self._requests = RequestSections(as_pair, end_to_end=True)
        self._sections = ReceivedSections()
        self._qpack = Qpack(quic)
        self._exchanges: dict[int, Http3Exchange] = {}
        self._unread = Unread()
        self._request_room = RequestRoom(quic)
        self._body_room = BodyRoom(quic)
        self._peer_streams = PeerStreams(quic)
        settings = {h3.MAX_FIELD_SECTION_SIZE: max_header_size} | ({h3.H3_DATAGRAM: 1} if quic.datagrams else {})
        self._control = Control(quic, settings)
        self._input: deque[QuicEvent | _Frames] = deque()  # not acted on yet
        self._work = 0  # how many steps this call may still take
        self._events: list[Event] = []
        self._over = False
        self.exhausted = False  # that, or one of the two sides has said GOAWAY

    # Requests

    def open(self, head: RequestHead, *, end: bool) -> int:
        quic = self._quic
        if self.capacity() <= 0:
            full = TransportError("the connection takes no more requests", operation="write", by="peer")
            raise NotProcessed(full, proven=True)
        request = self._requests.section(head, end=end)
        fields = request.pseudo_fields + request.fields
        if self._alternative is not None:
            fields += self._alt_used(request, *self._alternative)
        control = self._control
        if head.protocol is not None and control.greeted and not control.takes_extended_connect:
            raise NotOffered(_NO_EXTENDED_CONNECT)
        limit = control.section_limit
        if limit is not None and section_size(fields) > limit:
            told = f"the server accepts header sections of at most {limit} bytes, and this is larger"
            raise LocalProtocolError(told)  # RFC 9114 §4.2.2
        end = end and head.method != b"CONNECT"  # RFC 9114 §4.4: the stream of a CONNECT ends with its tunnel
        early = not quic.handshake_complete
        stream_id = quic.get_next_available_stream_id()
        reader = FrameReader(h3.NOT_ON_REQUEST, self._limit)
        exchange = Http3Exchange(head, reader, end=end, owed=request.content_length, with_early_data=early)
        self._exchanges[stream_id] = exchange
        if (early and head.method not in SAFE_METHODS) or (head.protocol is not None and not control.greeted):
            exchange.held = Held(fields)
            exchange.with_early_data = False
            quic.send_stream_data(stream_id, b"")  # it sends nothing, and takes the stream's number
        else:
            self._qpack.send(stream_id, fields, end)
        return stream_id

    def _alt_used(self, request: RequestSection[Field], origin: bytes, used: bytes) -> Headers:
        """The Alt-Used field: a request to an alternative service names it (RFC 7838 §5)."""
        if request.authority != origin or any(name == b"alt-used" for name, _ in request.fields):
            return []  # it is for another origin that shares this connection, or the caller has set the field
        return [(b"alt-used", used)]

    def send_body(self, exchange: int, data: bytes | memoryview, *, end: bool, trailers: Headers | None = None) -> None:
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
        if isinstance(data, memoryview):
            data = data.tobytes()  # it is joined with its frame's header
        if state.held is not None:
            state.held.add(data, end, last)
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
            self._qpack.send(stream_id, trailers, True)

    def send_window(self, exchange: int) -> int:
        state = self._exchanges.get(exchange)
        if state is None or not state.sending.open:
            return 0
        window = self._body_room.left(exchange) - _held_size(state)
        if window <= 0:
            self._body_room.blocked.add(exchange)
            return 0
        return window

    def unsent(self, exchange: int) -> int:
        state = self._exchanges.get(exchange)
        return 0 if state is None else self._quic.unsent(exchange) + _held_size(state)

    def datagram_room(self, exchange: int) -> int:
        if exchange not in self._exchanges or not (self._control.takes_datagrams and self._quic.datagrams):
            return 0  # RFC 9297 §2.1.1: both sides must allow datagrams
        return max(0, self._quic.largest_datagram - len(varint.encode(exchange // 4)))

    def send_datagram(self, exchange: int, payload: bytes) -> None:
        if len(payload) <= self.datagram_room(exchange):
            self._quic.send_datagram_frame(varint.encode(exchange // 4) + payload)

    def _release(self, stream_id: int, state: Http3Exchange, held: Held) -> None:
        """Send a request that was held."""
        state.held = None
        self._qpack.send(stream_id, held.fields, not state.sending.open and not held.pieces)
        for data, end, trailers in held.pieces:
            self._send_piece(stream_id, data, end, trailers)

    def _release_held(self) -> None:
        """Send the held requests that may go now."""
        for stream_id, state in list(self._exchanges.items()):
            held = state.held
            if held is None or (not self._quic.handshake_complete and state.head.method not in SAFE_METHODS):
                continue
            if state.head.protocol is None or self._control.takes_extended_connect:
                self._release(stream_id, state, held)
            elif self._control.greeted:
                self._fail(stream_id, NotOffered(_NO_EXTENDED_CONNECT), h3.H3_REQUEST_CANCELLED)

    # Flow control, and the ends of exchanges

    def consumed(self, exchange: int, credit: int) -> bool:
        credit = self._unread.take(exchange, credit)
        return credit > 0 and self._credit(exchange, self._exchanges.get(exchange), credit)

    def _credit(self, stream_id: int, state: Http3Exchange | None, size: int) -> bool:
        """Give credit back. Return whether the peer is to be told now."""
        due = self._quic.credit(size)
        if state is not None and not state.receiving.over:
            state.freed += size
            if state.freed >= self._quic.stream_window >> 2:
                self._quic.credit_stream(stream_id, state.freed)
                state.freed = 0
                due = True
        return due

    def stop(self, exchange: int) -> None:
        state = self._exchanges.pop(exchange, None)
        if state is not None and state.sending.open:
            self._body_room.blocked.discard(exchange)
            self._quic.reset_stream(exchange, h3.H3_NO_ERROR)

    def reprioritize(self, exchange: int, priority: bytes) -> None:
        state = self._exchanges.get(exchange)
        if state is not None and not state.receiving.over and not self.exhausted:
            self._control.reprioritize(exchange, priority)

    def cancel(self, exchange: int) -> None:
        if exchange in self._exchanges:
            self._drop(exchange, h3.H3_REQUEST_CANCELLED)
        else:
            self._credit(exchange, None, self._unread.drop(exchange))

    def _drop(self, stream_id: int, code: int) -> None:
        """Forget an exchange, and end both halves of its stream as far as they are open (RFC 9114 §4.1.1)."""
        state = self._exchanges.pop(stream_id)
        self._body_room.blocked.discard(stream_id)
        self._credit(stream_id, None, self._unread.drop(stream_id))
        if not state.receiving.over:
            self._quic.stop_stream(stream_id, code)
        if not state.over:
            self._quic.reset_stream(stream_id, code)

    def _fail(self, stream_id: int, error: AllswellError, code: int) -> None:
        self._drop(stream_id, code)
        self._events.append(ExchangeFailed(stream_id, error))

    # The connection

    def capacity(self) -> int:
        return 0 if self.exhausted else self._request_room.left()

    @property
    def capacity_expected(self) -> bool:
        return not self.exhausted and self._request_room.expected(len(self._exchanges))

    @property
    def extended_connect(self) -> bool | None:
        return self._control.takes_extended_connect if self._control.greeted else None

    def goodbye(self) -> None:
        self.exhausted = True
        if not self._over:
            self._control.say_goaway()

    def ping(self) -> bool:
        self._quic.send_ping(0)
        return True

    def take_output(self) -> bytes:
        return b""

    def receive_eof(self, why: AllswellError | None) -> list[Event]:
        self._lost(why or TransportError("the QUIC connection has ended", operation="read"))
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
        if self._body_room.blocked:
            self._resume_blocked()
        self._events += self._request_room.changes()
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
            self._on_frames(event.stream_id, event.state, event.frames, event.framing, event.end)
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
        room = self._body_room
        for stream_id in list(room.blocked):
            state = self._exchanges.get(stream_id)
            if state is None or not state.sending.open:
                room.blocked.discard(stream_id)
            elif state.held is None and room.reopened(stream_id):
                room.blocked.discard(stream_id)
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
        self._on_frames(stream_id, state, frames, len(data) - len(rest), end)
        if rest:
            self._work = 0

    def _on_frames(
        self, stream_id: int, state: Http3Exchange, frames: list[tuple[int, bytes]], framing: int, end: bool
    ) -> None:
        """Act on frames of an exchange: see :class:`_Frames`."""
        exchanges = self._exchanges
        try:
            for index, (kind, payload) in enumerate(frames):
                if exchanges.get(stream_id) is not state:  # it has failed, or must be sent again
                    break
                if self._work <= 0:
                    self._input.appendleft(_Frames(stream_id, state, frames[index:], framing, end))
                    return
                self._work -= 1
                if kind == h3.DATA:
                    self._on_body(stream_id, state, payload)
                    framing -= len(payload)
                elif kind == h3.HEADERS:
                    self._on_fields(stream_id, state, payload)
                else:
                    raise H3Error(h3.H3_ID_ERROR, "a push that was never allowed")  # RFC 9114 §7.2.5
            if end and exchanges.get(stream_id) is state:
                self._on_end(stream_id, state)
        except Malformed as error:
            self._fail(stream_id, RemoteProtocolError(str(error), reach="exchange"), error.code)
        if framing:
            self._credit(stream_id, exchanges.get(stream_id), framing)

    def _on_body(self, stream_id: int, state: Http3Exchange, data: bytes) -> None:
        if not state.receiving.answered or state.trailers is not None:
            raise H3Error(h3.H3_FRAME_UNEXPECTED, "DATA outside of a body")  # RFC 9114 §4.1
        if not data:
            return
        size = len(data)
        try:
            state.receiving.count(size)
        except LengthError:
            raise Malformed("a body that is longer than its content-length") from None
        self._unread.add(stream_id, size)
        self._events.append(BodyReceived(stream_id, data, size))

    def _on_fields(self, stream_id: int, state: Http3Exchange, section: bytes) -> None:
        if state.trailers is not None or state.receiving.tunnel:
            raise H3Error(h3.H3_FRAME_UNEXPECTED, "HEADERS after the trailer section")
        fields = self._qpack.decode(stream_id, section)
        try:
            fields, telling = self._sections.section(fields, self._limit)
            state.touched = True
            if state.receiving.answered:
                state.trailers = trailer_section(fields)
                return
            status, fields, content = response_section(fields, state.head.method, telling)
        except SectionTooLarge as error:
            raise Malformed(str(error), h3.H3_EXCESSIVE_LOAD) from None
        except MalformedSection as error:
            raise Malformed(str(error)) from None
        head = ResponseHead(status, fields, b"HTTP/3")
        if status < 200:
            self._events.append(InformationalReceived(stream_id, head))
            return
        if status == 425 and state.with_early_data:
            # RFC 8470 §5.2: it was not processed. It may be sent again, but not as early data.
            refused = RemoteProtocolError("425 Too Early", reach="exchange")
            self._fail(stream_id, NotProcessed(refused, proven=True), h3.H3_REQUEST_CANCELLED)
            return
        state.receiving.begin(status, content)
        self._events.append(ResponseReceived(stream_id, head, state.receiving.tunnel))

    def _on_end(self, stream_id: int, state: Http3Exchange) -> None:
        if not state.reader.between_frames:
            raise H3Error(h3.H3_FRAME_ERROR, "the stream ends within a frame")  # RFC 9114 §7.1
        if not state.receiving.answered:
            raise Malformed("the end of the stream before a response")
        try:
            state.receiving.end()
        except LengthError:
            raise Malformed("a body that is shorter than its content-length") from None
        self._events.append(ResponseCompleted(stream_id, state.trailers or []))
        if state.over:
            del self._exchanges[stream_id]

    def _on_reset(self, stream_id: int, code: int) -> None:
        self._peer_streams.on_reset(stream_id)
        state = self._exchanges.get(stream_id)
        if state is None or state.receiving.over:
            return  # RFC 9000 §3.2: a reset after the end of the stream means nothing
        if not h3.is_error(code) and state.whole:
            # RFC 9114 §4.1 wants the stream to end. But all of the content has come, and the server names no error.
            self._on_end(stream_id, state)
        else:
            error = state.reset_error(code)
            state.receiving.move(RECEIVE_FAILED)
            self._fail(stream_id, error, h3.H3_REQUEST_CANCELLED)

    def _on_stop_sending(self, stream_id: int, code: int) -> None:
        if stream_id in (self._control.stream, self._qpack.stream):
            raise H3Error(h3.H3_CLOSED_CRITICAL_STREAM, "the peer stopped a control or QPACK stream")
        state = self._exchanges.get(stream_id)
        if state is None:
            return
        if state.held is not None:
            state.sending.stop("peer")  # QUIC has already reset our half (RFC 9000 §3.5)
            self._fail(stream_id, state.reset_error(code), h3.H3_REQUEST_CANCELLED)
        elif state.sending.stop("peer"):
            # The response may come all the same, whatever the code: RFC 9114 §4.1, "Clients MUST NOT discard complete
            # responses as a result of having their request terminated abruptly".
            self._events.append(UploadRefused(stream_id))
            if state.over:
                del self._exchanges[stream_id]

    def _on_datagram(self, data: bytes) -> None:
        try:
            quarter, position = varint.decode(data, 0)
        except IndexError:
            quarter = _NO_QUARTER
        if quarter >= _NO_QUARTER:
            raise H3Error(h3.H3_DATAGRAM_ERROR, "a datagram that names no stream")  # RFC 9297 §2.1
        state = self._exchanges.get(quarter * 4)
        if state is None:
            return
        if state.head.protocol is None:
            error = RemoteProtocolError("the server sent a datagram for an ordinary request", reach="exchange")
            self._fail(quarter * 4, error, h3.H3_DATAGRAM_ERROR)  # RFC 9297 §2
            return
        self._events.append(DatagramReceived(quarter * 4, data[position:]))

    # Streams of no exchange

    def _on_other_data(self, stream_id: int, data: bytes, end: bool) -> None:
        self._quic.credit(len(data))
        if is_request(stream_id):
            return  # its exchange is over
        found = self._peer_streams.take(stream_id, data, end)
        if found is None:
            return
        kind, data = found
        self._quic.credit_stream(stream_id, len(data))
        if kind == h3.CONTROL_STREAM:
            self._on_control(data)
        elif data:
            self._qpack.receive(kind, data)
        if end:
            raise H3Error(h3.H3_CLOSED_CRITICAL_STREAM, "a control or QPACK stream was closed")

    def _on_control(self, data: bytes) -> None:
        for kind, payload in self._control.receive(data):
            if kind == h3.SETTINGS:
                self._qpack.apply(self._control.settings)
                self._release_held()
            elif kind == h3.GOAWAY:
                self._on_goaway(payload)
            else:
                self._on_origin(payload)

    def _on_goaway(self, payload: bytes) -> None:
        announced = self._control.goaway is not None
        first_refused = self._control.on_goaway(payload)
        self.exhausted = True
        if not announced:
            self._events.append(PeerLeaving())
        for stream_id, state in list(self._exchanges.items()):
            if stream_id >= first_refused:
                cause = TransportError("the server has sent GOAWAY", operation="write", by="peer")
                self._fail(stream_id, state.not_processed(cause), h3.H3_REQUEST_CANCELLED)

    def _on_origin(self, payload: bytes) -> None:
        try:
            self._events.append(named_origins(payload))
        except ValueError as error:
            raise H3Error(h3.H3_FRAME_ERROR, str(error)) from error  # RFC 9114 §7.1

    # The end

    def _break(self, error: H3Error) -> None:
        """The peer broke the protocol: close QUIC with the error's code (RFC 9114 §8)."""
        if not self._over:
            self._quic.close(error_code=error.code, reason_phrase=error.reason)
            broken = RemoteProtocolError(f"the server broke HTTP/3: {error.reason}")
            self._lost(broken)
            self._events.append(ConnectionBroken(broken))

    def _on_terminated(self, end: End) -> None:
        if self._over:
            return
        self.says_goodbye = ""  # the peer would not hear it
        error = why_ended(end, "the server closed the connection", h3.error_name)
        self._lost(error)
        # The end is orderly if it is the idle timeout (RFC 9000 §10.1) or a close (§10.2) that names no error.
        if end.by == "network" or (end.by == "peer" and end.code in (0, h3.H3_NO_ERROR)):
            self._events.append(PeerLeaving())
        else:
            self._events.append(ConnectionBroken(error))

    def _lost(self, error: AllswellError) -> None:
        self._over = self.exhausted = True
        for stream_id, state in self._exchanges.items():
            # The request has probably crossed the peer's goodbye. It may go again if idempotent (RFC 9110 §9.2.2).
            replay = not state.touched and not isinstance(error, RemoteProtocolError)
            failure = NotProcessed(error, proven=state.held is not None) if replay else error
            self._events.append(ExchangeFailed(stream_id, failure))
        self._exchanges.clear()
        self._unread.clear()
        self._body_room.blocked.clear()


def _held_size(state: Http3Exchange) -> int:
    return 0 if state.held is None else state.held.size
