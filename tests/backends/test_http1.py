"""The HTTP/1.1 backend without an event loop: every input whole and byte by byte, and only interface errors escape."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allswell._backends.http1 import Http1
from allswell._backends.interface import (
    BodyReceived,
    Event,
    ExchangeFailed,
    InformationalReceived,
    PeerLeaving,
    ResponseCompleted,
    ResponseReceived,
    UploadRefused,
)
from allswell._errors import AllswellError, LocalProtocolError, NotProcessed, RemoteProtocolError, TransportError
from allswell._messages import Headers, RequestHead
from tests.support.taken import content, taken

HOST = (b"Host", b"a")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def http1(limit: int = 64 * 1024) -> Http1:
    return Http1(max_header_size=limit)


def head(method: bytes = b"GET", *headers: tuple[bytes, bytes], target: bytes = b"/") -> RequestHead:
    return RequestHead(method, b"http", b"a", target, [HOST, *headers])


def opened(method: bytes = b"GET", *headers: tuple[bytes, bytes], end: bool = True) -> Http1:
    backend = http1()
    assert backend.open(head(method, *headers), end=end) == 1
    backend.take_output()
    return backend


def feed(backend: Http1, data: bytes, size: int) -> list[Event]:
    """The events of this input, given in pieces; pieces of body that follow one another are joined."""
    events: list[Event] = []
    for start in range(0, len(data), size):
        for event in taken(backend, memoryview(data[start : start + size])):
            last = events[-1] if events else None
            if isinstance(event, BodyReceived) and isinstance(last, BodyReceived):
                events[-1] = BodyReceived(last.exchange, content(last) + content(event), last.credit + event.credit)
            else:
                events.append(event)
        if backend.must_abort:
            break  # the driver reads no further
    return events


def kinds(events: Sequence[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def body(events: Sequence[Event]) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, BodyReceived))


def failure(events: Sequence[Event]) -> AllswellError:
    [error] = [event.error for event in events if isinstance(event, ExchangeFailed)]
    return error


sizes = pytest.mark.parametrize("size", [1, 7, 1 << 20])


# Requests


def test_request_on_the_wire() -> None:
    backend = http1()
    backend.open(head(b"GET", (b"X-Case", b"Kept"), target=b"/path?query"), end=True)
    assert backend.take_output() == b"GET /path?query HTTP/1.1\r\nHost: a\r\nX-Case: Kept\r\n\r\n"
    assert backend.take_output() == b""


def test_never_two_framings() -> None:
    """Of two servers in a row one might believe the one, and one the other (RFC 9112 §11.2)."""
    backend = http1()
    backend.open(head(b"POST", (b"content-length", b"3"), (b"Transfer-Encoding", b"chunked")), end=False)
    backend.send_body(1, b"abc", end=True)
    assert backend.take_output() == (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    )


def test_bodies_on_the_wire() -> None:
    backend = http1()
    number = backend.open(head(b"POST", (b"Content-Length", b"5")), end=False)
    backend.send_body(number, b"he", end=False)
    backend.send_body(number, b"llo", end=True)
    assert bytes(backend.take_output()).endswith(b"\r\n\r\nhello")
    backend = http1()
    number = backend.open(head(b"POST", (b"Transfer-Encoding", b"chunked")), end=False)
    backend.send_body(number, b"hello", end=False)
    backend.send_body(number, b"", end=False)
    backend.send_body(number, b"", end=True, trailers=[(b"Checksum", b"1")])
    assert bytes(backend.take_output()).endswith(b"\r\n\r\n5\r\nhello\r\n0\r\nChecksum: 1\r\n\r\n")


@pytest.mark.parametrize(
    "headers",
    [
        [(b"Bad Name", b"1")],
        [(b"", b"1")],
        [(b"X", b"a\r\nInjected: b")],
        [(b"X", b"a\nb")],
        [(b"X", b"a\x00b")],
        [(b"X\r\nY", b"1")],
        [(b"Content-Length", b"5"), (b"Content-Length", b"6")],
        [(b"Content-Length", b"-1")],
        [(b"Content-Length", b"5, 6")],
        [(b"Content-Length", b"5")],
        [(b"Transfer-Encoding", b"gzip, chunked")],
        [(b"Host", b"b")],
    ],
)
def test_illegal_headers_are_refused_and_the_connection_lives(headers: Headers) -> None:
    backend = http1()
    with pytest.raises(LocalProtocolError):
        backend.open(head(b"GET", *headers), end=True)
    assert backend.take_output() == b""
    assert not backend.must_abort
    assert backend.capacity() == 1
    assert backend.open(head(), end=True) == 1


@pytest.mark.parametrize(
    ("method", "target"),
    [(b"GET", b"/a b"), (b"GET", b"/a\r\nX: 1"), (b"GET", b"/\x00"), (b"G ET", b"/"), (b"GET\r\n", b"/"), (b"", b"/")],
)
def test_illegal_request_lines_are_refused(method: bytes, target: bytes) -> None:
    backend = http1()
    with pytest.raises(LocalProtocolError):
        backend.open(head(method, target=target), end=True)
    assert backend.take_output() == b""
    assert backend.capacity() == 1


@pytest.mark.parametrize(("data", "end"), [(b"too long", False), (b"abc", True)])
def test_body_that_contradicts_its_length(data: bytes, end: bool) -> None:
    backend = opened(b"POST", (b"Content-Length", b"5"), end=False)
    with pytest.raises(LocalProtocolError):
        backend.send_body(1, data, end=end)
    assert backend.must_abort
    assert backend.capacity() == 0


def test_full_takes_no_more() -> None:
    backend = opened()
    with pytest.raises(NotProcessed) as caught:
        backend.open(head(), end=True)
    assert caught.value.proven


# Responses


@sizes
def test_content_length(size: int) -> None:
    backend = opened()
    events = feed(backend, OK, size)
    assert kinds(events) == ["ResponseReceived", "BodyReceived", "ResponseCompleted"]
    assert isinstance(events[0], ResponseReceived)
    assert (events[0].head.status, events[0].head.reason, events[0].head.http_version) == (200, b"OK", b"HTTP/1.1")
    assert events[0].head.headers == [(b"Content-Length", b"5")]
    assert body(events) == b"hello"
    assert backend.capacity() == 1
    assert backend.open(head(), end=True) == 2


@sizes
def test_chunked_with_trailers_and_extensions(size: int) -> None:
    wire = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'3;name="x"\r\nabc\r\n002\r\nde\r\n0\r\nChecksum: 1\r\n\r\n'
    )
    backend = opened()
    events = feed(backend, wire, size)
    assert body(events) == b"abcde"
    assert events[-1] == ResponseCompleted(1, [(b"Checksum", b"1")])
    assert backend.capacity() == 1


@sizes
@pytest.mark.parametrize(
    ("method", "start"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
    ],
)
def test_no_body(method: bytes, start: bytes, size: int) -> None:
    backend = opened(method)
    assert kinds(feed(backend, start, size)) == ["ResponseReceived", "ResponseCompleted"]
    assert backend.capacity() == 1


@sizes
@pytest.mark.parametrize("framing", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
def test_nothing_follows_a_204_that_announces_content(framing: bytes, size: int) -> None:
    """Servers that say so send it, too, and it may come late: it would be read as the next response (RFC 9110 §8.6)."""
    backend = opened()
    events = feed(backend, b"HTTP/1.1 204 No Content\r\n%b\r\n\r\n" % framing, size)
    assert kinds(events) == ["ResponseReceived", "ResponseCompleted", "PeerLeaving"]
    assert backend.capacity() == 0
    assert not backend.must_abort


@sizes
def test_a_204_may_say_that_it_has_no_content(size: int) -> None:
    backend = opened()
    events = feed(backend, b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", size)
    assert kinds(events) == ["ResponseReceived", "ResponseCompleted"]
    assert backend.capacity() == 1


@sizes
def test_informational(size: int) -> None:
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    events = feed(opened(), early + OK, size)
    assert kinds(events)[:3] == ["InformationalReceived", "InformationalReceived", "ResponseReceived"]
    assert isinstance(events[1], InformationalReceived)
    assert events[1].head.headers == [(b"Link", b"</a>")]


@sizes
@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    ],
)
def test_last_response(wire: bytes, size: int) -> None:
    backend = opened()
    events = feed(backend, wire, size)
    assert kinds(events)[-2:] == ["ResponseCompleted", "PeerLeaving"]
    assert backend.capacity() == 0
    assert backend.exhausted
    assert not backend.must_abort


@sizes
def test_close_delimited(size: int) -> None:
    backend = opened()
    events = feed(backend, b"HTTP/1.1 200 OK\r\n\r\nhello", size)
    assert kinds(events) == ["ResponseReceived", "BodyReceived"]
    assert kinds(backend.receive_eof(None))[0] == "ResponseCompleted"
    assert backend.exhausted


def test_close_delimited_and_cut() -> None:
    backend = opened()
    feed(backend, b"HTTP/1.1 200 OK\r\n\r\nhello", 100)
    error = failure(backend.receive_eof(RemoteProtocolError("truncated")))
    assert isinstance(error, RemoteProtocolError)
    assert str(error) == "truncated"


@pytest.mark.parametrize("cut", range(1, len(OK)))
def test_cut_at_every_byte(cut: int) -> None:
    backend = opened()
    feed(backend, OK[:cut], 100)
    error = failure(backend.receive_eof(None))
    assert isinstance(error, RemoteProtocolError)
    assert backend.must_abort
    assert backend.capacity() == 0


def test_ended_before_a_byte_of_the_first_response() -> None:
    error = failure(opened().receive_eof(None))
    assert isinstance(error, RemoteProtocolError)


@pytest.mark.parametrize("why", [None, TransportError("reset", operation="read")])
def test_ended_before_a_byte_of_a_later_response(why: AllswellError | None) -> None:
    backend = opened()
    feed(backend, OK, 100)
    assert backend.open(head(), end=True) == 2
    error = failure(backend.receive_eof(why))
    assert isinstance(error, NotProcessed)
    assert not error.proven
    assert why is None or error.cause is why


def test_idle_and_ended() -> None:
    backend = opened()
    feed(backend, OK, 100)
    assert kinds(backend.receive_eof(None)) == ["PeerLeaving"]
    assert backend.capacity() == 0


@sizes
def test_more_than_was_asked_for(size: int) -> None:
    """Response splitting: what lies behind the response must never be read as the next one."""
    backend = opened()
    events = feed(backend, OK + OK, size)
    assert body(events) == b"hello"
    assert backend.capacity() == 0
    assert backend.exhausted


@sizes
def test_more_than_was_asked_for_while_the_upload_goes_on(size: int) -> None:
    backend = opened(b"POST", (b"Transfer-Encoding", b"chunked"), end=False)
    events = feed(backend, OK + OK.replace(b"hello", b"poisn"), size)
    assert body(events) == b"hello"
    backend.send_body(1, b"", end=True)
    assert backend.capacity() == 0
    assert backend.exhausted


def test_unasked() -> None:
    backend = http1()
    events = taken(backend, memoryview(b"HTTP/1.1 408 Request Timeout\r\n\r\n"))
    assert kinds(events) == ["PeerLeaving"]
    assert isinstance(events[0], PeerLeaving)
    assert isinstance(events[0].error, RemoteProtocolError)
    assert backend.capacity() == 0


@sizes
def test_refused_upload(size: int) -> None:
    backend = opened(b"POST", (b"Content-Length", b"100000"), end=False)
    wire = b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno"
    events = feed(backend, wire, size)
    assert UploadRefused(1) in events
    assert body(events) == b"no"
    assert "ResponseCompleted" in kinds(events)


def test_abandoned() -> None:
    backend = opened()
    backend.cancel(1)
    backend.cancel(1)
    assert backend.must_abort
    assert backend.capacity() == 0


def test_abandoning_what_is_over_harms_nobody() -> None:
    backend = opened()
    feed(backend, OK, 100)
    backend.open(head(), end=True)
    backend.cancel(1)
    assert not backend.must_abort
    assert body(feed(backend, OK, 100)) == b"hello"


# Tunnels


@sizes
@pytest.mark.parametrize(
    ("request_head", "answer"),
    [
        (
            head(b"GET", (b"Connection", b"upgrade"), (b"Upgrade", b"echo")),
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n",
        ),
        (head(b"CONNECT", target=b"b:443"), b"HTTP/1.1 200 OK\r\n\r\n"),
    ],
)
def test_tunnel(request_head: RequestHead, answer: bytes, size: int) -> None:
    backend = http1()
    number = backend.open(request_head, end=True)
    backend.take_output()
    events = feed(backend, answer + b"raw\x00bytes", size)
    assert isinstance(events[0], ResponseReceived)
    assert events[0].tunnel
    assert body(events) == b"raw\x00bytes"
    backend.send_body(number, b"\x00up", end=False)
    assert backend.take_output() == b"\x00up"
    assert kinds(backend.receive_eof(None)) == ["ResponseCompleted"]
    assert backend.capacity() == 0


@sizes
@pytest.mark.parametrize("framing", [(b"Content-Length", b"6"), (b"Transfer-Encoding", b"chunked")])
def test_no_protocol_is_switched_to_in_the_middle_of_a_request(framing: tuple[bytes, bytes], size: int) -> None:
    """The rest of the request would be read as the new protocol's bytes, and those as the request's (RFC 9110 §7.8)."""
    backend = opened(b"POST", framing, (b"Connection", b"upgrade"), (b"Upgrade", b"echo"), end=False)
    backend.send_body(1, b"one", end=False)
    backend.take_output()
    events = feed(backend, b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nraw", size)
    assert kinds(events) == ["ExchangeFailed"]
    assert "switched protocols in the middle of the request" in str(failure(events))
    assert backend.must_abort
    backend.send_body(1, b"two", end=True)
    assert backend.take_output() == b""


def test_refused_connect_is_a_response() -> None:
    backend = http1()
    backend.open(head(b"CONNECT", target=b"b:443"), end=True)
    events = feed(backend, b"HTTP/1.1 407 No\r\nContent-Length: 2\r\n\r\nno", 100)
    assert isinstance(events[0], ResponseReceived)
    assert not events[0].tunnel
    assert body(events) == b"no"


# Hostile peers

BAD = {
    "not HTTP": b"\x15\x03\x01\x00\x02\x02\x28",
    "HTTP/0.9": b"hello\r\n\r\n",
    "HTTP/2": b"HTTP/2 200 OK\r\n\r\n",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "no status": b"HTTP/1.1\r\n\r\n",
    "status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "status of letters": b"HTTP/1.1 abc OK\r\n\r\n",
    "status below 100": b"HTTP/1.1 099 X\r\n\r\n",
    "NUL in a value": b"HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n",
    "NUL in a name": b"HTTP/1.1 200 OK\r\nX\x00: a\r\n\r\n",
    "space before the colon": b"HTTP/1.1 200 OK\r\nX : a\r\n\r\n",
    "no colon": b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
    "folding first": b"HTTP/1.1 200 OK\r\n X: a\r\n\r\n",
    "negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
    "signed length": b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "length of letters": b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\n",
    "length of 40 digits": b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\n",
    "unknown coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    "chunked not last": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
    "chunk of no size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
    "chunk of letters": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "chunk of negative size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
    "chunk of 30 digits": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 30 + b"\r\n",
    "chunk longer than its size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n",
    "endless head": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000,
    "endless header": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000,
    "endless status line": b"HTTP/1.1 200 " + b"O" * 300_000,
    "huge head that is complete": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000 + b"\r\n\r\n",
    "endless chunk extension": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;" + b"x" * 300_000,
    "endless trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 50_000,
}


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
@pytest.mark.parametrize("wire", BAD.values(), ids=BAD.keys())
def test_bad_input(wire: bytes, size: int) -> None:
    backend = opened()
    events = feed(backend, wire, size)
    if not backend.must_abort:
        events += backend.receive_eof(None)
    error = failure(events)
    assert isinstance(error, RemoteProtocolError)
    assert error.by == "peer"
    assert backend.must_abort
    assert backend.capacity() == 0


@pytest.mark.parametrize("cuts", [(), (100,), (70_000,), (70_000, 140_000)])
def test_the_limit_holds_for_trailers_too_however_they_come(cuts: tuple[int, ...]) -> None:
    """Also for those that come whole, with one read or with the last of several."""
    wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n%s\r\n"
    for size, fine in ((1000, True), (60_000, True), (150_000, False)):
        backend = http1(limit=100_000)
        backend.open(head(), end=True)
        data = wire % (b"X: " + b"y" * size + b"\r\n")
        edges = [0, *(cut for cut in cuts if cut < len(data)), len(data)]
        events = [event for start, end in pairwise(edges) for event in taken(backend, memoryview(data[start:end]))]
        if fine:
            assert events[-1] == ResponseCompleted(1, [(b"X", b"y" * size)])
        else:
            assert "more than 100000 bytes" in str(failure(events))
            assert backend.must_abort


@sizes
@pytest.mark.parametrize(
    "greeting", [b"SSH-2.0-OpenSSH_9\r\n", b"220 mail ESMTP\r\n", b"HTTP/2.0 200", b"\x15\x03\x01\x00"]
)
def test_who_speaks_no_http1_is_known_at_once(greeting: bytes, size: int) -> None:
    """Not only when it ends the connection, or we lose patience: it may wait for us to go on."""
    backend = opened()
    assert "broke HTTP/1.1: its answer begins with b'" in str(failure(feed(backend, greeting, size)))
    assert backend.must_abort


def test_a_head_without_end_is_told_by_its_limit() -> None:
    backend = opened()
    error = failure(feed(backend, BAD["endless header"], 1000))
    assert "more than 65536 bytes" in str(error)


def test_conflicting_framing() -> None:
    """RFC 9112 §6.3: it may be an attempt at response splitting."""
    wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    backend = opened()
    events = feed(backend, wire, 1 << 20)
    assert isinstance(failure(events), RemoteProtocolError)
    assert body(events) == b""
    assert backend.capacity() == 0


# Fuzzing

PIECES = [
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n",
    b"HTTP/1.0 500 No\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Upgrade: x\r\n",
    b"\r\n",
    b"5\r\nhello\r\n",
    b"0\r\n",
    b"hello",
]
wires = st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=12)), max_size=12).map(b"".join)
requests = st.sampled_from(
    [
        (head(), True),
        (head(b"HEAD"), True),
        (head(b"POST", (b"Content-Length", b"5")), False),
        (head(b"POST", (b"Transfer-Encoding", b"chunked")), False),
        (head(b"CONNECT", target=b"b:443"), True),
        (head(b"GET", (b"Connection", b"upgrade"), (b"Upgrade", b"x")), True),
    ]
)


def played(wire: bytes, size: int, request: RequestHead, end: bool) -> tuple[list[Event], bool, int]:
    backend = http1()
    number = backend.open(request, end=end)
    events = feed(backend, wire, size)
    if not end and not backend.must_abort:
        backend.send_body(number, b"hello", end=True)
    if not backend.must_abort:
        events += backend.receive_eof(None)
    backend.take_output()
    return events, backend.must_abort, backend.capacity()


@settings(max_examples=400)
@given(wires, requests)
def test_any_input_means_the_same_in_one_piece_and_byte_by_byte(
    wire: bytes, request_end: tuple[RequestHead, bool]
) -> None:
    """And no exception escapes; each exchange ends exactly once; nothing can be opened on what has ended."""
    whole = played(wire, 1 << 20, *request_end)
    single = played(wire, 1, *request_end)
    for events, _, capacity in (whole, single):
        ends = [each for each in kinds(events) if each in ("ResponseCompleted", "ExchangeFailed")]
        assert len(ends) == 1, events
        assert kinds(events).count("ResponseReceived") <= 1
        assert capacity == 0
    assert body(whole[0]) == body(single[0])
    outcome = ("ResponseReceived", "InformationalReceived", "ResponseCompleted", "ExchangeFailed")
    assert [each for each in kinds(whole[0]) if each in outcome] == [
        each for each in kinds(single[0]) if each in outcome
    ]


# Long bodies, the rest of which goes past h11


def _long_exchange(pieces: list[bytes], method: bytes = b"GET") -> tuple[Http1, list[Event]]:
    backend = Http1(max_header_size=10_000)
    backend.open(RequestHead(method, b"http", b"a", b"/", [(b"Host", b"a")]), end=True)
    return backend, [event for piece in pieces for event in taken(backend, memoryview(piece))]


_LONG = bytes(range(256)) * 4096  # 1 MiB
_LONG_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n"


@pytest.mark.parametrize("size", [1000, 65_536, 200_001, 2 * len(_LONG)])
@pytest.mark.parametrize("close", [False, True])
def test_a_long_body_in_pieces_of_any_size_is_whole_and_the_connection_goes_on_or_not(size: int, close: bool) -> None:
    wire = _LONG_HEAD % (len(_LONG), b"Connection: close\r\n" if close else b"") + _LONG
    backend, events = _long_exchange([wire[at : at + size] for at in range(0, len(wire), size)])
    assert b"".join(event.data for event in events if isinstance(event, BodyReceived)) == _LONG
    completed = [event for event in events if isinstance(event, ResponseCompleted)]
    assert completed == [ResponseCompleted(1, [])]
    assert any(isinstance(event, PeerLeaving) for event in events) == close
    assert backend.capacity() == (0 if close else 1)
    if not close:
        assert backend.open(RequestHead(b"GET", b"http", b"a", b"/", [(b"Host", b"a")]), end=True) == 2
        answer = taken(backend, memoryview(b"HTTP/1.1 204 No Content\r\n\r\n"))
        assert [type(event) for event in answer] == [ResponseReceived, ResponseCompleted]
        assert backend.capacity() == 1


def test_bytes_behind_a_long_body_end_the_connection() -> None:
    head = _LONG_HEAD % (len(_LONG), b"")
    backend, events = _long_exchange([head, _LONG[:-1], _LONG[-1:] + b"HTTP/1.1 200 OK\r\n"])
    assert ResponseCompleted(1, []) in events
    assert backend.must_abort
    assert backend.surplus == b"HTTP/1.1 200 OK\r\n"


def test_a_long_body_cut_short_is_an_error_that_says_by_how_much() -> None:
    backend, events = _long_exchange([_LONG_HEAD % (len(_LONG), b""), _LONG[:-100]])
    assert not any(isinstance(event, ResponseCompleted) for event in events)
    (failed,) = backend.receive_eof(None)
    assert isinstance(failed, ExchangeFailed)
    assert isinstance(failed.error, RemoteProtocolError)
    assert "100 bytes too early" in str(failed.error)
    assert backend.must_abort


def test_a_long_length_without_a_body_is_no_body() -> None:
    backend, events = _long_exchange([_LONG_HEAD % (len(_LONG), b"")], b"HEAD")
    assert [type(event) for event in events] == [ResponseReceived, ResponseCompleted]
    assert backend.capacity() == 1


_MANY = b"".join(b"X-%d: y\r\n" % number for number in range(450))


@pytest.mark.parametrize("first", [b"HEAD", b"GET"])
@pytest.mark.parametrize("interim", [0, 99])
def test_a_turn_that_ends_behind_the_head_counts_no_byte_twice(first: bytes, interim: int) -> None:
    """Many fields, or many interim responses, use up a turn's work. The body that has come with them is still to do."""
    backend = Http1(max_header_size=100 * 1024)
    content = b"" if first == b"HEAD" else bytes(100_000)
    start = b"HTTP/1.1 102 Processing\r\n\r\n" * interim + b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n"
    backend.open(head(first), end=True)
    events = taken(backend, memoryview(start + _MANY + b"\r\n" + content))
    assert body(events) == content
    assert kinds(events)[-1] == "ResponseCompleted"
    backend.open(head(), end=True)
    assert kinds(taken(backend, memoryview(OK))) == ["ResponseReceived", "BodyReceived", "ResponseCompleted"]
