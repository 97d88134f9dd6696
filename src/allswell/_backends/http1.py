"""The HTTP/1.1 backend (RFC 9112): one exchange at a time. (`http1_pipeline.py` has several.)

Theory of operation. *Our half* is written here. `_fields.py` has checked the head, so to write it is to join its lines.
Content goes as it is, or in chunks.

*The peer's half* is read in several ways. An ordinary head goes the short way (`http1_short.py`). h11 reads any other
head, and says what is wrong with it. Content of a known length is counted. Chunks are read by `http1_chunks.py`, which
gives unusual ones to h11. This file turns all of that into events, decides what an end of the stream means (which
depends on how far the response has come), and carries the raw bytes after an upgrade or CONNECT.

h11 never sees our half. If it has to read, an engine is made and told of a request in place of ours. All that matters
is that a response to it is read in the same way: HEAD, CONNECT, a request for an upgrade, or any other.

An HTTP/1.1 connection can be used again only if both halves of the exchange are complete, neither has said otherwise,
nothing lies behind the response, and a response without content announces none. An abandoned exchange ends it, and so
do bytes that nobody asked for: they would be read as the next response.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING

from allswell._backends.http1_chunks import Chunks, MalformedChunk
from allswell._backends.http1_short import Heads
from allswell._backends.interface import (
    WORK,
    BackPressure,
    BodyReceived,
    Event,
    ExchangeFailed,
    InformationalReceived,
    PeerLeaving,
    ResponseCompleted,
    ResponseReceived,
    UploadRefused,
)
from allswell._errors import (
    AllswellError,
    LocalProtocolError,
    Missing,
    NotOffered,
    NotProcessed,
    RemoteProtocolError,
    shown,
)
from allswell._fields import MAX_FIELDS, TOO_MANY, RequestSections, kept_idle, options, request_trailers
from allswell._halves import (
    RECEIVE_BODY,
    RECEIVE_ENDED,
    RECEIVE_TUNNEL,
    SEND_BODY,
    SEND_ENDED,
    LengthError,
    ReceiveHalf,
    SendHalf,
)
from allswell._messages import Headers, RequestHead, ResponseHead

if TYPE_CHECKING:
    import h11

#: There is no flow control above TCP. This only limits how many bytes are copied at once.
_WINDOW = 256 * 1024

#: How every response begins (RFC 9112 §2.3, §4). What begins otherwise (SSH, mail, TLS) is not HTTP/1.
_BEGINNING = b"HTTP/1."
#: Control characters of a reason phrase become "?". It is shown in errors and on terminals.
_SHOWN = bytes(0x3F if byte < 0x20 or byte == 0x7F else byte for byte in range(256))

#: A head goes the short way only if it ends within so many bytes.
_SHORT = 8 * 1024

_ILLEGAL_LINE = re.compile(r"illegal header line: bytearray\(b.([!#$%&'*+\-.^_`|~0-9A-Za-z]{,64})")

#: How many plain chunks are taken in one call. One costs a fraction of a step of :data:`WORK`.
_CHUNKS = 4 * WORK
#: This head brings h11 into the state between two chunks.
_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def _line(name: bytes, value: bytes) -> bytes:
    return b"%b: %b\r\n" % (name, value)


class Memory:
    """What one connection remembers of its requests and responses."""

    def __init__(self) -> None:
        self.requests = RequestSections(_line, end_to_end=False)
        self.responses = Heads()


class Version:
    """What is the same on every connection of HTTP/1.1: see :class:`Backend`."""

    name = "h1"
    http_version = "HTTP/1.1"
    capacity_expected = False
    extended_connect: bool | None = False
    in_order = True
    back_pressure = BackPressure.READING
    says_goodbye = ""


class Http1(Version):
    """One HTTP/1.1 connection.

    :param max_header_size: bytes of a response's head that are accepted, and of a trailer section.
    :param numbers: the numbers for exchanges, from 1 for a connection's first. Engines of one pipeline share them.
    :param memory: engines of one pipeline share it, too.
    :ivar followed: whether another request was sent behind this one. Its response may then follow in the same input.
    :ivar last_said: whether the server has said that it processes no request behind this one.
    """

    def __init__(
        self, *, max_header_size: int, numbers: Iterator[int] | None = None, memory: Memory | None = None
    ) -> None:
        self._max_header_size = max_header_size
        self._short = min(_SHORT, max_header_size // 2)  # (half: by the count of the limit, a head may have more bytes)
        self._memory = memory or Memory()
        self._output: list[bytes | memoryview] = []
        self._numbers = numbers or count(1)
        self._current = 0  # the exchange that is open; 0 for none
        self._sending = SendHalf(SEND_ENDED)  # our half of the last exchange
        self._receiving = ReceiveHalf(b"")
        self._chunked = False  # whether the request's content is chunked
        self._upgrade = False  # whether the request asks for another protocol
        self._persists = True  # whether the connection may go on behind this exchange
        self._leaving = False
        self._begun = b""  # the first bytes of the response
        self._reader: h11.Connection | None = None  # h11, if it reads the response
        self._unparsed = 0  # how many bytes h11 was given of the section that it reads, at most
        self._more = False  # h11 may have more events
        self._to_come: int | None = None  # of content with a known length: how many bytes are still to come
        self._chunks: Chunks | None = None  # reads the response's content, if that is chunked
        self._left: memoryview | None = None  # input that was not acted on yet
        self._surplus = b""  # what came behind the response
        self.followed = False
        self.last_said = False
        self.must_abort = False
        self.kept_idle = math.inf

    # Requests

    def capacity(self) -> int:
        return 0 if self._current or self._leaving or self.must_abort else 1

    @property
    def exhausted(self) -> bool:
        return self._leaving or self.must_abort

    def open(self, head: RequestHead, *, end: bool) -> int:
        if not self.capacity():
            raise NotProcessed(RemoteProtocolError("the connection takes no more requests"), proven=True)
        if head.protocol is not None:
            raise NotOffered("an extended CONNECT cannot be sent over HTTP/1.1 (RFC 8441)")
        section = self._memory.requests.section(head, end=end)
        # RFC 9112 §3.2.3: the target of CONNECT is the authority. §3.2.2: a proxy gets a whole URI.
        target = section.absolute_form if section.absolute else section.target or section.authority
        self._output.append(b"%b %b HTTP/1.1\r\n%b\r\n" % (section.method, target, b"".join(section.fields)))
        # A request without a length that is not chunked has no content (RFC 9112 §6.3).
        self._sending = SendHalf(SEND_BODY, None if section.chunked else section.content_length or 0)
        self._receiving = ReceiveHalf(section.method)
        self._chunked, self._upgrade, self._persists = section.chunked, section.upgrade, not section.close
        self._begun, self._surplus = b"", b""
        self._reader, self._to_come, self._chunks = None, None, None
        self._current = next(self._numbers)
        if end:
            self._end_content([])
        return self._current

    def send_body(self, exchange: int, data: bytes | memoryview, *, end: bool, trailers: Headers | None = None) -> None:
        if exchange != self._current:
            return
        if self._receiving.tunnel:
            if data:
                self._output.append(data)
            if end:
                self._finish()
            return
        if not self._sending.open:
            return
        last = request_trailers(trailers) if trailers else []
        if last and not self._chunked:
            raise LocalProtocolError("trailers in HTTP/1.1 need a chunked body (RFC 9112 §7.1.2)")
        try:
            self._sending.count(len(data), end=end)
        except LengthError:
            self.must_abort = True  # a part of the request may be on its way
            raise LocalProtocolError("the body is not as long as its Content-Length says") from None
        if data:
            self._output += (b"%x\r\n" % len(data), data, b"\r\n") if self._chunked else (data,)
        if end:
            self._end_content(last)
            if self._receiving.over:
                self._finish()

    def _end_content(self, trailers: Headers) -> None:
        if self._chunked:
            self._output.append(b"0\r\n%b\r\n" % b"".join([_line(*field) for field in trailers]))
        self._sending.move(SEND_ENDED)

    def send_window(self, exchange: int) -> int:
        return _WINDOW if exchange == self._current else 0

    def unsent(self, exchange: int) -> int:
        return 0

    def consumed(self, exchange: int, credit: int) -> bool:
        """Do nothing: the peer may send on as soon as we read on."""
        return False

    def cancel(self, exchange: int) -> None:
        if exchange and exchange == self._current:
            self.must_abort = True

    def stop(self, exchange: int) -> None:
        self.cancel(exchange)  # a part of the request is out: nothing can follow it

    def reprioritize(self, exchange: int, priority: bytes) -> None:
        """Do nothing: HTTP/1.1 cannot say it."""

    def goodbye(self) -> None:
        self._leaving = True

    def ping(self) -> bool:
        return False

    def take_output(self) -> bytes | memoryview:
        output = self._output
        if not output:
            return b""
        data = output[0] if len(output) == 1 else b"".join(output)
        output.clear()
        return data

    # For pipelines

    @property
    def exchange(self) -> int:
        """The exchange that is open; 0 for none."""
        return self._current

    @property
    def may_be_followed(self) -> bool:
        """Whether a request may follow the open one: that was sent in full, and keeps the connection as it is."""
        return self._persists and not (self._sending.open or self._upgrade or self._receiving.method == b"CONNECT")

    @property
    def surplus(self) -> bytes:
        """What came behind the response."""
        return self._surplus or (self._reader.trailing_data[0] if self._reader is not None else b"")

    # Responses

    def receive(self, data: memoryview) -> list[Event]:
        receiving = self._receiving
        if receiving.state is RECEIVE_TUNNEL:
            return [BodyReceived(self._current, bytes(data), len(data))]
        if not self._current:
            # No request is open. This may be a 408 before the server closes (RFC 9110 §15.5.9), or a smuggled response.
            # So it is not read.
            self._leaving = True
            return [PeerLeaving(RemoteProtocolError("the server sent something while no request was open"))]
        if receiving.over:
            # The response is complete, and our upload is not. This would be read as the next request's response.
            self.must_abort = True
            return []
        events: list[Event] = []
        if self._reader is not None:
            self._to_h11(data, events)
        elif receiving.state is RECEIVE_BODY:
            self._take_content(data, events)
        else:
            self._take_head(data, events)
        if self._left is not None:
            self._left = memoryview(bytes(self._left))  # a copy: the caller reuses its buffer
        return events

    @property
    def unfinished(self) -> bool:
        return self._more or self._left is not None

    def go_on(self) -> list[Event]:
        events: list[Event] = []
        if self._left is not None:
            left, self._left = self._left, None
            self._take_content(left, events)
        elif self._more:
            self._read(events)
        return events

    def receive_eof(self, why: AllswellError | None) -> list[Event]:
        self._leaving = True
        exchange = self._current
        if not exchange:
            return [PeerLeaving(why)]
        receiving, events = self._receiving, list[Event]()
        if why is None and not receiving.over:
            if receiving.tunnel:
                receiving.move(RECEIVE_ENDED)
                return [ResponseCompleted(exchange, [])]  # our half of the tunnel is still open
            if self._reader is not None:
                self._reader.receive_data(b"")
                self._read(events, missing="end" if receiving.state is RECEIVE_BODY else None)
                return events
            if self._to_come is not None:
                why = _error(f"it ended the body {self._to_come} bytes too early", "end")
            elif self._chunks is not None:
                why = _error("it ended the body within its chunks", "end")
            elif receiving.state is RECEIVE_BODY:
                self._completed([], events)  # RFC 9112 §6.3: content without a length, and not chunked, ends here
                return events
        self.must_abort = True
        self._current = 0
        cause = why or no_response()
        if not self._begun and exchange > 1:
            # RFC 9112 §9.3.1: the server may have closed the idle connection before it saw the request. That is likely,
            # but not proven.
            return [ExchangeFailed(exchange, NotProcessed(cause, proven=False))]
        if receiving.over:
            return []  # the response is whole; only our upload was cut
        return [ExchangeFailed(exchange, cause)]

    # Heads

    def _take_head(self, data: memoryview, events: list[Event]) -> None:
        method = self._receiving.method
        if method != b"CONNECT":
            heads = self._memory.responses
            head = heads.read(bytes(data[: self._short]), method)
            if head is not None:
                self._begun = _BEGINNING
                if heads.kept_idle is not None:
                    self.kept_idle = heads.kept_idle
                self._answered(head, events, close=heads.close)
                self._to_come = heads.content_length
                if heads.content_length is None:
                    self._chunks = Chunks(self._judge)
                self._take_content(data[heads.size :], events)
                return
        self._reader = self._engine(method)
        self._to_h11(data, events)

    def _answered(self, head: ResponseHead, events: list[Event], *, close: bool) -> None:
        """The final response's head has come."""
        self._receiving.move(RECEIVE_BODY)
        events.append(ResponseReceived(self._current, head))
        if close:
            self._persists = False
            self.last_said = True
            if self._sending.open:
                # RFC 9112 §9.6: the server reads no more. A part of the request is out, so the connection ends with it.
                events.append(UploadRefused(self._current))

    def _engine(self, method: bytes) -> h11.Connection:
        from allswell._backends.http1_engine import engine  # imported late, with h11: ordinary responses do without it

        self._unparsed = 0
        return engine(method, self._max_header_size, upgrade=self._upgrade)

    def _to_h11(self, data: memoryview, events: list[Event]) -> None:
        if len(self._begun) < len(_BEGINNING):
            self._begun += data[: len(_BEGINNING) - len(self._begun)]
            if not _BEGINNING.startswith(self._begun):  # h11 would wait for the end of a head that never comes
                self._broken(f"its answer begins with {self._begun!r}", events)
                return
        assert self._reader is not None
        self._reader.receive_data(data)  # type: ignore[arg-type]  # h11 appends it to a bytearray: any buffer will do
        self._unparsed += len(data)
        self._read(events)
        if events:
            self._unparsed = len(data)  # what h11 still has came with the last event

    def _read(self, events: list[Event], missing: Missing | None = None) -> None:
        """Have h11 read a head, or chunks that are unusual.

        :param missing: what is missing if that is an error, because the stream has ended.
        """
        import h11  # late, as above

        reader = self._reader
        assert reader is not None
        self._more = False
        body: list[bytes | bytearray] = []
        work = WORK
        try:
            while True:
                if work <= 0:
                    self._more = True
                    break
                work -= 1
                event = reader.next_event()
                if isinstance(event, h11.Data):
                    body.append(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    trailers = self._section(event)
                    _add_body(self._current, body, events)
                    body = []
                    self._completed(trailers, events)
                    break
                elif isinstance(event, (h11.InformationalResponse, h11.Response)):
                    self._head(reader, event, events)
                    work -= len(event.headers) >> 2
                    if self._receiving.answered:
                        break
                else:
                    break  # it needs more, or the stream has ended
        except h11.RemoteProtocolError as error:
            _add_body(self._current, body, events)
            self._broken(self._words(error), events, missing)
        else:
            _add_body(self._current, body, events)

    def _head(
        self, reader: h11.Connection, event: h11.InformationalResponse | h11.Response, events: list[Event]
    ) -> None:
        import h11  # late, as above

        headers = self._section(event)
        head = ResponseHead(event.status_code, headers, b"HTTP/" + event.http_version, event.reason.translate(_SHOWN))
        exchange = self._current
        if reader.their_state is h11.SWITCHED_PROTOCOL:
            if event.status_code == 101 and self._sending.open:
                # RFC 9110 §7.8: the request must be complete first. Its rest would be read as the new protocol's bytes.
                raise h11.RemoteProtocolError("it switched protocols in the middle of the request")
            self._receiving.move(RECEIVE_TUNNEL)
            events.append(ResponseReceived(exchange, head, tunnel=True))
            leading = reader.trailing_data[0]
            if leading:
                events.append(BodyReceived(exchange, leading, len(leading)))
            self._reader = None
        elif isinstance(event, h11.InformationalResponse):
            events.append(InformationalReceived(exchange, head))
        else:
            length, encoded = None, False
            for name, value in headers:
                lower = name.lower()
                if lower == b"content-length":
                    length = int(value)  # (h11 has checked that it is a number)
                elif lower == b"transfer-encoding":
                    encoded = True
                elif lower == b"keep-alive":
                    self.kept_idle = kept_idle(value)
            if encoded and length is not None:
                # RFC 9112 §6.3: "ought to be handled as an error", for it may be an attempt at response splitting.
                raise h11.RemoteProtocolError("both Transfer-Encoding and Content-Length")
            said = options(headers, b"connection")
            if event.http_version < b"1.1":
                self._persists = False
                self.last_said = b"keep-alive" not in said  # RFC 9112 §9.3
            self._answered(head, events, close=b"close" in said)
            if self._receiving.method == b"HEAD" or event.status_code in (204, 304):
                self._to_come = 0
                if event.status_code == 204 and (length or encoded):
                    # RFC 9110 §8.6, RFC 9112 §6.1: a 204 must not say so. If content follows all the same, it would be
                    # read as the next response.
                    self._persists = False
            elif encoded:
                self._chunks = Chunks(self._judge)
            else:
                self._to_come = length
                self._persists = self._persists and length is not None  # else the connection ends the content
            self._reader = None
            self._take_content(memoryview(reader.trailing_data[0]), events)

    def _section(self, event: h11.InformationalResponse | h11.Response | h11.EndOfMessage) -> Headers:
        """A header or trailer section, checked for its size. (h11 limits a section only while it is incomplete.)"""
        import h11  # late, as above

        headers = event.headers.raw_items()
        limit = self._max_header_size
        if len(headers) > MAX_FIELDS:
            raise h11.RemoteProtocolError(TOO_MANY)
        if self._unparsed > limit and sum(len(name) + len(value) + 4 for name, value in headers) > limit:
            raise h11.RemoteProtocolError(f"a header section of more than {limit} bytes")
        return headers

    # Content

    def _take_content(self, data: memoryview, events: list[Event]) -> None:
        if self._chunks is not None:
            self._take_chunks(self._chunks, data, events)
        elif self._to_come is None:
            if data:
                events.append(BodyReceived(self._current, data, len(data)))
        else:
            size = len(data)
            if size > self._to_come:
                size = self._to_come
                self._surplus, data = bytes(data[size:]), data[:size]
            self._to_come -= size
            if size:
                events.append(BodyReceived(self._current, data, size))
            if not self._to_come:
                self._completed([], events)

    def _take_chunks(self, chunks: Chunks, data: memoryview, events: list[Event]) -> None:
        pieces: list[memoryview] = []
        try:
            chunks.take(data, pieces, _CHUNKS)
        except MalformedChunk as error:
            _add_body(self._current, pieces, events)
            self._broken(str(error), events)
            return
        _add_body(self._current, pieces, events)
        if chunks.ended:
            self._surplus = bytes(chunks.rest)
            self._completed([], events)
        elif chunks.judged is not None:
            self._chunks, self._reader = None, chunks.judged
            self._reader.receive_data(chunks.rest)  # type: ignore[arg-type]  # as above
            self._unparsed = len(chunks.rest)
            self._read(events)
        elif chunks.rest:
            self._left = chunks.rest

    def _judge(self) -> h11.Connection:
        """An h11 connection between two chunks."""
        judge = self._engine(b"GET")
        judge.receive_data(_CHUNKED)
        judge.next_event()
        return judge

    # Ends

    def _completed(self, trailers: Headers, events: list[Event]) -> None:
        """The response is complete."""
        events.append(ResponseCompleted(self._current, trailers))
        self._receiving.move(RECEIVE_ENDED)
        if not self.followed and self.surplus:
            # The server sent more than was asked for. It would be read as the next response.
            self.must_abort = True
        if not self._sending.open:
            self._finish()
            if self._leaving:
                events.append(PeerLeaving())

    def _finish(self) -> None:
        """Both halves are complete."""
        self._current = 0
        if self._receiving.tunnel or self.must_abort or not self._persists:
            self._leaving = True

    def _words(self, error: h11.RemoteProtocolError) -> str:
        if error.error_status_hint == 431:  # (h11's own words are about its receive buffer)
            return f"a head, or a line, of more than {self._max_header_size} bytes"
        illegal = _ILLEGAL_LINE.match(str(error))  # h11 quotes the whole line, and its value may be a secret
        return f"an illegal line of the header {illegal[1]}" if illegal is not None else shown(str(error))

    def _broken(self, how: str, events: list[Event], missing: Missing | None = None) -> None:
        exchange, self._current = self._current, 0
        self.must_abort = True
        events.append(ExchangeFailed(exchange, _error(how, missing)))


def no_response() -> RemoteProtocolError:
    """The error about an end in place of a response."""
    return RemoteProtocolError("the server ended the connection without a response", missing="response")


def _error(how: str, missing: Missing | None) -> RemoteProtocolError:
    return RemoteProtocolError(f"the server broke HTTP/1.1: {how}", missing=missing)


def _add_body(exchange: int, pieces: Sequence[bytes | bytearray | memoryview], events: list[Event]) -> None:
    if pieces:
        data = memoryview(pieces[0]) if len(pieces) == 1 else b"".join(pieces)
        events.append(BodyReceived(exchange, data, len(data)))
