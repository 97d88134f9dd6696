"""The HTTP/1.1 backend (RFC 9112), over h11: one exchange at a time. (`http1_pipeline.py` has several.)

h11 keeps the two halves of the exchange straight, and knows how far ours has gone. The peer's has a state of our own
(``_receiving``), for not all of it passes through h11. This file turns h11's events into ours, decides what an end of
the stream means (which depends on how far the response had got), and carries the raw bytes after an upgrade or CONNECT.

An HTTP/1.1 connection is reusable only when both halves of an exchange are complete and nothing lies behind the
response. An abandoned exchange, or bytes that nobody asked for, end it: they would be read as the next response.

h11 copies a body four times. So the rest of a long one whose length is known does not pass through it (``_rest``):
it is only counted, and the next exchange gets an h11 connection that has not missed anything.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from itertools import count

import h11
from h11._receivebuffer import ReceiveBuffer

from allswell._backends.http1_chunks import Chunks
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
from allswell._errors import AllswellError, LocalProtocolError, NotProcessed, RemoteProtocolError, shown
from allswell._fields import (
    MAX_FIELDS,
    TOO_MANY,
    HeaderSection,
    RequestSections,
    kept_idle,
    options,
    request_trailers,
)
from allswell._halves import Receive, ReceiveHalf
from allswell._messages import Headers, RequestHead, ResponseHead

#: There is no flow control above TCP; this only bounds the pieces that are copied at once.
_WINDOW = 256 * 1024

#: Of every response (RFC 9112 §2.3, §4). What begins otherwise (SSH, mail, TLS) is no HTTP, or not HTTP/1.
_BEGINNING = b"HTTP/1."
#: Reason phrases are told in errors and on terminals: no control characters (RFC 9112 §4).
_SHOWN = bytes(0x3F if byte < 0x20 or byte == 0x7F else byte for byte in range(256))

#: The rest of a body that is worth the trouble of going past h11.
_LONG = 64 * 1024

_ILLEGAL_LINE = re.compile(r"illegal header line: bytearray\(b.([!#$%&'*+\-.^_`|~0-9A-Za-z]{,64})")

#: Of requests without a body; and what h11 calls our half when it is over.
_END = h11.EndOfMessage()
_SENT = (h11.DONE, h11.MUST_CLOSE)

#: Plain chunks that are taken in one call: each costs a fraction of what :data:`WORK` counts.
_CHUNKS = 4 * WORK
#: Of an exchange whose response is chunked.
_ANY = h11.Request(method=b"GET", target=b"/", headers=[(b"Host", b"any")])
_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def _form(section: HeaderSection) -> h11.Request:
    """Any request with this header section, which h11 has checked too. (That costs 10 µs, so it is remembered.)"""
    return h11.Request(method=b"GET", target=b"/", headers=section.fields)


class Requests(RequestSections[h11.Request]):
    """The header sections that one connection's requests had."""

    def __init__(self) -> None:
        super().__init__(_form)


class _Lines(ReceiveBuffer):
    """What h11 reads. The section that it takes from there has so many fields at most."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        lines = super().maybe_extract_lines()
        if lines is not None and len(lines) > MAX_FIELDS + 1:  # the first may be the status line
            raise h11.RemoteProtocolError(TOO_MANY)
        return lines


class Engine(h11.Connection):
    """h11 in the client's role. (Its buffer is a private name that we rely on: see the canary.)"""

    def __init__(self, max_header_size: int) -> None:
        super().__init__(h11.CLIENT, max_incomplete_event_size=max_header_size)
        self._receive_buffer = _Lines()


class Http1:
    """One HTTP/1.1 connection.

    :param max_header_size: bytes of a response's head that are accepted, and of a trailer section.
    :param numbers: the exchanges' numbers, from 1 for a connection's first; shared by those that are pipelined.
    :param requests: shared likewise.
    :ivar followed: another request was sent behind this one: what lies behind the response is that one's.
    """

    name = "h1"
    http_version = "HTTP/1.1"
    capacity_expected = False
    in_order = True
    back_pressure = BackPressure.READING
    says_goodbye = ""

    def __init__(
        self, *, max_header_size: int, numbers: Iterator[int] | None = None, requests: Requests | None = None
    ) -> None:
        self._max_header_size = max_header_size
        self._requests = requests or Requests()
        self._h11 = self._engine()
        self._output: list[bytes] = []
        self._numbers = numbers or count(1)
        self._current = 0  # the exchange that is open; 0 for none
        self._chunked = False  # the request's content is
        self._unparsed = 0  # bytes given to h11 that may belong to the section that it reads, or a few more
        self._begun = b""  # the first bytes of the response
        self._receiving = ReceiveHalf(b"")  # of the last request
        self._leaving = False
        self._length: int | None = None  # of the response's body, where it is known, less what h11 gave us of it
        self._rest = 0  # what of it does not go through h11
        self._surplus = b""  # and what came behind it
        self._chunks: Chunks | None = None  # of the response, where it is they that read it
        self._reader: h11.Connection | None = self._h11  # what reads the response; None: its end was read otherwise
        self._left: memoryview | None = None  # input that was not acted on yet
        self._more = False  # there may be more events in what was read
        self.followed = False
        self.must_abort = False
        self.kept_idle = math.inf

    def _engine(self) -> h11.Connection:
        return Engine(self._max_header_size)

    # Requests

    def capacity(self) -> int:
        return 0 if self._current or self.spent else 1

    @property
    def spent(self) -> bool:
        return self._leaving or self.must_abort

    def open(self, head: RequestHead, *, end: bool) -> int:
        if not self.capacity():
            raise NotProcessed(RemoteProtocolError("the connection takes no more requests"), proven=True)
        if head.protocol is not None:
            raise LocalProtocolError("HTTP/1.1 has no extended CONNECT (RFC 8441)")
        section = self._requests.section(head, end=end)
        # RFC 9112 §3.2.3: to CONNECT, the target is the authority. §3.2.2: to a proxy, a whole URI.
        target = section.absolute_form if section.absolute else section.target or section.authority
        request = h11.Request(method=head.method, target=target, headers=section.fields.headers)
        self._chunked = section.chunked
        self._current = next(self._numbers)
        self._receiving = ReceiveHalf(head.method)
        self._begun, self._unparsed = b"", 0
        self._reader = self._h11
        self._length, self._rest, self._surplus = None, 0, b""
        self._send(request)
        if end:
            self._send(_END)
        return self._current

    def send_body(self, exchange: int, data: bytes, *, end: bool, trailers: Headers | None = None) -> None:
        if exchange != self._current:
            return
        if self._receiving.tunnel:
            if data:
                self._output.append(data)
            if end:
                self._finish()
            return
        last = request_trailers(trailers) if trailers else []
        if last and not self._chunked:
            raise LocalProtocolError("in HTTP/1.1 trailers follow chunked content only (RFC 9112 §7.1.2)")
        if data:
            self._send(h11.Data(data=data))
        if end:
            self._send(h11.EndOfMessage(headers=last) if last else _END)
            if self._receiving.over:
                self._finish()

    def send_window(self, exchange: int) -> int:
        return _WINDOW if exchange == self._current else 0

    def unsent(self, exchange: int) -> int:
        return 0

    def consumed(self, exchange: int, credit: int) -> None:
        """Nothing to tell the peer: reading on is what lets it send on."""

    def cancel(self, exchange: int) -> None:
        if exchange and exchange == self._current:
            self.must_abort = True

    def stop(self, exchange: int) -> None:
        self.cancel(exchange)  # half a request is out

    def goodbye(self) -> None:
        self._leaving = True

    def ping(self) -> bool:
        return False

    def take_output(self) -> bytes:
        output = self._output
        if not output:
            return b""
        data = output[0] if len(output) == 1 else b"".join(output)
        output.clear()
        return data

    def _send(self, event: h11.Request | h11.Data | h11.EndOfMessage) -> None:
        try:
            self._output.extend(self._h11.send_with_data_passthrough(event) or ())
        except h11.LocalProtocolError as error:
            # h11 is in its error state now, and half a request may be on its way.
            self.must_abort = True
            raise LocalProtocolError(f"cannot send this request: {error}") from error

    # For pipelines

    @property
    def exchange(self) -> int:
        """The exchange that is open; 0 for none."""
        return self._current

    @property
    def may_be_followed(self) -> bool:
        """Whether a request may follow the one that is open: it was sent, and ends or changes nothing when answered."""
        return self._h11.our_state is h11.DONE

    @property
    def surplus(self) -> bytes:
        """What came behind the response."""
        return self._surplus or (self._reader.trailing_data[0] if self._reader is not None else b"")

    # Responses

    def receive(self, data: memoryview) -> list[Event]:
        if self._receiving.state is Receive.TUNNEL:
            return [BodyReceived(self._current, bytes(data), len(data))]
        if not self._current:
            # Nobody asked: a 408 before the server closes, at best (RFC 9112 §9.5), or smuggling. Not ours to read.
            self._leaving = True
            return [PeerLeaving(RemoteProtocolError("the server spoke without being asked"))]
        if self._receiving.over:
            # While we still upload, more than one response: it would be read as the next request's.
            self.must_abort = True
            return []
        if self._rest:
            return self._receive_rest(data)
        if self._chunks is not None:
            events = self._take_chunks(data)
            if self._left is not None:
                self._left = memoryview(bytes(self._left))  # the buffer is not ours
            return events
        if len(self._begun) < len(_BEGINNING):
            self._begun += data[: len(_BEGINNING) - len(self._begun)]
            if not _BEGINNING.startswith(self._begun):  # h11 would wait for the end of a head that never comes
                return self._broken(f"its answer begins with {self._begun!r}")
        assert self._reader is not None
        self._reader.receive_data(data)  # type: ignore[arg-type]  # h11 appends it to a bytearray: any buffer will do
        self._unparsed += len(data)
        events = self._read()
        if events:
            self._unparsed = len(data)  # what h11 still has came with the last event
        return events

    @property
    def unfinished(self) -> bool:
        return self._more or self._left is not None

    def go_on(self) -> list[Event]:
        if self._left is not None:
            left, self._left = self._left, None
            return self._take_chunks(left)
        return self._read() if self._more else []

    def _read(self) -> list[Event]:
        """What h11 reads."""
        self._more = False
        events = self._events()
        if self._chunks is not None:
            rest = self._h11.trailing_data[0]
            if rest:
                events += self._take_chunks(memoryview(rest))
        elif not self._more and self._length is not None and self._length >= _LONG and self._current:
            self._rest, self._length = self._length, None
        return events

    def _take_chunks(self, data: memoryview) -> list[Event]:
        chunks, exchange = self._chunks, self._current
        assert chunks is not None
        events: list[Event] = []
        pieces: list[memoryview] = []
        failed: list[Event] = []
        try:
            chunks.take(data, pieces, _CHUNKS)
        except h11.RemoteProtocolError as error:
            failed = self._broken(self._words(error))
        if pieces:
            events.append(_body(exchange, pieces))
        events += failed
        if failed:
            return events
        if chunks.ended:
            self._chunks, self._reader, self._surplus = None, None, bytes(chunks.rest)
            events.append(ResponseCompleted(exchange, []))
            self._completed(events)
        elif chunks.judged is not None:
            self._chunks, self._reader = None, chunks.judged
            self._reader.receive_data(chunks.rest)  # type: ignore[arg-type]  # as above
            self._unparsed = len(chunks.rest)
            events += self._read()
        elif chunks.rest:
            self._left = chunks.rest
        return events

    def _judge(self) -> h11.Connection:
        """An h11 connection between two chunks."""
        judge = self._engine()
        judge.send(_ANY)
        judge.send(_END)
        judge.receive_data(_CHUNKED)
        judge.next_event()
        return judge

    def _receive_rest(self, data: memoryview) -> list[Event]:
        exchange, size = self._current, min(len(data), self._rest)
        self._rest -= size
        events: list[Event] = [BodyReceived(exchange, bytes(data[:size]), size)]
        if not self._rest:
            self._surplus = bytes(data[size:])
            events.append(ResponseCompleted(exchange, []))
            self._completed(events)
        return events

    def receive_eof(self, why: AllswellError | None) -> list[Event]:
        self._leaving = True
        exchange = self._current
        if not exchange:
            return [PeerLeaving(why)]
        receiving = self._receiving
        if receiving.tunnel and why is None:
            receiving.move(Receive.ENDED)
            return [ResponseCompleted(exchange, [])]  # our half of it is still open
        if self._rest and why is None:
            why = RemoteProtocolError(f"the server broke HTTP/1.1: it ended the body {self._rest} bytes too early")
        if self._chunks is not None and why is None:
            why = RemoteProtocolError("the server broke HTTP/1.1: it ended the body within its chunks")
        if self._reader is not None and not receiving.tunnel and why is None and self._begun:
            self._reader.receive_data(b"")
            return self._events()
        self.must_abort = True
        self._current = 0
        cause = why or RemoteProtocolError("the server ended the connection without a response")
        if not self._begun and exchange > 1:
            # RFC 9112 §9.3.1: it may have closed the idle connection before it saw the request. Or it may not.
            return [ExchangeFailed(exchange, NotProcessed(cause, proven=False))]
        if receiving.over:
            return []  # the response is whole; only our upload was cut
        return [ExchangeFailed(exchange, cause)]

    def _events(self) -> list[Event]:
        events: list[Event] = []
        body: list[bytearray] = []
        exchange = self._current
        assert self._reader is not None
        next_event, work = self._reader.next_event, WORK
        try:
            while True:
                if work <= 0:
                    self._more = True
                    if body:
                        events.append(self._content(exchange, body))
                    break
                work -= 1
                event = next_event()
                kind = type(event)
                if kind is h11.Data:
                    body.append(event.data)  # type: ignore[union-attr]  # narrowed by kind, which mypy does not follow
                    continue
                if body:
                    events.append(self._content(exchange, body))
                    body = []
                if event is h11.NEED_DATA or event is h11.PAUSED or kind is h11.ConnectionClosed:
                    break
                if isinstance(event, h11.EndOfMessage):
                    events.append(ResponseCompleted(exchange, self._section(event)))
                    self._completed(events)
                    break
                assert isinstance(event, (h11.InformationalResponse, h11.Response))
                self._head(event, events)
                work -= len(event.headers) >> 2
                if self._receiving.tunnel or self._chunks is not None:
                    break
        except h11.RemoteProtocolError as error:
            if body:
                events.append(_body(exchange, body))
            events += self._broken(self._words(error))
        return events

    def _content(self, exchange: int, pieces: list[bytearray]) -> BodyReceived:
        piece = _body(exchange, pieces)
        if self._length is not None:
            self._length -= piece.credit
        return piece

    def _words(self, error: h11.RemoteProtocolError) -> str:
        if error.error_status_hint == 431:  # (h11 speaks of its receive buffer then)
            return f"a head, or a line, of more than {self._max_header_size} bytes"
        illegal = _ILLEGAL_LINE.match(str(error))  # which h11 quotes with its value
        return f"an illegal line of the header {illegal[1]}" if illegal is not None else shown(str(error))

    def _broken(self, how: str) -> list[Event]:
        exchange, self._current = self._current, 0
        self.must_abort = True
        return [ExchangeFailed(exchange, RemoteProtocolError(f"the server broke HTTP/1.1: {how}"))]

    def _section(self, event: h11.InformationalResponse | h11.Response | h11.EndOfMessage) -> Headers:
        """A header or trailer section. (h11 bounds those that are incomplete, not what completes one.)"""
        headers = event.headers.raw_items()
        limit = self._max_header_size
        if len(headers) > MAX_FIELDS:
            raise h11.RemoteProtocolError(TOO_MANY)
        if self._unparsed > limit and sum(len(name) + len(value) + 4 for name, value in headers) > limit:
            raise h11.RemoteProtocolError(f"a header section of more than {limit} bytes")
        return headers

    def _head(self, event: h11.InformationalResponse | h11.Response, events: list[Event]) -> None:
        headers = self._section(event)
        head = ResponseHead(event.status_code, headers, b"HTTP/" + event.http_version, event.reason.translate(_SHOWN))
        exchange = self._current
        if self._h11.their_state is h11.SWITCHED_PROTOCOL:
            self._receiving.move(Receive.TUNNEL)
            events.append(ResponseReceived(exchange, head, tunnel=True))
            leading = self._h11.trailing_data[0]
            if leading:
                events.append(BodyReceived(exchange, leading, len(leading)))
        elif isinstance(event, h11.InformationalResponse):
            events.append(InformationalReceived(exchange, head))
        else:
            length, encoded = None, False
            for name, value in headers:
                lower = name.lower()
                if lower == b"content-length":
                    length = int(value)  # (h11 has seen to it that it is one)
                elif lower == b"transfer-encoding":
                    encoded = True
                elif lower == b"keep-alive":
                    self.kept_idle = kept_idle(value)
            if encoded and length is not None:
                # RFC 9112 §6.3: "ought to be handled as an error", for it may be an attempt at response splitting.
                raise h11.RemoteProtocolError("both Transfer-Encoding and Content-Length")
            self._receiving.move(Receive.BODY)
            events.append(ResponseReceived(exchange, head))
            ours = self._h11.our_state
            if length is not None and ours in _SENT and self._h11.their_state is h11.SEND_BODY:
                self._length = length  # (else h11 has to see it all, to keep the two halves in step)
            elif (
                encoded and ours in _SENT and event.status_code not in (204, 304) and self._receiving.method != b"HEAD"
            ):
                self._chunks = Chunks(self._judge)
            if ours is h11.SEND_BODY and b"close" in options(headers, b"connection"):
                # RFC 9112 §9.6: it reads no more. Half a request is out, so the connection ends with this exchange.
                events.append(UploadRefused(exchange))

    def _completed(self, events: list[Event]) -> None:
        self._receiving.move(Receive.ENDED)
        if not self.followed and self.surplus:
            # More than was asked for: the next response on this connection would be forged.
            self.must_abort = True
        if self._h11.our_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED):
            self._finish()
            if self._leaving:
                events.append(PeerLeaving())

    def _finish(self) -> None:
        """Both halves are complete."""
        self._current = 0
        if self._receiving.tunnel or self.must_abort:
            self._leaving = True
        elif self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
        elif self._h11.our_state is h11.DONE and self._h11.their_state is h11.SEND_BODY:
            self._h11 = self._engine()  # the body, or its end, went past this one
        else:
            self._leaving = True  # Connection: close, HTTP/1.0, or a body that ended with the stream


def _body(exchange: int, pieces: Sequence[bytearray | memoryview]) -> BodyReceived:
    data = bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)
    return BodyReceived(exchange, data, len(data))
