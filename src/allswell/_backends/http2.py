"""HTTP/2 over h2 (RFC 9113): the backend that loses no request when a server leaves, and wastes no connection.

Theory of operation
===================

**What does what.** h2 has the state of the connection: preface, SETTINGS and their consequences, PING, the window for
what we send on the connection, HPACK's tables, GOAWAY. It is also the judge of what is not ordinary. We read all frames
(``http2_frames.FrameSplitter``), and write those that requests are made of:

* *Requests.* HEADERS, CONTINUATION, DATA and RST_STREAM. h2 would take ten times as long, most of it for checks that
  `_fields.py` has done. So h2 does not know our streams. A WINDOW_UPDATE whose increment fits is added here. For any
  other, and for RST_STREAM, h2 is told the state of the stream, gives its verdict, and forgets it again.
* *GOAWAY.* h2 4.4 takes any GOAWAY, sent or received, as the end of all streams. But RFC 9113 §6.8 wants those up to
  the last stream id to finish. So h2 never sees one, and our own is the last frame that it writes.
* *DATA.* h2 copies a DATA frame five times (twice for a hex dump that nobody reads), and opens windows when it sees
  fit. Here, a run of DATA frames of one stream costs one copy and one event.
* *HEADERS.* h2 checks fields octet by octet. It ends the connection for a malformed message, for which §8.1.1 asks for
  a stream error. And it forgets Content-Length when trailers come.

A test (`test_http2_judge.py`) compares all of it with a plain h2 connection that is told the same. What is used of h2
beyond its documented interface (see `http2_core.py`) has a canary in the tests.

**A stream's life.** ``_streams`` has the open ones. A stream leaves it the moment it is over: complete, reset or
failed. Frames for such a stream are swallowed if we have reset it (§5.1), else they are a connection error
(`http2_ids.py`). HPACK is fed either way.

An extended CONNECT must wait for the peer's SETTINGS (RFC 8441 §3). Until they come it is held, and so is what is
opened after it, because stream ids may only grow.

**Inbound windows.** A stream's window opens on ``consumed()``. So a stalled reader holds up its own stream. It takes up
some of the connection's window, too. But that is as large as the windows of 128 streams, so a hundred stalled readers
do not stop the next.
``_unread`` has what streams have received and nobody consumed, also of streams that are over. When a stream fails or
is cancelled, that goes back to the connection at once.

**Hostile peers.** Frames that make no progress (PING, SETTINGS, empty DATA, frames for dead streams, unknown types) are
counted. Progress on any exchange, and anything that we send for one, starts the count anew. 10 000 in a row are an
attack (ENHANCE_YOUR_CALM). The exchange limits 1xx responses (`_connection/informational.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from h2.errors import ErrorCodes
from h2.events import RemoteSettingsChanged, StreamReset
from h2.exceptions import ProtocolError as H2ProtocolError

from allswell._backends import http2_frames as wire
from allswell._backends.announcements import ALTSVC, ORIGIN, announcement
from allswell._backends.http2_core import CONNECTION_WINDOW, INITIAL_WINDOW, core_connection, core_stream
from allswell._backends.http2_errors import NOT_REPLAYABLE, PeerError, StreamError, error_name, reset_error
from allswell._backends.http2_frames import FrameSplitter
from allswell._backends.http2_hpack import Section, SectionReader
from allswell._backends.http2_ids import StreamIds
from allswell._backends.http2_settings import DEFAULT_WINDOW, PeerSettings
from allswell._backends.http2_stream import Held, Run, Stream, Window
from allswell._backends.interface import (
    WORK,
    BackPressure,
    BodyReceived,
    ConnectionBroken,
    Event,
    ExchangeFailed,
    InformationalReceived,
    PeerLeaving,
    ResponseCompleted,
    ResponseReceived,
    SendWindowOpened,
    UploadRefused,
)
from allswell._backends.stream_limit import StreamLimit
from allswell._backends.unread import Unread
from allswell._errors import AllswellError, LocalProtocolError, NotOffered, NotProcessed, RemoteProtocolError, shown
from allswell._fields import RequestSections, as_pair, request_trailers, section_size
from allswell._halves import RECEIVE_BODY, RECEIVE_HEAD, RECEIVE_TUNNEL, SEND_ENDED, LengthError
from allswell._messages import Headers, RequestHead

_LARGEST_WINDOW = 2**31 - 1
_WHOLE_SECTION = wire.END_HEADERS | wire.END_STREAM
_MAX_QUIET = 10_000
_NO_EXTENDED_CONNECT = "the peer does not offer extended CONNECT (RFC 8441 §3)"


class Http2:
    """One HTTP/2 connection, the client's side. See :class:`~allswell._backends.interface.Backend`.

    :param max_header_size: bytes of a header list (RFC 9113 §6.5.2: names, values and 32 for each field) that are
        accepted; a larger response fails alone, one of four times the size ends the connection.
    :param initial_window: how many bytes one exchange's response may run ahead of its reader.
    :param connection_window: the same for all exchanges together, at least ``initial_window``.
    :param assumed: the limit of streams until the peer's SETTINGS have come. What they say is noted there.
    """

    name = "h2"
    http_version = "HTTP/2"
    in_order = False
    back_pressure = BackPressure.CREDIT
    kept_idle = math.inf
    says_goodbye = "GOAWAY"
    must_abort = False

    def __init__(
        self,
        *,
        max_header_size: int,
        initial_window: int = INITIAL_WINDOW,
        connection_window: int = CONNECTION_WINDOW,
        assumed: StreamLimit | None = None,
    ) -> None:
        self._initial_window = initial_window
        self._splitter = FrameSplitter()
        self._requests = RequestSections(as_pair, end_to_end=True)
        self._peer = PeerSettings(assumed or StreamLimit())
        self._ids = StreamIds()
        self._streams: dict[int, Stream] = {}
        self._held: dict[int, Held] = {}
        self._unread = Unread()
        self._run: Run | None = None
        self._quiet = 0  # frames that made no progress, since the last that did
        self._refusal: Callable[[], AllswellError] | None = None  # why no exchange may open any more
        self._left: memoryview | None = None  # input that was not acted on yet
        self._over = False  # our GOAWAY is written, or the input has ended: h2 is not called any more
        self._h2 = core_connection(initial_window=initial_window, max_header_size=max_header_size)
        self._sections = SectionReader(self._h2.decoder, max_header_size)
        self._out: list[bytes | memoryview] = [self._h2.data_to_send()]
        # RFC 9113 §6.9.2: the connection's window is not a matter of SETTINGS.
        connection_window = max(connection_window, DEFAULT_WINDOW)
        self._window = Window(connection_window)
        if connection_window > DEFAULT_WINDOW:
            self._out.append(wire.window_update(0, connection_window - DEFAULT_WINDOW))

    # Requests

    def open(self, head: RequestHead, *, end: bool) -> int:
        if self._refusal is not None:
            raise NotProcessed(self._refusal(), proven=True)
        if self.capacity() <= 0:
            cause = RemoteProtocolError("the connection takes no more streams")
            raise NotProcessed(cause, proven=True)
        request = self._requests.section(head, end=end)
        fields = request.pseudo_fields
        fields += request.fields
        hold = self._held or (head.protocol is not None and not self._peer.greeted)
        if not hold and (error := self._unsendable(head.protocol, fields)) is not None:
            raise error
        end = end and head.method != b"CONNECT"  # the stream of a CONNECT ends with its tunnel
        id_ = self._ids.take()
        stream = Stream(
            id_, window=self._initial_window, method=request.method, to_send=request.content_length, end=end
        )
        if hold:
            self._held[id_] = Held(head.protocol, fields, stream)
        else:
            self._send_head(stream, fields, end)
        return id_

    def _unsendable(self, protocol: bytes | None, fields: Headers) -> LocalProtocolError | None:
        """Why the peer's SETTINGS do not allow this request; ``None`` if they do, or have not come."""
        if protocol is not None and not self._peer.extended_connect:
            return NotOffered(_NO_EXTENDED_CONNECT)
        limit = self._peer.section_limit
        if limit is not None and section_size(fields) > limit:
            told = f"the server accepts header sections of at most {limit} bytes, and this is larger"
            return LocalProtocolError(told)  # RFC 9113 §6.5.2
        return None

    def _send_head(self, stream: Stream, fields: Headers, end: bool) -> None:
        id_ = stream.id
        self._streams[id_] = stream
        self._h2.highest_outbound_stream_id = id_
        self._quiet = 0
        self._send_section(id_, fields, end)

    def _send_section(self, id_: int, fields: Headers, end: bool) -> None:
        core = self._h2
        self._out += wire.section_frames(id_, core.encoder.encode(fields), core.max_outbound_frame_size, end)

    def _release_held(self, events: list[Event]) -> None:
        """The peer's SETTINGS have come: send the requests that waited for them."""
        held, self._held = self._held, {}
        for id_, waiting in held.items():
            error = self._unsendable(waiting.protocol, waiting.fields)
            if error is not None:
                events.append(ExchangeFailed(id_, error))
            elif len(self._streams) >= self._peer.streams:
                cause = RemoteProtocolError("the connection takes no more streams")
                events.append(ExchangeFailed(id_, NotProcessed(cause, proven=True)))
            else:
                ended = not waiting.stream.sending.open
                self._send_head(waiting.stream, waiting.fields, ended and not waiting.trailers)
                if waiting.trailers:
                    self._send_section(id_, waiting.trailers, True)
                events.append(SendWindowOpened(id_))

    def _fail_held(self, error: Callable[[], AllswellError], events: list[Event]) -> None:
        held, self._held = self._held, {}
        events.extend(ExchangeFailed(id_, error()) for id_ in held)

    def send_window(self, exchange: int) -> int:
        stream = self._streams.get(exchange)
        if stream is None or not stream.sending.open or self._over:
            return 0
        return max(0, min(self._send_window_of(stream), self._h2.outbound_flow_control_window))

    def _send_window_of(self, stream: Stream) -> int:
        return self._peer.window + stream.send_window_opened

    def send_body(self, exchange: int, data: bytes | memoryview, *, end: bool, trailers: Headers | None = None) -> None:
        held = None
        stream = self._streams.get(exchange)
        if stream is None and (held := self._held.get(exchange)) is not None:
            stream = held.stream
        if stream is None or not stream.sending.open or self._over:
            return
        size = len(data)
        if size > self.send_window(exchange):
            raise LocalProtocolError("the piece of the body is larger than the window")
        fields = [(name.lower(), value) for name, value in request_trailers(trailers)] if end and trailers else []
        try:
            stream.sending.count(size, end=end)
        except LengthError:
            raise LocalProtocolError("the body is not as long as its Content-Length says") from None
        if held is not None:
            held.trailers = fields
        else:
            self._send_piece(stream, data, end, fields)
        if end:
            stream.sending.move(SEND_ENDED)
            if stream.over:
                del self._streams[stream.id]

    def _send_piece(self, stream: Stream, data: bytes | memoryview, end: bool, trailers: Headers) -> None:
        self._quiet = 0
        size = len(data)
        last = end and not trailers
        if size or last:
            stream.send_window_opened -= size
            self._h2.outbound_flow_control_window -= size
            self._out += wire.data_frames(stream.id, data, self._h2.max_outbound_frame_size, end=last)
        if trailers:
            self._send_section(stream.id, trailers, True)

    def cancel(self, exchange: int) -> None:
        stream = self._streams.get(exchange)
        if stream is not None:
            self._reset_stream(stream, ErrorCodes.CANCEL)
        self._held.pop(exchange, None)
        self._give_back(self._unread.drop(exchange))

    def unsent(self, exchange: int) -> int:
        return 0

    def stop(self, exchange: int) -> None:
        stream = self._streams.get(exchange)
        if stream is not None:
            self._reset_stream(stream, ErrorCodes.NO_ERROR)

    def reprioritize(self, exchange: int, priority: bytes) -> None:
        stream = self._streams.get(exchange)
        if stream is None or stream.receiving.over or self._refusal is not None:
            return
        if self._peer.priority_updates and len(priority) + 4 <= self._h2.max_outbound_frame_size:
            self._quiet = 0
            self._out.append(wire.priority_update(exchange, priority))

    def consumed(self, exchange: int, credit: int) -> bool:
        credit = self._unread.take(exchange, credit)
        stream = self._streams.get(exchange)
        if stream is not None and not stream.receiving.over:
            self._open_window(exchange, stream.window.consume(credit))
        self._give_back(credit)
        return True

    # The connection

    def capacity(self) -> int:
        if self._refusal is not None:
            return 0
        room = self._peer.streams - len(self._streams) - len(self._held)
        left = self._ids.left
        if room > left:
            return left
        return room if room > 0 else 0

    @property
    def capacity_expected(self) -> bool:
        return self._refusal is None and not self._peer.streams

    @property
    def extended_connect(self) -> bool | None:
        return self._peer.extended_connect if self._peer.greeted else None

    @property
    def exhausted(self) -> bool:
        return self._refusal is not None or not self._ids.left

    def goodbye(self) -> None:
        if not self._over:
            self._say_goaway(ErrorCodes.NO_ERROR)
            self._refusal = lambda: LocalProtocolError("the client has sent GOAWAY on this connection")

    def ping(self) -> bool:
        if self._over:
            return False
        self._quiet = 0  # we ask for this answer, so it is no flood
        self._h2.ping(b"allswell")
        self._flush_h2()
        return True

    def take_output(self) -> bytes:
        if not self._out:
            return b""
        output = b"".join(self._out)
        self._out.clear()
        return output

    def receive_eof(self, why: AllswellError | None) -> list[Event]:
        events: list[Event] = []
        cause = self._refusal
        reused = self._ids.next > 3 or cause is not None
        self._stop()

        def ended() -> AllswellError:
            if why is not None:
                return why
            told = "" if cause is None else f" ({cause()})"
            words = f"the peer closed the connection before the response was complete{told}"
            return RemoteProtocolError(words, missing="end")

        self._refusal = ended
        for stream in [stream for stream in self._streams.values() if reused and not stream.receiving.answered]:
            # The connection was used before, or its end was announced. So the peer most likely never saw this request,
            # as in HTTP/1.1 (RFC 9112 §9.3.1, RFC 9110 §9.2.2). That is no proof.
            self._fail(stream, NotProcessed(ended(), proven=False), events)
        self._fail_all(ended, events)
        return events

    @property
    def unfinished(self) -> bool:
        return self._left is not None

    def go_on(self) -> list[Event]:
        left, self._left = self._left, None
        return self._receive(left) if left is not None else []

    def receive(self, data: memoryview) -> list[Event]:
        events = self._receive(data)
        if self._left is not None:
            self._left = memoryview(bytes(self._left))  # a copy: the caller reuses its buffer
        return events

    def _receive(self, data: memoryview) -> list[Event]:
        events: list[Event] = []
        if self._over:
            return events  # these frames have crossed our GOAWAY
        streams, splitter, sections = self._streams, self._splitter, self._sections
        work = 0
        try:
            for kind, flags, id_, frame in splitter.split(data):
                stream = streams.get(id_)
                work += 1
                if kind == wire.DATA and stream is not None and not sections.unfinished:
                    state = stream.receiving.state
                    if not flags and (state is RECEIVE_BODY or state is RECEIVE_TUNNEL):
                        work += self._receive_run(stream, frame, data, WORK - work, events)
                    elif (
                        flags != wire.END_STREAM
                        or state is not RECEIVE_BODY
                        or self._run is not None
                        or not self._receive_last(stream, frame, events)
                    ):
                        self._receive_data(stream, flags, frame, events)
                else:
                    if self._run is not None:
                        self._end_run(events)
                    if (
                        kind == wire.HEADERS
                        and flags | wire.END_STREAM == _WHOLE_SECTION
                        and stream is not None
                        and self._peer.greeted
                        and not sections.unfinished
                    ):
                        self._receive_section(stream, flags != wire.END_HEADERS, bytes(frame[9:]), events)
                    else:
                        self._receive_frame(kind, flags, id_, frame, events)
                    work += len(frame) >> 6
                if work >= WORK and (left := data[splitter.position :]):
                    self._left = left
                    break
            self._end_run(events)
        except PeerError as error:
            self._end_run(events)
            self._break(error, events)
        return events

    # Frames

    def _receive_frame(self, kind: int, flags: int, id_: int, frame: memoryview, events: list[Event]) -> None:
        if not self._peer.greeted and kind != wire.GOAWAY and (kind != wire.SETTINGS or flags & wire.ACK):
            # RFC 9113 §3.4. A GOAWAY is read all the same: it says what became of our requests.
            raise PeerError(ErrorCodes.PROTOCOL_ERROR, "the peer's first frame is not SETTINGS")
        self._sections.check(kind, id_)
        if kind == wire.HEADERS:
            if id_ not in self._streams:
                self._ids.check_dead(id_)
            self._receive_whole_section(self._sections.receive_headers(id_, flags, frame), events)
        elif kind == wire.CONTINUATION:
            self._receive_whole_section(self._sections.receive_continuation(flags, frame), events)
        elif kind == wire.DATA:
            self._receive_dead_data(id_, flags, frame)
        elif kind == wire.GOAWAY:
            self._count_quiet()
            self._receive_goaway(id_, frame, events)
        elif kind == wire.PUSH_PROMISE:
            # §8.4: we sent ENABLE_PUSH = 0 before anything else.
            raise PeerError(ErrorCodes.PROTOCOL_ERROR, "the peer pushed, and push is off")
        elif kind == wire.PRIORITY_UPDATE:
            # RFC 9218 §7.1: only a client may send it.
            raise PeerError(ErrorCodes.PROTOCOL_ERROR, "the peer sent PRIORITY_UPDATE")
        elif kind == wire.SETTINGS:
            self._count_quiet()
            known = wire.known_settings(frame)
            if not flags & wire.ACK:
                self._peer.check_priorities(known.no_priorities)
            for size in known.table_sizes:  # before the requests that waited for the SETTINGS are encoded
                self._h2.encoder.header_table_size = size
            # §6.9.2: if this makes a window too large, the connection ends. That takes a window that was opened before.
            opened = [stream for stream in self._streams.values() if stream.send_window_opened > 0]
            self._receive_by_h2(known.frame, events, opened)
        elif kind == wire.WINDOW_UPDATE:
            if id_:
                self._ids.check_not_idle(id_)
            self._count_quiet()
            self._receive_window(id_, frame, events)
        elif kind in (wire.PING, wire.RST_STREAM):
            if kind == wire.RST_STREAM and id_:
                self._ids.check_not_idle(id_)
            self._count_quiet()
            stream = self._streams.get(id_)
            self._receive_by_h2(frame, events, [stream] if stream is not None else [])
        else:
            self._count_quiet()  # unknown types are to be ignored (§5.5)
            if kind == wire.PRIORITY:
                self._receive_priority(id_, frame, events)
            elif kind in (ORIGIN, ALTSVC):
                self._receive_announcement(kind, flags, id_, frame, events)

    def _receive_priority(self, id_: int, frame: memoryview, events: list[Event]) -> None:
        """Check a PRIORITY frame. It is deprecated, but must be well-formed (§5.3.2, §6.3)."""
        if not id_:
            raise PeerError(ErrorCodes.PROTOCOL_ERROR, "the peer sent PRIORITY on stream 0")
        stream = self._streams.get(id_)
        if len(frame) != 9 + 5 and stream is not None:
            error = StreamError(f"PRIORITY of {len(frame) - 9} bytes", ErrorCodes.FRAME_SIZE_ERROR)
            self._fail_malformed(stream, error, events)

    def _receive_data(self, stream: Stream, flags: int, frame: memoryview, events: list[Event]) -> None:
        content = wire.payload(frame, flags) if flags & wire.PADDED else frame[9:]
        length = len(frame) - 9
        self._window.receive(length)
        stream.window.receive(length)
        end = bool(flags & wire.END_STREAM)
        try:
            stream.receive_data(len(content), end)
        except StreamError as error:
            self._end_run(events)
            self._unread.add(stream.id, length)
            self._fail_malformed(stream, error, events)
            return
        self._add_to_run(stream, [content] if content else [], length, events)
        if content:
            self._quiet = 0
        elif not end:
            self._count_quiet()
        if end:
            self._end_run(events)
            self._complete(stream, [], events)

    def _receive_last(self, stream: Stream, frame: memoryview, events: list[Event]) -> bool:
        """Take a frame of ordinary content that ends its response. Return whether it is one."""
        id_, receiving = stream.id, stream.receiving
        content = frame[9:].tobytes()
        size = len(content)
        left = receiving.left
        if not size or (size != left and left != math.inf) or size > self._window.left or size > stream.window_left:
            return False
        self._window.left -= size
        self._quiet = 0
        receiving.end_whole()
        if not stream.sending.open:
            del self._streams[id_]
        self._unread.add(id_, size)
        events.append(BodyReceived(id_, content, size))
        events.append(ResponseCompleted(id_, []))
        return True

    def _receive_run(self, stream: Stream, frame: memoryview, data: memoryview, most: int, events: list[Event]) -> int:
        """Take a frame of a download, and those behind it, as far as they are allowed.

        :param most: how many of those behind it may be taken.
        :return: how many of those were taken.
        """
        room = min(self._window.left, stream.window.left, stream.receiving.left)
        contents, size = self._splitter.run(frame, data, stream.id, room=room, most=most)
        if not contents:
            self._receive_data(stream, 0, frame, events)
            return 0
        self._window.receive(size)
        stream.window.receive(size)
        stream.receiving.count(size)
        self._quiet = 0
        self._add_to_run(stream, contents, size, events)
        return len(contents) - 1

    def _add_to_run(self, stream: Stream, contents: list[memoryview], credit: int, events: list[Event]) -> None:
        run = self._run
        if run is not None and run.stream is stream:
            run.contents += contents
            run.credit += credit
        else:
            if run is not None:
                self._end_run(events)
            self._run = Run(stream, contents, credit)

    def _end_run(self, events: list[Event]) -> None:
        """Make one event of consecutive DATA frames of one stream."""
        run = self._run
        if run is None:
            return
        self._run = None
        id_, credit = run.stream.id, run.credit
        self._unread.add(id_, credit)
        if run.contents:
            events.append(BodyReceived(id_, run.joined(), credit))
        else:
            self.consumed(id_, credit)  # these frames had padding only, and nobody will read that

    def _receive_dead_data(self, id_: int, flags: int, frame: memoryview) -> None:
        wire.payload(frame, flags)
        self._ids.check_dead(id_)
        self._count_quiet()
        self._window.receive(len(frame) - 9)
        self._give_back(len(frame) - 9)  # §5.1: it counts for the connection's window, whatever stream it was for

    def _receive_whole_section(self, section: Section | None, events: list[Event]) -> None:
        if section is not None:
            self._receive_section(self._streams.get(section.stream), section.end, section.block, events)

    def _receive_section(self, stream: Stream | None, end: bool, block: bytes, events: list[Event]) -> None:
        try:
            fields, telling = self._sections.decode(block)
            if stream is None:
                self._count_quiet()
                return
            if stream.receiving.state is not RECEIVE_HEAD:
                stream.receive_trailers(fields, end)
                self._complete(stream, list(fields), events)
                return
            head = stream.receive_head(fields, telling, end)
        except StreamError as error:
            if stream is None:
                self._count_quiet()
            else:
                self._fail_malformed(stream, error, events)
            return
        if head.status < 200:
            events.append(InformationalReceived(stream.id, head))
            return
        self._quiet = 0
        events.append(ResponseReceived(stream.id, head, stream.receiving.tunnel))
        if end:
            self._complete(stream, [], events)

    def _receive_goaway(self, id_: int, frame: memoryview, events: list[Event]) -> None:
        last, code, debug = wire.goaway(frame, id_)
        words = f" ({shown(debug)})" if debug else ""

        def told() -> AllswellError:
            return RemoteProtocolError(f"the peer sent GOAWAY, {error_name(code)}{words}")

        if self._refusal is None or code != ErrorCodes.NO_ERROR:
            self._refusal = told
            events.append(PeerLeaving(told() if code != ErrorCodes.NO_ERROR else None))
        refused = told if code in NOT_REPLAYABLE else lambda: NotProcessed(told(), proven=True)
        self._fail_held(refused, events)
        # §6.8: "Endpoints MUST NOT increase the value they send in the last stream identifier, since the peers might
        # already have retried unprocessed requests on another connection." If one does, no open stream is above it.
        for stream in [stream for stream in self._streams.values() if stream.id > last]:
            self._ids.on_reset(stream.id)
            if stream.receiving.over:
                del self._streams[stream.id]
                events.append(UploadRefused(stream.id))
            else:
                self._fail(stream, told() if stream.receiving.answered else refused(), events)

    def _receive_announcement(self, kind: int, flags: int, id_: int, frame: memoryview, events: list[Event]) -> None:
        try:
            news = announcement(kind, flags, id_, bytes(frame[9:]), open_=id_ in self._streams)
        except ValueError as error:
            raise PeerError(ErrorCodes.FRAME_SIZE_ERROR, f"the peer sent {error}") from error  # §4.2
        if news is not None:
            events.append(news)

    def _receive_by_h2(self, frame: bytes | memoryview, events: list[Event], streams: Iterable[Stream]) -> None:
        """Have h2 act on a frame.

        :param streams: the streams that the frame is about.
        """
        core = self._h2
        for each in streams:
            core.streams[each.id] = core_stream(core, each.id, self._send_window_of(each), ended=not each.sending.open)
        try:
            happened = core.receive_data(frame)
        except H2ProtocolError as error:
            raise PeerError(int(error.error_code), f"the peer broke HTTP/2: {error}", told=True) from error
        finally:
            core.streams.clear()
            self._flush_h2()
        for event in happened:
            if isinstance(event, RemoteSettingsChanged):
                greeted = self._peer.greeted
                events += self._peer.receive(core.remote_settings)
                if not greeted:
                    self._release_held(events)
            elif isinstance(event, StreamReset):
                self._receive_reset(self._streams[event.stream_id], event, events)

    def _receive_window(self, id_: int, frame: memoryview, events: list[Event]) -> None:
        stream = self._streams.get(id_)
        increment = wire.increment(frame)
        before = self._send_window_of(stream) if stream is not None else self._h2.outbound_flow_control_window
        if not increment or before + increment > _LARGEST_WINDOW:
            self._receive_by_h2(wire.without_reserved_bit(frame), events, [stream] if stream is not None else [])
            return
        # Uploads wait only if the window was shut. So only then is there an event.
        if stream is not None:
            stream.send_window_opened += increment
            if before <= 0 and stream.sending.open:
                events.append(SendWindowOpened(id_))
        elif not id_:
            self._h2.outbound_flow_control_window = before + increment
            if before <= 0:
                events.append(SendWindowOpened(None))

    def _receive_reset(self, stream: Stream, event: StreamReset, events: list[Event]) -> None:
        code = event.error_code or 0
        if stream.receiving.over:
            del self._streams[stream.id]
            events.append(UploadRefused(stream.id))  # §8.1: the peer wants no more of the request (or tunnel)
        elif event.remote_reset and code == ErrorCodes.NO_ERROR and stream.receiving.whole:
            # §8.1 has END_STREAM before this. But all of the content has come, and the server names no error.
            if stream.sending.open:
                events.append(UploadRefused(stream.id))
            del self._streams[stream.id]
            events.append(ResponseCompleted(stream.id, []))
        elif event.remote_reset:
            self._fail(stream, reset_error(code, answered=stream.receiving.answered), events)
        else:
            self._ids.on_reset(stream.id)
            words = f"the peer broke HTTP/2 on this stream: {error_name(code)}"
            self._fail(stream, RemoteProtocolError(words, reach="exchange"), events)

    # How exchanges end

    def _complete(self, stream: Stream, trailers: Headers, events: list[Event]) -> None:
        self._quiet = 0
        if stream.over:
            del self._streams[stream.id]
        events.append(ResponseCompleted(stream.id, trailers))

    def _fail(self, stream: Stream, error: AllswellError, events: list[Event]) -> None:
        del self._streams[stream.id]
        self._give_back(self._unread.drop(stream.id))
        events.append(ExchangeFailed(stream.id, error))

    def _fail_malformed(self, stream: Stream, error: StreamError, events: list[Event]) -> None:
        self._reset_stream(stream, error.code)
        self._give_back(self._unread.drop(stream.id))
        told = RemoteProtocolError(f"the peer sent {error}", reach="exchange")
        events.append(UploadRefused(stream.id) if stream.receiving.over else ExchangeFailed(stream.id, told))

    def _fail_all(self, error: Callable[[], AllswellError], events: list[Event]) -> None:
        self._fail_held(error, events)
        for stream in list(self._streams.values()):
            if stream.receiving.over:
                del self._streams[stream.id]
            else:
                self._fail(stream, error(), events)

    def _reset_stream(self, stream: Stream, code: int) -> None:
        if not self._over:
            self._out.append(wire.rst_stream(stream.id, code))
        self._ids.on_reset(stream.id)
        del self._streams[stream.id]

    # How the connection ends

    def _break(self, error: PeerError, events: list[Event]) -> None:
        words = str(error) if self._peer.greeted else f"the peer does not speak HTTP/2: {error}"

        def broken() -> AllswellError:  # it must not refer to the error, whose traceback keeps the input alive
            return RemoteProtocolError(words)

        if error.told:
            self._stop()
        else:
            self._say_goaway(error.code)
        self._refusal = broken
        self._fail_all(broken, events)
        events.append(ConnectionBroken(broken()))

    def _say_goaway(self, code: int) -> None:
        self._h2.close_connection(error_code=code)
        self._stop()

    def _stop(self) -> None:
        self._flush_h2()
        self._over = True

    # Small things

    def _flush_h2(self) -> None:
        data = self._h2.data_to_send()
        if data:
            self._out.append(data)

    def _give_back(self, credit: int) -> None:
        self._open_window(0, self._window.consume(credit))

    def _open_window(self, id_: int, increment: int) -> None:
        if increment and not self._over:
            self._out.append(wire.window_update(id_, increment))

    def _count_quiet(self) -> None:
        self._quiet += 1
        if self._quiet > _MAX_QUIET:
            raise PeerError(ErrorCodes.ENHANCE_YOUR_CALM, f"the peer sent {_MAX_QUIET} frames without any progress")
