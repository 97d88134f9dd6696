"""The short way of HTTP/1.1 against h11: what the one reads, the other reads too, and as the same."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from itertools import pairwise
from random import Random
from typing import NamedTuple

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allswell._backends.http1 import Http1, Memory
from allswell._backends.http1_pipeline import Http1Pipeline
from allswell._backends.http1_short import Heads
from allswell._backends.interface import BodyReceived, Event, ExchangeFailed, PeerLeaving, ResponseReceived
from allswell._fields import OF_THE_CLIENT
from allswell._messages import RequestHead, ResponseHead
from tests.support.taken import content, taken


class _NoHeads(Heads):
    """Takes no head for ordinary."""

    def read(self, data: bytes, method: bytes) -> ResponseHead | None:
        return None


def request(method: bytes = b"GET", *headers: tuple[bytes, bytes]) -> RequestHead:
    target = b"b:443" if method == b"CONNECT" else b"/"
    return RequestHead(method, b"http", b"a", target, [(b"Host", b"a"), *headers])


REQUESTS = [
    (request(), True),
    (request(b"HEAD"), True),
    (request(b"POST", (b"Content-Length", b"5")), False),
    (request(b"POST", (b"Transfer-Encoding", b"chunked")), False),
    (request(b"GET", (b"Connection", b"close")), True),
    (request(b"GET", (b"Connection", b"upgrade"), (b"Upgrade", b"x")), True),
    (request(b"CONNECT"), True),
]


# Heads as servers send them

REAL = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    b'HTTP/1.1 200 OK\r\nAlt-Svc: h3=":443"; ma=2592000\r\nContent-Length: 2\r\nContent-Type: application/json\r\n'
    b'Etag: "1f"\r\nServer: Caddy\r\nDate: Fri, 27 Nov 2026 18:10:58 GMT\r\n\r\n{}',
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.24.0\r\nDate: Fri, 27 Nov 2026 18:10:58 GMT\r\nContent-Type: text/html\r\n"
    b"Content-Length: 3\r\nLast-Modified: Fri, 27 Nov 2026 00:00:00 GMT\r\nConnection: keep-alive\r\nVary: a\r\n"
    b'ETag: "65-3"\r\nAccept-Ranges: bytes\r\n\r\nabc',
    b"HTTP/1.1 404 Not Found\r\nDate: Fri, 27 Nov 2026 18:10:58 GMT\r\nServer: Apache/2.4.57 (Debian)\r\n"
    b"Keep-Alive: timeout=5, max=100\r\nConnection: Keep-Alive\r\nContent-Length: 4\r\n\r\nnone",
    b"HTTP/1.1 302 Found\r\nLocation: /a?b=c\r\nSet-Cookie: a=1; Path=/\r\nSet-Cookie: b=2; HttpOnly\r\n"
    b"Connection: close\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nX-Request-Id: 4711\r\n\r\n",
    b'HTTP/1.1 304 Not Modified\r\nETag: "65-3"\r\nContent-Length: 3\r\n\r\n',
    b"HTTP/1.1 200\r\ncontent-length:1\r\nx-\xfe: \xe9\x7f\r\n\r\n.",
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na",
    b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na",
    b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nraw",
]

# Heads as nobody should

NAMES = [b"X", b"content-length", b"Transfer-Encoding", b"Connection", b"Keep-Alive", b"a b", b"", b"X\0", b"\xff"]
VALUES = [
    *(b"", b"5", b"05", b"5, 5", b"5,6", b"+5", b"5 ", b"\t5", b"9" * 19, b"9" * 21, b"\xd9\xa5"),
    *(b"chunked", b"Chunked", b"chunked, gzip", b"close", b"Close", b"keep-alive", b"keep-alive, close", b"upgrade"),
    *(b"timeout=5", b"a b", b"a\tb", b"a\0b", b"a\vb", b"\x01\x7f", b"\xff", b"a\rb", b"a\nb", b"a\r", b"y" * 300),
]
STATUS_LINES = [
    *(b"HTTP/1.1 200 OK", b"HTTP/1.1 204 No", b"HTTP/1.1 304 No", b"HTTP/1.1 404 ", b"HTTP/1.1 500", b"HTTP/1.1 599 x"),
    *(b"HTTP/1.0 200 OK", b"HTTP/1.2 200 OK", b"HTTP/1.1 100 Go on", b"HTTP/1.1 101 X", b"HTTP/1.1 600 X"),
    *(b"HTTP/1.1 200 a\tb", b"HTTP/1.1 200 \x01\x7f", b"HTTP/1.1 200  O ", b"HTTP/1.1 2000", b"HTTP/1.1  200", b"H"),
    *(b"HTTP/1.1 200 \xe9", b"HTTP/1.1 200 O\0K", b"http/1.1 200 OK", b"\r\nHTTP/1.1 200 OK", b"HTTP/1.1 099 X", b""),
]
ENDS = st.sampled_from([b"\r\n"] * 20 + [b"\n", b"\r", b"\r\r\n", b"\r\n ", b"\r\n\r\n", b"\n\n", b""])
FRAMINGS = st.sampled_from(
    [b"", b"", b"Content-Length: 5\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"]
)
LINES = st.builds(
    lambda name, separator, value, end: name + separator + value + end,
    st.sampled_from(NAMES),
    st.sampled_from([b": "] * 8 + [b":", b":\t ", b" : ", b""]),
    st.sampled_from(VALUES),
    ENDS,
)
ODD = st.builds(
    lambda status, end, before, framing, after, last, content: (
        status + end + b"".join(before) + framing + b"".join(after) + last + content
    ),
    st.sampled_from(STATUS_LINES),
    ENDS,
    st.lists(LINES, max_size=2),
    FRAMINGS,
    st.lists(LINES, max_size=2),
    st.sampled_from([b"\r\n"] * 8 + [b"\n", b"", b"\r"]),
    st.sampled_from(
        [b"", b"hello", b"hell", b"hello!", b"5\r\nhello\r\n0\r\n\r\n", b"5;x\r\nhello\r\n0\r\nT: 1\r\n\r\n"]
    ),
)


def mutated(wire: bytes, seed: int) -> bytes:
    """The same with up to two bytes left out, put in, or changed."""
    random = Random(seed)
    for _ in range(random.randrange(3)):
        at = random.randrange(len(wire) + 1)
        byte = random.choice([b"", b"\r", b"\n", b" ", b"\t", b"\0", b":", b"0", b",", bytes((random.randrange(256),))])
        wire = wire[:at] + byte + wire[at + random.randrange(2) :]
    return wire


WIRES = st.builds(mutated, st.sampled_from(REAL), st.integers(0, 1 << 30)) | ODD


def cut(data: st.DataObject, wire: bytes) -> list[bytes]:
    """In one piece, in a few, or byte by byte."""
    cuts = data.draw(
        st.just([]) | st.lists(st.integers(0, len(wire)), max_size=3).map(sorted) | st.just(list(range(len(wire))))
    )
    return [wire[start:end] for start, end in pairwise([0, *cuts, len(wire)]) if start < end]


@pytest.mark.parametrize("added", [b"", b"Content-Encoding: gzip\r\n", b"SET-COOKIE2: a\r\n", b"X: \xff\r\n"])
@given(wire=WIRES)
def test_a_plain_head_has_the_same_fields_in_another_form(added: bytes, wire: bytes) -> None:
    """And only if the client need not look at them: whether its lines are new, or known from an earlier head."""
    heads = Heads()
    begin, line_end, rest = wire.partition(b"\r\n")
    for _ in range(2):
        head = heads.read(begin + line_end + added + rest, b"GET")
        if head is not None:
            fields = [(name, name.lower(), value) for name, value in head.headers]
            plain = all(lower not in OF_THE_CLIENT and (name + value).isascii() for name, lower, value in fields)
            assert head.plain == (fields if plain else None)


# The whole backend, with and without


class Outcome(NamedTuple):
    """What came of one exchange, and of its connection."""

    events: list[Event | str]
    must_abort: bool
    spent: bool
    capacity: int
    kept_idle: float


def seen(events: list[Event]) -> list[Event | str]:
    """Pieces of body that follow one another as one; errors as what they say."""
    found: list[Event | str] = []
    for event in events:
        last = found[-1] if found else None
        if isinstance(event, BodyReceived) and isinstance(last, BodyReceived):
            found[-1] = BodyReceived(last.exchange, content(last) + content(event), last.credit + event.credit)
        elif isinstance(event, ExchangeFailed | PeerLeaving):
            found.append(f"{type(event).__name__}: {event.error!r} {event.error}")
        else:
            found.append(event)
    return found


def played(backend: Http1 | Http1Pipeline, exchanges: list[tuple[RequestHead, bool, list[bytes]]]) -> Iterator[Outcome]:
    """Requests and their responses one after another, as far as the connection carries them; then the stream ends."""

    def outcome(events: list[Event]) -> Outcome:
        return Outcome(seen(events), backend.must_abort, backend.exhausted, backend.capacity(), backend.kept_idle)

    for head, end, pieces in exchanges:
        if not backend.capacity():
            break
        number = backend.open(head, end=end)
        events = []
        for piece in pieces:
            if not backend.must_abort:
                events += taken(backend, piece)
        if not end and not backend.must_abort:
            backend.send_body(number, b"hello", end=True)
        backend.take_output()
        yield outcome(events)
    if not backend.must_abort:
        yield outcome(backend.receive_eof(None))


@settings(max_examples=600, deadline=None)
@given(st.data(), st.lists(st.tuples(st.sampled_from(REQUESTS), WIRES), min_size=1, max_size=3))
def test_the_short_way_and_h11_are_of_one_mind(
    data: st.DataObject, exchanges: list[tuple[tuple[RequestHead, bool], bytes]]
) -> None:
    """The same events, the same errors, and the same verdict on the connection."""
    limit = data.draw(st.sampled_from([64 * 1024, 64 * 1024, 300, 60]))
    depth = data.draw(st.sampled_from([None, None, 2]))
    cuts = [(head, end, cut(data, wire)) for (head, end), wire in exchanges]

    def outcomes(memory: Memory) -> list[Outcome]:
        backend: Http1 | Http1Pipeline = Http1(max_header_size=limit, memory=memory)
        if depth is not None:
            backend = Http1Pipeline(depth=depth, max_header_size=limit, memory=memory)
        return list(played(backend, cuts))

    by_h11 = Memory()
    by_h11.responses = _NoHeads()
    assert outcomes(Memory()) == outcomes(by_h11)


@settings(max_examples=600, deadline=None)
@given(WIRES, st.sampled_from([b"GET", b"HEAD"]))
def test_what_is_ordinary_is_what_h11_reads(wire: bytes, method: bytes) -> None:
    """Without anything of the backend's in between."""
    found = Heads()
    head = found.read(wire, method)
    if head is None:
        return
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method=method, target=b"/", headers=[(b"Host", b"a")]))
    reader.send(h11.EndOfMessage())
    reader.receive_data(wire[: found.size])
    event = reader.next_event()
    assert isinstance(event, h11.Response)
    assert reader.trailing_data == (b"", False)
    read = event.status_code, event.headers.raw_items(), event.reason, b"HTTP/" + event.http_version
    assert (head.status, head.headers, head.reason, head.http_version) == read
    length = found.content_length
    if length is not None and length > 1 << 20:
        return
    reader.receive_data(b"5\r\nhello\r\n0\r\n\r\n" if length is None else bytes(length + 1))
    size = 0
    while isinstance(event := reader.next_event(), h11.Data):
        size += len(event.data)
    assert isinstance(event, h11.EndOfMessage)
    assert size == (5 if length is None else length)
    assert found.close == (reader.their_state is h11.MUST_CLOSE)


@pytest.mark.parametrize("wire", REAL[:9])
def test_what_servers_send_goes_the_short_way(wire: bytes) -> None:
    """Else it would be a short way that nobody takes."""
    assert Heads().read(wire.replace(b"x-\xfe", b"x-y"), b"GET") is not None


def test_a_backend_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("allswell._backends.http1_engine.engine")
    backend = Http1(max_header_size=64 * 1024)
    for number, wire in enumerate(REAL[:5] + REAL[6:8], 1):
        assert backend.open(request(), end=True) == number
        assert isinstance(taken(backend, wire)[0], ResponseReceived)
        assert backend.capacity()


# What is remembered


def test_only_so_much_is_remembered() -> None:
    heads = Heads()
    for number in range(10_000):
        wire = b"HTTP/1.1 200 OK\r\nA-%d: %d\r\nB: %s\r\nContent-Length: 0\r\n\r\n" % (number, number, b"x" * number)
        assert heads.read(wire, b"GET") is not None
    gc.collect()
    assert sum(sys.getsizeof(line) + sys.getsizeof(field) for line, field in heads._known.items()) < 64 * 512


def test_what_a_server_said_is_forgotten_with_the_connection() -> None:
    backend = Http1(max_header_size=64 * 1024)
    backend.open(request(), end=True)
    [response, _] = taken(backend, b"HTTP/1.1 200 OK\r\nSet-Cookie: a=secret\r\nContent-Length: 0\r\n\r\n")
    assert isinstance(response, ResponseReceived)
    field = response.head.headers[0]
    remembered = sys.getrefcount(field)
    del backend
    gc.collect()
    assert sys.getrefcount(field) == remembered - 1
