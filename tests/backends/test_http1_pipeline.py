"""Pipelining without an event loop: order, what follows what, and what becomes of those that are not answered."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from allswell._backends.http1_pipeline import Http1Pipeline
from allswell._backends.interface import BodyReceived, Event, ExchangeFailed, ResponseCompleted
from allswell._errors import LocalProtocolError, NotProcessed, RemoteProtocolError, TransportError
from allswell._messages import RequestHead
from tests.support.taken import taken

HOST = (b"Host", b"a")

sizes = pytest.mark.parametrize("size", [1, 7, 1 << 20])


def head(method: bytes = b"GET", *headers: tuple[bytes, bytes], target: bytes = b"/") -> RequestHead:
    return RequestHead(method, b"http", b"a", target, [HOST, *headers])


def answer(body: bytes, *fields: bytes, framing: str = "length") -> bytes:
    head = b"".join([b"HTTP/1.1 200 OK\r\n", *(field + b"\r\n" for field in fields)])
    if framing == "chunked":
        return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    return head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


def feed(backend: Http1Pipeline, data: bytes, size: int = 1 << 20) -> list[Event]:
    events: list[Event] = []
    for start in range(0, len(data), size):
        events += taken(backend, memoryview(data[start : start + size]))
        if backend.must_abort:
            break  # the driver reads no further
    return events


def warm(depth: int = 4) -> Http1Pipeline:
    """One that has carried exchange 1."""
    backend = Http1Pipeline(depth=depth, max_header_size=64 * 1024)
    assert backend.capacity() == 1
    backend.open(head(), end=True)
    assert backend.capacity() == 0
    assert completed(feed(backend, answer(b"first"))) == [1]
    assert backend.capacity() == 1 + depth
    backend.take_output()
    return backend


def opened(count: int, depth: int = 4) -> Http1Pipeline:
    """A warm one with so many GETs under way: exchanges 2, 3, …"""
    backend = warm(depth)
    for number in range(2, 2 + count):
        assert backend.open(head(), end=True) == number
    backend.take_output()
    return backend


def bodies(events: list[Event]) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for event in events:
        if isinstance(event, BodyReceived):
            found[event.exchange] = found.get(event.exchange, b"") + event.data
    return found


def completed(events: list[Event]) -> list[int]:
    return [event.exchange for event in events if isinstance(event, ResponseCompleted)]


def failures(events: list[Event]) -> list[tuple[int, str]]:
    """Which failed, in order, and what may be done about it."""
    found = []
    for event in events:
        if isinstance(event, ExchangeFailed):
            error = event.error
            again = "no" if not isinstance(error, NotProcessed) else "proven" if error.proven else "perhaps"
            found.append((event.exchange, again))
    return found


@sizes
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_responses_are_matched_in_order(framing: str, size: int) -> None:
    backend = opened(3)
    wire = b"".join(answer(b"body of %d" % number, framing=framing) for number in (2, 3, 4))
    events = feed(backend, wire, size)
    assert bodies(events) == {2: b"body of 2", 3: b"body of 3", 4: b"body of 4"}
    assert completed(events) == [2, 3, 4]
    assert backend.capacity() == 5
    assert not backend.exhausted
    assert backend.open(head(), end=True) == 5


@sizes
def test_bodiless_and_informational_responses_keep_the_order(size: int) -> None:
    backend = warm()
    for method in (b"HEAD", b"GET", b"GET", b"GET"):
        backend.open(head(method), end=True)
    wire = b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + b"HTTP/1.1 304 Not Modified\r\n\r\n"
    wire += b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n" + answer(b"last")
    events = feed(backend, wire, size)
    assert completed(events) == [2, 3, 4, 5]
    assert bodies(events) == {5: b"last"}


def test_requests_leave_in_order_and_whole() -> None:
    backend = warm()
    backend.open(head(target=b"/a"), end=True)
    number = backend.open(head(b"PUT", (b"Content-Length", b"4"), target=b"/b"), end=False)
    assert backend.capacity() == 0  # none behind a request that is not wholly sent
    backend.send_body(number, b"bo", end=False)
    with pytest.raises(NotProcessed):
        backend.open(head(target=b"/between"), end=True)
    backend.send_body(number, b"dy", end=True)
    assert backend.capacity() == 3
    backend.open(head(target=b"/c"), end=True)
    host = b"Host: a\r\n"
    assert backend.take_output() == (
        b"GET /a HTTP/1.1\r\n" + host + b"\r\n"
        b"PUT /b HTTP/1.1\r\n" + host + b"Content-Length: 4\r\n\r\nbody"
        b"GET /c HTTP/1.1\r\n" + host + b"\r\n"
    )
    assert completed(feed(backend, answer(b"a") + answer(b"b") + answer(b"c"))) == [2, 3, 4]


@pytest.mark.parametrize(
    "first",
    [
        head(b"POST", (b"Content-Length", b"0")),
        head(b"PATCH"),
        head(b"GET", (b"Upgrade", b"websocket"), (b"Connection", b"upgrade")),
        head(b"CONNECT", target=b"a:443"),
        head(b"GET", (b"Connection", b"close")),
    ],
    ids=["POST", "PATCH", "upgrade", "CONNECT", "close"],
)
def test_what_nothing_may_follow(first: RequestHead) -> None:
    backend = warm()
    backend.open(first, end=True)
    assert backend.capacity() == 0
    with pytest.raises(NotProcessed) as caught:
        backend.open(head(), end=True)
    assert caught.value.proven


def test_what_may_not_follow() -> None:
    backend = opened(1)
    assert backend.capacity() == 4
    with pytest.raises(NotProcessed) as caught:
        backend.open(head(b"POST", (b"Content-Length", b"0")), end=True)
    assert caught.value.proven
    assert backend.take_output() == b""
    assert backend.open(head(), end=True) == 3


@pytest.mark.parametrize("end", [b"\r\n", b"Connection: close\r\nContent-Length: 5\r\n\r\n"])
def test_nothing_follows_a_response_that_is_known_to_be_the_last(end: bytes) -> None:
    backend = opened(1)
    assert backend.capacity() > 0
    feed(backend, b"HTTP/1.1 200 OK\r\n" + end + b"hell")
    assert backend.capacity() == 0


def test_depth_is_a_bound() -> None:
    backend = opened(3, depth=2)
    assert backend.capacity() == 0
    feed(backend, answer(b"2"))
    assert backend.capacity() == 1


def test_illegal_request_behind_others_harms_nobody() -> None:
    backend = opened(2)
    for bad in (head(b"GET", (b"Bad Name", b"1")), head(b"GET", (b"Content-Length", b"5"))):
        with pytest.raises(LocalProtocolError):
            backend.open(bad, end=True)
    assert backend.take_output() == b""
    assert not backend.must_abort
    assert completed(feed(backend, answer(b"2") + answer(b"3"))) == [2, 3]


@pytest.mark.parametrize("fields", [(b"Connection: close",), ()], ids=["close", "HTTP/1.0"])
@sizes
def test_announced_end_proves_that_the_rest_was_not_processed(fields: tuple[bytes, ...], size: int) -> None:
    backend = opened(4)
    last = answer(b"3", *fields) if fields else answer(b"3").replace(b"1.1", b"1.0")
    events = feed(backend, answer(b"2") + last, size)
    assert completed(events) == [2, 3]
    assert failures(events) == [(4, "proven"), (5, "proven")]
    assert backend.exhausted
    assert not backend.must_abort


@sizes
def test_a_server_of_http_1_0_that_goes_on_may_have_processed_the_rest(size: int) -> None:
    backend = opened(3)
    last = answer(b"3", b"Connection: keep-alive").replace(b"1.1", b"1.0")
    events = feed(backend, answer(b"2") + last, size)
    assert completed(events) == [2, 3]
    assert failures(events) == [(4, "perhaps")]
    assert backend.exhausted


@sizes
def test_nothing_is_read_behind_a_204_that_announces_content(size: int) -> None:
    """What follows may be that, in place of the next response. Whether the rest was processed nobody knows."""
    backend = opened(3)
    events = feed(backend, answer(b"2") + b"HTTP/1.1 204 No Content\r\nContent-Length: 39\r\n\r\n" + answer(b"4"), size)
    assert completed(events) == [2, 3]
    assert failures(events) == [(4, "perhaps")]
    assert backend.exhausted
    assert not backend.must_abort


@pytest.mark.parametrize("why", [None, TransportError("reset", operation="read")], ids=["FIN", "RST"])
@pytest.mark.parametrize("cut", range(0, 2 * len(answer(b"2")) + 1, 3))
def test_cut_anywhere(cut: int, why: TransportError | None) -> None:
    """Answered ones are answered; the one whose answer began fails; the others go again."""
    backend = opened(4)
    whole = len(answer(b"2"))
    events = feed(backend, (answer(b"2") + answer(b"3"))[:cut])
    answered, begun = divmod(cut, whole)
    assert completed(events) == [2, 3][:answered]
    rest = [(number, "perhaps") for number in range(2 + answered, 6)]
    if begun:
        rest[0] = (rest[0][0], "no")
    assert failures(backend.receive_eof(why)) == rest
    assert backend.exhausted


def test_body_until_the_end_of_the_stream() -> None:
    backend = opened(3)
    events = feed(backend, b"HTTP/1.1 200 OK\r\n\r\nall the rest" + answer(b"not a response"))
    assert completed(events) == []
    events = backend.receive_eof(None)
    assert completed(events) == [2]
    assert failures(events) == [(3, "perhaps"), (4, "perhaps")]


@sizes
def test_protocol_error_ends_the_line(size: int) -> None:
    backend = opened(3)
    events = feed(backend, answer(b"2") + b"HTTP/1.1 2x0 Nonsense\r\n\r\n", size)
    assert completed(events) == [2]
    assert failures(events) == [(3, "no"), (4, "perhaps")]
    assert backend.must_abort
    assert all(
        isinstance(e.error, RemoteProtocolError) for e in events if isinstance(e, ExchangeFailed) and e.exchange == 3
    )


def test_more_than_was_asked_for() -> None:
    backend = opened(2)
    assert completed(feed(backend, answer(b"2") + answer(b"3") + answer(b"forged"))) == [2, 3]
    assert backend.must_abort
    backend = opened(2)
    events = feed(backend, answer(b"2", b"Connection: close") + answer(b"said after goodbye"))
    assert completed(events) == [2]
    assert failures(events) == [(3, "perhaps")]


def test_abandoned_first() -> None:
    backend = opened(3)
    feed(backend, answer(b"2")[:20])
    backend.cancel(2)
    assert backend.must_abort
    assert failures(backend.receive_eof(None))[1:] == [(3, "perhaps"), (4, "perhaps")]


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_abandoned_in_the_middle(size: int) -> None:
    """Those before it are answered still; then the connection ends, and those behind it go again."""
    backend = opened(4)
    backend.cancel(4)
    assert backend.exhausted
    assert not backend.must_abort
    events = feed(backend, answer(b"2") + answer(b"3") + answer(b"4")[:10], size)
    assert completed(events) == [2, 3]
    assert failures(events) == [(5, "perhaps")]  # (of 4 nobody wants to hear)
    assert backend.must_abort


@pytest.mark.parametrize("end", [Http1Pipeline.goodbye, lambda backend: backend.receive_eof(None)])
def test_idle_and_ended(end: Callable[[Http1Pipeline], object]) -> None:
    backend = warm()
    end(backend)
    assert backend.exhausted
    assert backend.capacity() == 0


def test_unasked() -> None:
    backend = warm()
    feed(backend, b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert backend.exhausted
    assert backend.capacity() == 0
