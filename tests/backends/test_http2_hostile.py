"""Hostile and broken peers: bounded memory, typed errors, the right code in our GOAWAY; and a fuzzer."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import GoAwayFrame, RstStreamFrame
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from allswell._backends.http2 import Http2
from allswell._backends.interface import (
    BodyReceived,
    ConnectionBroken,
    Event,
    ExchangeFailed,
    ResponseCompleted,
    ResponseReceived,
)
from allswell._errors import NotProcessed, RemoteProtocolError
from tests.backends.h2_peer import OK, Link, data, encode_frame, get, goaway, merge, rst, settings
from tests.support.taken import taken

ENDLESS = encode_frame(9, 0, 1, b"")
PING = encode_frame(6, 0, 0, b"12345678")


@pytest.fixture(params=[None, 1], ids=["at once", "byte by byte"])
def step(request: pytest.FixtureRequest) -> int | None:
    value: int | None = request.param
    return value


def answered(link: Link) -> bytes:
    link.frames(link.headers(1, [*OK, (b"content-length", b"10")]))
    return b""


def cancelled(link: Link) -> bytes:
    link.client.cancel(1)
    link.client.take_output()
    return b""


def ended(link: Link) -> bytes:
    link.frames(link.headers(1, OK, "END_STREAM"))
    return b""


def nothing(link: Link) -> bytes:
    return b""


P, F, S = ErrorCodes.PROTOCOL_ERROR, ErrorCodes.FLOW_CONTROL_ERROR, ErrorCodes.FRAME_SIZE_ERROR
CALM, CLOSED, HPACK = ErrorCodes.ENHANCE_YOUR_CALM, ErrorCodes.STREAM_CLOSED, ErrorCodes.COMPRESSION_ERROR

BROKEN: dict[str, tuple[Callable[[Link], bytes], bytes, ErrorCodes]] = {
    "an oversize frame": (nothing, b"\x00\x80\x01\x00\x00\x00\x00\x00\x01", S),
    "DATA on stream 0": (nothing, encode_frame(0, 0, 0, b"x"), P),
    "DATA on an idle stream": (nothing, encode_frame(0, 0, 3, b"x"), P),
    "DATA on a pushed stream": (nothing, encode_frame(0, 0, 2, b"x"), P),
    "HEADERS on an idle stream": (nothing, encode_frame(1, 4, 3, b"\x88"), P),
    "RST_STREAM on an idle stream": (nothing, encode_frame(3, 0, 3, b"\0\0\0\0"), P),
    "RST_STREAM on stream 0": (nothing, encode_frame(3, 0, 0, b"\0\0\0\0"), P),
    "RST_STREAM of three bytes": (nothing, encode_frame(3, 0, 1, b"\0\0\0"), S),
    "WINDOW_UPDATE on an idle stream": (nothing, encode_frame(8, 0, 3, b"\0\0\0\1"), P),
    "WINDOW_UPDATE by 0": (nothing, encode_frame(8, 0, 0, b"\0\0\0\0"), P),
    "WINDOW_UPDATE beyond 2^31-1": (nothing, encode_frame(8, 0, 0, b"\x7f\xff\xff\xff"), F),
    "DATA on an ended stream": (ended, encode_frame(0, 0, 1, b"x"), CLOSED),
    "HEADERS on an ended stream": (ended, encode_frame(1, 4, 1, b"\x88"), CLOSED),
    "more padding than frame": (answered, encode_frame(0, 8, 1, b"\x05abc"), P),
    "padding without a length": (answered, encode_frame(0, 8, 1, b""), S),
    "padded late DATA without a length": (cancelled, encode_frame(0, 8, 1, b""), S),
    "HEADERS too short for its priority": (nothing, encode_frame(1, 0x24, 1, b"\0\0"), S),
    "PUSH_PROMISE": (nothing, encode_frame(5, 4, 1, b"\0\0\0\2\x82"), P),
    "CONTINUATION out of the blue": (nothing, encode_frame(9, 4, 1, b"\x88"), P),
    "DATA within a header section": (answered, encode_frame(1, 0, 1, b"") + encode_frame(0, 0, 1, b"x"), P),
    "PING within a header section": (nothing, encode_frame(1, 0, 1, b"\x88") + PING, P),
    "CONTINUATION of another stream": (nothing, encode_frame(1, 0, 1, b"\x88") + encode_frame(9, 4, 3, b""), P),
    "a garbled header section": (nothing, encode_frame(1, 4, 1, b"\x00\x85"), HPACK),
    "an index into nothing": (nothing, encode_frame(1, 4, 1, b"\xfe"), HPACK),
    "an endless integer": (nothing, encode_frame(1, 4, 1, b"\xff" * 30), HPACK),
    "a garbled late header section": (cancelled, encode_frame(1, 4, 1, b"\xfe"), HPACK),
    "SETTINGS on a stream": (nothing, encode_frame(4, 0, 1, b""), P),
    "SETTINGS of five bytes": (nothing, encode_frame(4, 0, 0, b"\0" * 5), S),
    "SETTINGS ACK with content": (nothing, encode_frame(4, 1, 0, b"\0" * 6), S),
    "ENABLE_PUSH from a server": (nothing, encode_frame(4, 0, 0, b"\0\2\0\0\0\1"), P),
    "MAX_FRAME_SIZE too small": (nothing, encode_frame(4, 0, 0, b"\0\5\0\0\0\1"), P),
    "INITIAL_WINDOW_SIZE too large": (nothing, encode_frame(4, 0, 0, b"\0\4\x80\0\0\0"), F),
    "CONNECT_PROTOCOL taken back": (
        nothing,
        encode_frame(4, 0, 0, b"\0\x08\0\0\0\1") + encode_frame(4, 0, 0, b"\0\x08\0\0\0\0"),
        P,
    ),
    "PING of seven bytes": (nothing, encode_frame(6, 0, 0, b"1234567"), S),
    "PING on a stream": (nothing, encode_frame(6, 0, 1, b"12345678"), P),
    "a PING flood": (nothing, PING * 10_001, CALM),
    "a PING ACK flood": (nothing, encode_frame(6, 1, 0, b"12345678") * 10_001, CALM),
    "a SETTINGS flood": (nothing, encode_frame(4, 0, 0, b"") * 10_001, CALM),
    "a WINDOW_UPDATE flood": (nothing, encode_frame(8, 0, 0, b"\0\0\0\1") * 10_001, CALM),
    "an unknown type's flood": (nothing, encode_frame(0xEE, 0, 7, b"?") * 10_001, CALM),
    "PRIORITY on stream 0": (nothing, encode_frame(2, 0, 0, b"\0\0\0\0\0"), P),
    "a PRIORITY flood": (nothing, encode_frame(2, 0, 7, b"\0\0\0\0\0") * 10_001, CALM),
    "an RST_STREAM flood": (cancelled, encode_frame(3, 0, 1, b"\0\0\0\0") * 10_001, CALM),
    "an empty DATA flood": (answered, encode_frame(0, 0, 1, b"") * 10_001, CALM),
    "a padded empty DATA flood": (answered, encode_frame(0, 8, 1, b"\x01\0") * 10_001, CALM),
    "a late DATA flood": (cancelled, encode_frame(0, 0, 1, b"x") * 10_001, CALM),
    "a late HEADERS flood": (cancelled, encode_frame(1, 4, 1, b"\x88") * 10_001, CALM),
    "a CONTINUATION flood": (nothing, encode_frame(1, 0, 1, b"\x88") + ENDLESS * 100, CALM),
    "a long CONTINUATION flood": (
        nothing,
        encode_frame(1, 0, 1, b"") + encode_frame(9, 0, 1, b"\x88" * 16384) * 20,
        CALM,
    ),
    "an HPACK bomb": (
        nothing,
        encode_frame(1, 4, 1, b"\x88\x40\x01x\x7f\xa1\x1e" + b"v" * 4000 + b"\xbe" * 12_000),
        CALM,
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_the_connection_breaks_with_the_right_word(case: str, step: int | None) -> None:
    prepare, attack, code = BROKEN[case]
    link = Link(step=step if len(attack) < 5000 else None)
    link.request()
    prepare(link)
    open_before = set(link.client._streams)
    events = link.deliver(attack)
    broken = [event for event in events if isinstance(event, ConnectionBroken)]
    assert len(broken) == 1
    assert events[-1] is broken[0]
    assert isinstance(broken[0].error, RemoteProtocolError)
    assert broken[0].error.reach == "connection"
    assert {event.exchange for event in events if isinstance(event, ExchangeFailed)} == open_before
    output = link.output_frames()
    said = output[-1]
    assert isinstance(said, GoAwayFrame)
    assert said.error_code == code
    assert sum(isinstance(frame, GoAwayFrame) for frame in output) == 1
    assert link.client.capacity() == 0
    with pytest.raises(NotProcessed):
        link.client.open(get(), end=True)


def test_a_peer_that_speaks_http1(step: int | None) -> None:
    link = Link(step=step, greet=False)
    link.client.open(get(), end=True)
    events = link.deliver(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert isinstance(events[-1], ConnectionBroken)
    assert "does not speak HTTP/2" in str(events[-1].error)


def test_the_first_frame_must_be_settings(step: int | None) -> None:
    for frame in (PING, encode_frame(4, 1, 0, b"")):
        link = Link(step=step, greet=False)
        (event,) = link.deliver(frame)
        assert isinstance(event, ConnectionBroken)


def test_windows_are_enforced(step: int | None) -> None:
    link = Link(step=step, initial_window=10, connection_window=65_535)
    link.request()
    events = link.frames(link.headers(1), data(1, b"x" * 11))
    assert isinstance(events[-1], ConnectionBroken)
    link = Link(step=step, initial_window=70_000, connection_window=65_535)
    link.request()
    link.frames(link.headers(1))
    events = link.frames(*(data(1, b"x" * 16384) for _ in range(4)))
    assert isinstance(events[-1], ConnectionBroken)
    said = link.output_frames()[-1]
    assert isinstance(said, GoAwayFrame)
    assert said.error_code == F


MALFORMED: dict[str, Callable[[Link], list[Event]]] = {
    "no :status": lambda link: link.frames(link.headers(1, [(b"a", b"b")])),
    "no fields": lambda link: link.frames(link.headers(1, [])),
    "an illegal :status": lambda link: link.frames(link.headers(1, [(b":status", b"2OO")])),
    "101": lambda link: link.frames(link.headers(1, [(b":status", b"101")])),
    "two of :status": lambda link: link.frames(link.headers(1, [(b":status", b"200"), (b":status", b"200")])),
    ":path in a response": lambda link: link.frames(link.headers(1, [*OK, (b":path", b"/")])),
    "an upper-case name": lambda link: link.frames(link.headers(1, [*OK, (b"Server", b"x")])),
    "an empty name": lambda link: link.frames(link.headers(1, [*OK, (b"", b"x")])),
    "a colon in a name": lambda link: link.frames(link.headers(1, [*OK, (b"a:b", b"x")])),
    "a line break in a value": lambda link: link.frames(link.headers(1, [*OK, (b"a", b"x\r\ny")])),
    "a NUL in a value": lambda link: link.frames(link.headers(1, [*OK, (b"a", b"x\0")])),
    "a vertical tab in a value": lambda link: link.frames(link.headers(1, [*OK, (b"a", b"x\vy")])),
    "a name that is no token": lambda link: link.frames(link.headers(1, [*OK, (b"a(b", b"x")])),
    "te": lambda link: link.frames(link.headers(1, [*OK, (b"te", b"trailers")])),
    "a connection-specific field": lambda link: link.frames(link.headers(1, [*OK, (b"connection", b"x")])),
    "a negative content-length": lambda link: link.frames(link.headers(1, [*OK, (b"content-length", b"-1")])),
    "two content-lengths": lambda link: link.frames(
        link.headers(1, [*OK, (b"content-length", b"1"), (b"content-length", b"2")])
    ),
    "no body where one was announced": lambda link: link.frames(
        link.headers(1, [*OK, (b"content-length", b"1")], "END_STREAM")
    ),
    "a body too short": lambda link: link.frames(
        link.headers(1, [*OK, (b"content-length", b"2")]), data(1, b"x", "END_STREAM")
    ),
    "a body too long": lambda link: link.frames(link.headers(1, [*OK, (b"content-length", b"2")]), data(1, b"xxx")),
    "a body too short before trailers": lambda link: link.frames(
        link.headers(1, [*OK, (b"content-length", b"2")]), link.headers(1, [(b"a", b"b")], "END_STREAM")
    ),
    "a body to 204": lambda link: link.frames(link.headers(1, [(b":status", b"204")]), data(1, b"x")),
    "a body before the response": lambda link: link.frames(data(1, b"x")),
    "trailers that do not end": lambda link: link.frames(link.headers(1), link.headers(1, [(b"a", b"b")])),
    "trailers with :status": lambda link: link.frames(link.headers(1), link.headers(1, OK, "END_STREAM")),
    "1xx that ends": lambda link: link.frames(link.headers(1, [(b":status", b"103")], "END_STREAM")),
    "a large header list": lambda link: link.frames(link.headers(1, [*OK, *[(b"a", b"x" * 3000)] * 25])),
    "a stream window beyond 2^31-1": lambda link: link.deliver(encode_frame(8, 0, 1, b"\x7f\xff\xff\xff")),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_message_ends_its_stream_alone(case: str, step: int | None) -> None:
    link = Link(step=step)
    link.request()
    sibling = link.request()
    events = MALFORMED[case](link)
    failed = events[-1]
    assert isinstance(failed, ExchangeFailed)
    assert failed.exchange == 1
    assert isinstance(failed.error, RemoteProtocolError)
    assert failed.error.reach == "exchange"
    resets = [frame for frame in link.output_frames() if isinstance(frame, RstStreamFrame)]
    assert [frame.stream_id for frame in resets] == [1]
    assert link.frames(data(1, b"late"), rst(1, 0)) == []
    assert [type(event) for event in link.frames(link.headers(sibling, OK, "END_STREAM"))] == [
        ResponseReceived,
        ResponseCompleted,
    ]


@pytest.mark.parametrize("size", [0, 4, 6])
def test_priority_of_a_wrong_length_ends_its_stream_alone(size: int, step: int | None) -> None:
    """RFC 9113 §6.3. Of a stream that is not open nothing is left to end."""
    link = Link(step=step)
    exchange, sibling = link.request(), link.request()
    [failed] = link.deliver(encode_frame(2, 0, exchange, b"\0" * size))
    assert isinstance(failed, ExchangeFailed)
    assert (failed.exchange, failed.error.reach) == (exchange, "exchange")
    assert link.deliver(encode_frame(2, 0, exchange, b"\0" * size) + encode_frame(2, 0, 99, b"\0" * size)) == []
    [reset] = link.output_frames()
    assert isinstance(reset, RstStreamFrame)
    assert (reset.stream_id, reset.error_code) == (exchange, S)
    assert isinstance(link.frames(link.headers(sibling, OK, "END_STREAM"))[-1], ResponseCompleted)


@pytest.mark.parametrize("stream", [0, 1])
def test_the_reserved_bit_of_a_window_update_is_ignored(stream: int, step: int | None) -> None:
    """RFC 9113 §6.9."""
    link = Link(step=step)
    exchange = link.request(get(method=b"POST", headers=[]), end=False)
    before = link.client.send_window(exchange)
    link.deliver(encode_frame(8, 0, 1 - stream, b"\0\0\x10\0") + encode_frame(8, 0, stream, b"\x80\0\x10\0"))
    assert link.client.send_window(exchange) == before + 0x1000
    assert link.output_frames() == []


@pytest.mark.parametrize("status", [b"204", b"304"])
def test_a_content_length_without_content_is_fine_where_there_is_none(status: bytes, step: int | None) -> None:
    link = Link(step=step)
    link.request()
    events = link.frames(link.headers(1, [(b":status", status), (b"content-length", b"5")]), data(1, b"", "END_STREAM"))
    assert [type(event) for event in events] == [ResponseReceived, ResponseCompleted]
    link.request(get(method=b"HEAD"))
    events = link.frames(link.headers(3, [*OK, (b"content-length", b"5")], "END_STREAM"))
    assert [type(event) for event in events] == [ResponseReceived, ResponseCompleted]


@pytest.mark.parametrize("flags", [(), ("END_STREAM",)])
def test_there_are_no_header_sections_in_a_tunnel(flags: tuple[str, ...], step: int | None) -> None:
    """RFC 9113 §8.5."""
    link = Link(step=step)
    exchange = link.request(get(b"origin:443", method=b"CONNECT"), end=False)
    events = link.frames(link.headers(exchange), data(exchange, b"x"), link.headers(exchange, [(b"a", b"b")], *flags))
    assert [type(event) for event in events] == [ResponseReceived, BodyReceived, ExchangeFailed]
    resets = [frame for frame in link.output_frames() if isinstance(frame, RstStreamFrame)]
    assert [(frame.stream_id, frame.error_code) for frame in resets] == [(exchange, P)]


def test_progress_pardons() -> None:
    link = Link()
    for _ in range(5):
        link.request()
        assert link.deliver(PING * 9_000) == []
        link.client.take_output()
    assert link.client.capacity() > 0


def test_answers_to_our_own_pings_are_no_flood() -> None:
    link = Link()
    for _ in range(10_500):
        assert link.client.ping()
        assert link.deliver(encode_frame(6, 1, 0, b"allswell")) == []
    assert link.client.capacity() > 0


def test_unknown_settings_and_frames_are_not_kept() -> None:
    link = Link()
    unknown = b"".join(number.to_bytes(2, "big") + b"\0\0\0\1" for number in range(100, 2800))
    for _ in range(3):
        link.deliver(encode_frame(4, 0, 0, unknown[:16380]))
    link.frames(settings(HEADER_TABLE_SIZE=2**31))
    assert len(link.client._h2.remote_settings) < 10
    assert link.client._h2.encoder.header_table_size == 4096
    assert len(link.output_frames()) == 4


def session() -> bytes:
    """All that a server may say to the requests of :func:`fresh`."""
    link = Link(greet=False)
    for _ in range(4):
        link.client.open(get(), end=True)
    padded = data(3, b"padded", "PADDED")
    padded.pad_length = 5
    frames = [
        settings(MAX_CONCURRENT_STREAMS=5, INITIAL_WINDOW_SIZE=1000),
        link.headers(1, [(b":status", b"103"), (b"link", b"</x>")]),
        link.headers(1, [*OK, (b"content-length", b"9")]),
        data(1, b"123"),
        link.headers(3, OK),
        padded,
        data(1, b"456"),
        data(1, b"789", "END_STREAM"),
        link.headers(3, [(b"trailer", b"x")], "END_STREAM"),
        rst(5, ErrorCodes.REFUSED_STREAM),
        goaway(2**31 - 1),
        goaway(7, 0, b"bye"),
        link.headers(7, [*OK, (b"server", b"pretend")]),
        data(7, b"the last", "END_STREAM"),
    ]
    wire = b"".join(frame.serialize() for frame in frames)
    return wire + PING + encode_frame(8, 0, 0, b"\0\0\0\5") + encode_frame(0xBE, 0, 0, b"grease")


SESSION = session()


def fresh() -> Http2:
    client = Http2(max_header_size=4096, initial_window=1000, connection_window=70_000)
    for _ in range(4):
        client.open(get(), end=True)
    return client


def shape(events: list[Event]) -> list[object]:
    """Events, comparable: errors by type and words."""
    return [
        (type(event), event.exchange, type(event.error), str(event.error))
        if isinstance(event, ExchangeFailed)
        else (type(event), str(event.error))
        if isinstance(event, ConnectionBroken)
        else (type(event), event.exchange, event.data)  # credit for mere padding may come with it, or not
        if isinstance(event, BodyReceived)
        else repr(event)
        for event in merge(events)
    ]


def feed(client: Http2, wire: bytes, cuts: list[int]) -> list[Event]:
    events: list[Event] = []
    edges = [0, *sorted(cuts), len(wire)]
    for start, end in itertools.pairwise(edges):
        events += taken(client, memoryview(wire[start:end]))
        for event in events:
            if isinstance(event, BodyReceived):
                client.consumed(event.exchange, event.credit)
        client.take_output()
    return events + client.receive_eof(None)


def finished(events: list[Event]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for event in events:
        if isinstance(event, ResponseCompleted | ExchangeFailed):
            counts[event.exchange] = counts.get(event.exchange, 0) + 1
    return counts


@given(st.lists(st.integers(0, len(SESSION)), max_size=30))
@hypothesis_settings(max_examples=100)
def test_how_input_is_cut_does_not_matter(cuts: list[int]) -> None:
    assert shape(feed(fresh(), SESSION, cuts)) == shape(feed(fresh(), SESSION, []))


def test_the_session_means_what_it_should() -> None:
    events = feed(fresh(), SESSION, list(range(len(SESSION))))
    assert finished(events) == {1: 1, 3: 1, 5: 1, 7: 1}
    assert not any(isinstance(event, ConnectionBroken) for event in events)


def test_cut_at_every_byte_ends_every_exchange_once() -> None:
    for size in range(len(SESSION)):
        assert finished(feed(fresh(), SESSION[:size], [])) == {1: 1, 3: 1, 5: 1, 7: 1}


@given(st.randoms(use_true_random=False), st.integers(1, 8))
@hypothesis_settings(max_examples=600)
def test_mutated_streams_raise_nothing(rng: random.Random, changes: int) -> None:
    wire = bytearray(SESSION)
    for _ in range(changes):
        where = rng.randrange(len(wire))
        what = rng.randrange(4)
        if what == 0:
            wire[where] = rng.randrange(256)
        elif what == 1:
            del wire[where : where + rng.randrange(1, 12)]
        elif what == 2:
            wire[where:where] = rng.randbytes(rng.randrange(1, 12))
        else:
            wire[where] ^= 1 << rng.randrange(8)
    cuts = [rng.randrange(len(wire)) for _ in range(rng.randrange(4))] if wire else []
    events = feed(fresh(), bytes(wire), cuts)
    assert finished(events) == {1: 1, 3: 1, 5: 1, 7: 1}
    assert shape(events) == shape(feed(fresh(), bytes(wire), []))


FRAME = st.builds(
    encode_frame,
    st.one_of(st.integers(0, 9), st.integers(0, 255)),
    st.one_of(st.sampled_from([0, 1, 4, 5, 8, 0xD, 0x24]), st.integers(0, 255)),
    st.integers(0, 9),
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from([b"\x88", b"\x88\x0f\x0d\x015", b"\0\0\0\0", b"\0\0\0\5", b"\0" * 8, b"\0\0\0\0\0"]),
    ),
)


@given(st.lists(FRAME, max_size=25))
@hypothesis_settings(max_examples=600)
def test_random_frames_raise_nothing(frames: list[bytes]) -> None:
    client = fresh()
    wire = settings().serialize() + b"".join(frames)
    assert finished(feed(client, wire, [])) == {1: 1, 3: 1, 5: 1, 7: 1}
    assert not client._streams
    assert not client._unread
