"""The chunked coding: what we read ourselves against what h11 reads, for every way to write it and to cut it up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from allswell._backends.http1 import Http1
from allswell._backends.http1_pipeline import Http1Pipeline
from allswell._backends.interface import WORK, BodyReceived, Event, ExchangeFailed, ResponseCompleted, ResponseReceived
from allswell._messages import Headers, RequestHead
from tests.support.taken import taken

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LIMIT = 64 * 1024
GET = RequestHead(b"GET", b"http", b"a", b"/", [(b"Host", b"a")])


class Read(NamedTuple):
    """How far a reader has come.

    :ivar trailers: ``None`` until the response is complete.
    """

    body: bytes
    trailers: Headers | None
    failed: bool
    surplus: bytes


def by_h11(pieces: list[bytes]) -> Iterator[Read]:
    reader = h11.Connection(h11.CLIENT, max_incomplete_event_size=LIMIT)
    reader.send(h11.Request(method=b"GET", target=b"/", headers=[(b"Host", b"a")]))
    reader.send(h11.EndOfMessage())
    body, trailers, failed = b"", None, False
    for piece in pieces:
        if not failed:
            if piece:
                reader.receive_data(piece)
            try:
                while (event := reader.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                    if isinstance(event, h11.Data):
                        body += event.data
                    elif isinstance(event, h11.EndOfMessage):
                        trailers = event.headers.raw_items()
            except h11.RemoteProtocolError:
                failed = True
        yield Read(body, trailers, failed, reader.trailing_data[0] if trailers is not None else b"")


def by_us(pieces: list[bytes]) -> Iterator[Read]:
    backend = Http1(max_header_size=LIMIT)
    backend.open(GET, end=True)
    body, trailers, failed, behind = b"", None, False, b""
    for piece in pieces:
        if trailers is not None:
            behind += piece  # the driver reads no further
        elif piece and not failed:
            for event in taken(backend, piece):
                if isinstance(event, BodyReceived):
                    body += event.data
                elif isinstance(event, ResponseCompleted):
                    trailers = event.trailers
                elif isinstance(event, ExchangeFailed):
                    failed = True
        yield Read(body, trailers, failed, backend.surplus + behind if trailers is not None else b"")


def sized(data: bytes, form: str, extension: bytes, footer: bytes) -> bytes:
    return (form % len(data)).encode() + extension + b"\r\n" + data + footer


datas = st.binary(min_size=1, max_size=40) | st.sampled_from([b"\r\n", b"0\r\n\r\n", b"1\r\na\r\n", b"\n"])
plain = st.builds(sized, datas, st.sampled_from(["%x", "%X", "0%x", "%020x"]), st.just(b""), st.just(b"\r\n"))
odd = st.builds(
    sized,
    datas,
    st.sampled_from(["%x", "%021x", " %x", "0x%x", "-%x", "%x_", "+%x", "%x g"]),
    st.sampled_from([b"", b";a=b", b' ; a="b"', b" ", b"\t", b"\r", b";\n", b"\n"]),
    st.sampled_from([b"\r\n", b"\n", b"\r", b"", b"\r\n\r\n", b"xx", b"\rx"]),
)
lasts = st.sampled_from(
    [
        b"0\r\n\r\n",
        b"00000\r\n\r\n",
        b"0" * 21 + b"\r\n\r\n",
        b"0;a\r\n\r\n",
        b"0 \r\n\r\n",
        b"0\r\n\n",
        b"0\n\r\n",
        b"0\r\na: b\r\nc: d\r\n\r\n",
        b"0\r\na: b\n\n",
        b"0\r\n bad\r\n\r\n",
        b"0\r\na b\r\n\r\n",
        b"0\r\r\n\r\n",
        b"",
        b"5",
    ]
)
streams = st.builds(
    lambda chunks, last, behind: b"".join(chunks) + last + behind,
    st.lists(plain | plain | plain | odd, max_size=8),
    lasts,
    st.sampled_from([b"", b"", b"HTTP/1.1 200 OK\r\n", b"\r\n", b"x"]),
)


@settings(max_examples=1500)
@given(st.data(), streams | st.binary(max_size=30) | st.text("0123abcDEF;\r\n \t", max_size=30).map(str.encode))
def test_as_h11_does(data: st.DataObject, stream: bytes) -> None:
    """After each piece as many bytes, the same end, the same verdict, and the same bytes left over."""
    wire = HEAD + stream
    cuts = data.draw(st.lists(st.integers(len(HEAD) - 3, len(wire)), max_size=6).map(sorted))
    pieces = [wire[start:end] for start, end in pairwise([0, *cuts, len(wire)])]
    assert list(by_us(pieces)) == list(by_h11(pieces))


@settings(max_examples=500)
@given(streams)
@example(b"1\r\na\r\n0\r\n\r\n")
def test_byte_by_byte(stream: bytes) -> None:
    pieces = [bytes((byte,)) for byte in HEAD + stream]
    assert list(by_us(pieces)) == list(by_h11(pieces))


@pytest.mark.parametrize(
    ("method", "status"), [(b"HEAD", b"200 OK"), (b"GET", b"204 No Content"), (b"GET", b"304 Not Modified")]
)
def test_where_there_is_no_content_none_is_read(method: bytes, status: bytes) -> None:
    backend = Http1(max_header_size=LIMIT)
    backend.open(replace(GET, method=method), end=True)
    events = taken(backend, HEAD.replace(b"200 OK", status))
    assert [type(event) for event in events[:2]] == [ResponseReceived, ResponseCompleted]
    assert backend.capacity() == (0 if status.startswith(b"204") else 1)  # which must not say that any follows


@pytest.mark.parametrize("depth", [None, 2])
def test_the_connection_goes_on(depth: int | None) -> None:
    for trailers in (b"", b"a: b\r\n"):
        backend = Http1(max_header_size=LIMIT) if depth is None else Http1Pipeline(depth=depth, max_header_size=LIMIT)
        for number in range(1, 4):
            assert backend.open(GET, end=True) == number
            events = taken(backend, HEAD + b"3\r\nabc\r\n0\r\n" + trailers + b"\r\n")
            assert [type(event).__name__ for event in events] == [
                "ResponseReceived",
                "BodyReceived",
                "ResponseCompleted",
            ]
            assert not backend.must_abort
            assert backend.capacity()


def test_in_a_pipeline_each_has_its_own() -> None:
    backend = Http1Pipeline(depth=5, max_header_size=LIMIT)
    first = HEAD + b"1\r\n1\r\n0\r\n\r\n"
    backend.open(GET, end=True)
    taken(backend, first)
    numbers = [backend.open(GET, end=True) for _ in range(4)]
    many = b"".join(HEAD + b"1\r\n%d\r\n" % number * (3 * WORK) + b"0\r\n\r\n" for number in numbers)
    bodies = dict.fromkeys(numbers, b"")
    for event in taken(backend, many):
        if isinstance(event, BodyReceived):
            bodies[event.exchange] += event.data
    assert bodies == {number: b"%d" % number * (3 * WORK) for number in numbers}


# So much at a time


def calls(backend: Http1, wire: bytes) -> list[list[Event]]:
    """What came of each call."""
    events = [backend.receive(memoryview(wire))]
    while backend.unfinished:
        events.append(backend.go_on())
    return events


@pytest.mark.parametrize("extension", [b"", b";x"])
def test_small_chunks_are_taken_in_portions(extension: bytes) -> None:
    backend = Http1(max_header_size=LIMIT)
    backend.open(GET, end=True)
    count = 5000
    portions = calls(backend, HEAD + b"1%b\r\na\r\n" % extension * count + b"0\r\n\r\n")
    sizes = [sum(len(event.data) for event in events if isinstance(event, BodyReceived)) for events in portions]
    assert sum(sizes) == count
    assert max(sizes) <= 4 * WORK
    assert isinstance(portions[-1][-1], ResponseCompleted)


def test_interim_responses_are_taken_in_portions() -> None:
    backend = Http1(max_header_size=LIMIT)
    backend.open(GET, end=True)
    portions = calls(backend, b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000 + b"HTTP/1.1 204 No Content\r\n\r\n")
    assert max(map(len, portions)) <= WORK
    assert sum(map(len, portions)) == 1000 + 2


def test_a_large_head_counts_for_many() -> None:
    backend = Http1(max_header_size=LIMIT)
    backend.open(GET, end=True)
    interim = b"HTTP/1.1 103 Early Hints\r\n" + b"a: b\r\n" * 1000 + b"\r\n"
    portions = calls(backend, interim * 5 + b"HTTP/1.1 204 No Content\r\n\r\n")
    assert [len(events) for events in portions] == [1, 1, 1, 1, 1, 2]
