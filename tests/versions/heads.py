"""The same head through all three backends, without a network: what a server of each version sees, in common terms."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import h11
from h2.settings import SettingCodes
from hpack import Decoder as HpackDecoder
from hpack.huffman_table import decode_huffman
from hyperframe.frame import ContinuationFrame, Frame, HeadersFrame
from pylsqpack import Decoder as QpackDecoder

from allswell._backends import http3_frames as h3
from allswell._backends.http1 import Http1
from allswell._backends.http3 import Http3
from allswell._backends.interface import (
    BodyReceived,
    Event,
    ExchangeFailed,
    InformationalReceived,
    ResponseCompleted,
    ResponseReceived,
)
from allswell._backends.literals import integer, string
from allswell._errors import LocalProtocolError, RemoteProtocolError
from allswell._messages import Headers, RequestHead
from allswell._quic import varint
from allswell._quic.interface import StreamDataReceived
from tests.backends import h2_peer, h3_peer
from tests.support.taken import taken

VERSIONS = ("h1", "h2", "h3")

#: What HTTP/1.1 says about its connection (RFC 9110 §7.6.1), which the other versions leave out.
_HOP_BY_HOP = {
    b"connection",
    b"http2-settings",
    b"keep-alive",
    b"proxy-connection",
    b"transfer-encoding",
    b"upgrade",
}


class Seen(NamedTuple):
    """A request as a server understands it.

    :ivar fields: names in lower case, sorted by them; those of one name in their order.
    """

    method: bytes
    scheme: bytes
    authority: bytes
    path: bytes
    protocol: bytes
    fields: Headers
    trailers: Headers


#: That the head, or the trailer section, was refused, and nothing was sent of it.
Refused = str


def _sorted(fields: Headers) -> Headers:
    return sorted(fields, key=lambda field: field[0])


def _from_pseudo(section: Headers, trailers: Headers) -> Seen:
    pseudo = {name: value for name, value in section if name.startswith(b":")}
    assert len(pseudo) == sum(name.startswith(b":") for name, _ in section)
    assert all(name.startswith(b":") for name, _ in section[: len(pseudo)]), "pseudo-header fields come first"
    fields = [field for field in section if not field[0].startswith(b":")]
    names = (b":method", b":scheme", b":authority", b":path", b":protocol")
    assert set(pseudo) <= set(names)
    method, scheme, authority, path, protocol = (pseudo.get(name, b"") for name in names)
    return Seen(method, scheme, authority, path, protocol, _sorted(fields), _sorted(trailers))


def h1_sees(head: RequestHead, trailers: Headers | None = None) -> Seen | Refused:
    """What h11's server side sees."""
    client = Http1(max_header_size=100_000)
    try:
        exchange = client.open(head, end=trailers is None)
    except LocalProtocolError as error:
        assert client.take_output() == b""
        assert (client.must_abort, client.capacity()) == (False, 1)
        return str(error)
    if trailers is not None:
        try:
            client.send_body(exchange, b"", end=True, trailers=trailers)
        except LocalProtocolError as error:
            return str(error)
    server = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    server.receive_data(bytes(client.take_output()))
    request, after = server.next_event(), server.next_event()
    assert isinstance(request, h11.Request), request
    fields = list(request.headers)
    [authority] = [value for name, value in fields if name == b"host"]
    scheme, path = head.scheme, request.target
    if request.method == b"CONNECT":
        assert authority == path
        scheme = path = b""
    elif not path.startswith(b"/") and path != b"*":
        scheme, _, rest = path.partition(b"://")
        named, slash, path = rest.partition(b"/")
        assert named == authority  # RFC 9112 §3.2.2
        path = slash + path or (b"*" if request.method == b"OPTIONS" else b"/")
    nominated = {
        option.strip() for name, value in fields if name == b"connection" for option in value.lower().split(b",")
    }
    gone = (nominated - {b"content-length", b"te"}) | _HOP_BY_HOP | {b"host"}
    kept = []
    for name, value in fields:
        if name == b"te":
            if b"trailers" in [option.strip() for option in value.lower().split(b",")]:
                kept.append((name, b"trailers"))
        elif name not in gone:
            kept.append((name, value))
    last = list(after.headers) if isinstance(after, h11.EndOfMessage) else []
    return Seen(request.method, scheme, authority, path, b"", _sorted(kept), _sorted(last))


def h2_sees(head: RequestHead, trailers: Headers | None = None) -> Seen | Refused:
    """What hpack decodes."""
    link = h2_peer.Link(settings={SettingCodes.ENABLE_CONNECT_PROTOCOL: 1})
    try:
        exchange = link.client.open(head, end=trailers is None)
    except LocalProtocolError as error:
        assert link.client.take_output() == b""
        assert link.request() == 1
        return str(error)
    if trailers is not None:
        try:
            link.client.send_body(exchange, b"", end=True, trailers=trailers)
        except LocalProtocolError as error:
            return str(error)
    sections = h2_sections(link, HpackDecoder())
    return _from_pseudo(sections[0], sections[1] if len(sections) > 1 else [])


def h2_sections(link: h2_peer.Link, decoder: HpackDecoder) -> list[Headers]:
    """The sections in the client's output."""
    sections: list[Headers] = []
    block = b""
    for frame in link.output_frames():
        if isinstance(frame, (HeadersFrame, ContinuationFrame)):
            block += frame.data
            if "END_HEADERS" in frame.flags:
                sections.append([(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)])
                block = b""
    return sections


def h3_sees(head: RequestHead, trailers: Headers | None = None) -> Seen | Refused:
    """What ls-qpack decodes."""
    link = H3Link()
    try:
        exchange = link.client.open(head, end=trailers is None)
    except LocalProtocolError as error:
        assert 0 not in link.quic.sent
        return str(error)
    if trailers is not None:
        try:
            link.client.send_body(exchange, b"", end=True, trailers=trailers)
        except LocalProtocolError as error:
            return str(error)
    sections = link.sections(exchange)
    return _from_pseudo(sections[0], sections[1] if len(sections) > 1 else [])


class H3Link:
    """A backend whose peer allows a dynamic table, and decodes with it.

    :ivar inserted: what has entered that table, as the encoder stream says.
    """

    def __init__(self) -> None:
        self.quic = h3_peer.Quic(handshake_complete=True)
        self.client = Http3(self.quic)
        self._decoder = QpackDecoder(4096, 100)
        self._read = 0
        self.inserted: Headers = []
        self.raw: list[bytes] = []
        settings = {h3.ENABLE_CONNECT_PROTOCOL: 1, h3.QPACK_MAX_TABLE_CAPACITY: 4096, h3.QPACK_BLOCKED_STREAMS: 100}
        self.say(3, varint.encode(h3.CONTROL_STREAM) + h3.settings(settings))

    def say(self, stream: int, data: bytes, *, end: bool = False) -> list[Event]:
        """Bytes on a stream."""
        event = StreamDataReceived(data=data, end_stream=end, stream_id=stream)
        return taken(self.client, [event])

    def sections(self, stream: int) -> list[Headers]:
        """The sections that the client has sent there."""
        instructions = next((data for data in self.quic.sent.values() if data[:1] == b"\x02"), b"\x02")[1:]
        self._decoder.feed_encoder(instructions[self._read :])
        self._read = len(instructions)
        self.inserted = qpack_insertions(instructions)
        frames = h3.FrameReader(frozenset(), 1 << 20).feed(self.quic.sent[stream])
        self.raw = [payload for kind, payload in frames if kind == h3.HEADERS]
        return [self._decoder.feed_header(stream, payload)[1] for payload in self.raw]


def qpack_insertions(instructions: bytes) -> Headers:
    """The names (of literals, else ``b""``) and values that an encoder stream puts into the table (RFC 9204 §4.3)."""
    inserted: Headers = []
    position = 0

    def integer(bits: int) -> int:
        nonlocal position
        most = (1 << bits) - 1
        value = instructions[position] & most
        position += 1
        if value == most:
            shift = 0
            while True:
                byte = instructions[position]
                position += 1
                value += (byte & 0x7F) << shift
                shift += 7
                if not byte & 0x80:
                    break
        return value

    def string(bits: int) -> bytes:
        nonlocal position
        huffman = instructions[position] & (1 << bits)
        size = integer(bits)
        text = instructions[position : position + size]
        position += size
        return bytes(decode_huffman(text)) if huffman else text

    while position < len(instructions):
        first = instructions[position]
        if first & 0x80:  # with a name's index
            integer(6)
            inserted.append((b"", string(7)))
        elif first & 0x40:  # with a literal name
            name = string(5)
            inserted.append((name, string(7)))
        else:  # capacity, or a duplicate
            integer(5)
    return inserted


SEES: dict[str, Callable[..., Seen | Refused]] = {"h1": h1_sees, "h2": h2_sees, "h3": h3_sees}


# Responses


class Answer(NamedTuple):
    """A response as the requester gets it.

    :ivar outcome: ``"complete"``, ``"open"``, ``"malformed"``.
    :ivar error: what the error says, then.
    """

    outcome: str
    informational: list[tuple[int, Headers]]
    status: int
    fields: Headers
    body: bytes
    trailers: Headers
    error: str = ""


def _answer(events: list[Event]) -> Answer:
    outcome, status, informational = "open", 0, []
    fields, body, trailers = Headers(), b"", Headers()
    for event in events:
        if isinstance(event, InformationalReceived):
            informational.append((event.head.status, _lower(event.head.headers)))
        elif isinstance(event, ResponseReceived):
            status, fields = event.head.status, _lower(event.head.headers)
        elif isinstance(event, BodyReceived):
            body += event.data
        elif isinstance(event, ResponseCompleted):
            outcome, trailers = "complete", _lower(event.trailers)
        elif isinstance(event, ExchangeFailed):
            assert isinstance(event.error, RemoteProtocolError)
            return Answer("malformed", [], 0, [], b"", [], str(event.error))
    return Answer(outcome, informational, status, fields, body, trailers)


def _lower(fields: Headers) -> Headers:
    return [(name.lower(), value) for name, value in fields]


def _request(method: bytes) -> RequestHead:
    target = b"origin:443" if method == b"CONNECT" else b"/"
    return RequestHead(method, b"https", b"example.org", target, [])


def h1_answers(
    status: bytes,
    fields: Headers,
    body: bytes,
    trailers: Headers,
    method: bytes,
    informational: Headers | None,
    limit: int = 10_000,
) -> Answer:
    """What Http1 makes of it."""
    client = Http1(max_header_size=limit)
    client.open(_request(method), end=True)

    def lines(section: Headers) -> bytes:
        return b"".join(b"%s: %s\r\n" % field for field in section)

    wire = b"" if informational is None else b"HTTP/1.1 103 Early\r\n%s\r\n" % lines(informational)
    framed = any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in fields)
    coded = b"" if framed else b"Transfer-Encoding: chunked\r\n"
    wire += b"HTTP/1.1 %s Reason\r\n%s%s\r\n" % (status, lines(fields), coded)
    if coded and method != b"HEAD" and status not in (b"204", b"304"):
        wire += (b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + b"0\r\n%s\r\n" % lines(trailers)
    else:
        wire += body
    events = taken(client, memoryview(wire))
    answer = _answer(events)
    return answer._replace(fields=[field for field in answer.fields if field[0] != b"transfer-encoding"])


def h2_answers(
    status: bytes,
    fields: Headers,
    body: bytes,
    trailers: Headers,
    method: bytes,
    informational: Headers | None,
    limit: int = 10_000,
) -> Answer:
    """What Http2 makes of it."""
    link = h2_peer.Link(max_header_size=limit)
    exchange = link.request(_request(method))
    frames: list[Frame] = []
    if informational is not None:
        frames.append(link.headers(exchange, [(b":status", b"103"), *informational]))
    end = ["END_STREAM"]
    frames.append(link.headers(exchange, [(b":status", status), *fields], *end * (not body and not trailers)))
    if body:
        frames.append(h2_peer.data(exchange, body, *end * (not trailers)))
    if trailers:
        frames.append(link.headers(exchange, trailers, *end))
    return _answer(link.deliver(b"".join(frame.serialize() for frame in frames)))


def h3_answers(
    status: bytes,
    fields: Headers,
    body: bytes,
    trailers: Headers,
    method: bytes,
    informational: Headers | None,
    limit: int = 10_000,
) -> Answer:
    """What Http3 makes of it."""
    link = h3_peer.Link()
    link.client = Http3(link.quic, max_header_size=limit)
    exchange = link.client.open(_request(method), end=True)

    def section(headers: Headers) -> bytes:
        """In literals (RFC 9204 §4.5.6): ls-qpack's encoder has scruples."""
        lines = (integer(len(name), 3, 0x20) + name + string(value) for name, value in headers)
        return h3.frame(h3.HEADERS, b"\0\0" + b"".join(lines))

    wire = b"" if informational is None else section([(b":status", b"103"), *informational])
    wire += section([(b":status", status), *fields])
    wire += h3.frame(h3.DATA, body) if body else b""
    wire += section(trailers) if trailers else b""
    return _answer(link.say(exchange, wire, end=True))


ANSWERS: dict[str, Callable[..., Answer]] = {"h1": h1_answers, "h2": h2_answers, "h3": h3_answers}
