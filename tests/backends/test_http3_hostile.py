"""HTTP/3 and servers that get things wrong, or worse, byte by byte: no network, and a QUIC that only takes notes."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pylsqpack import Encoder

from allswell._backends import http3_frames as h3
from allswell._backends.interface import (
    BodyReceived,
    ConnectionBroken,
    Event,
    ExchangeFailed,
    PeerLeaving,
    ResponseCompleted,
    ResponseReceived,
    UploadRefused,
)
from allswell._errors import ExchangeReset, NotProcessed, RemoteProtocolError, TransportError
from allswell._quic import varint
from allswell._quic.interface import (
    DatagramFrameReceived,
    HandshakeCompleted,
    QuicEvent,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)
from tests.backends.h3_peer import CONTROL, Link


def failure(events: list[Event]) -> Exception:
    """The error of the one exchange that failed."""
    [failed] = [event for event in events if isinstance(event, ExchangeFailed)]
    return failed.error


@pytest.mark.parametrize("end", [False, True])
def test_an_answer_to_a_request_that_was_not_sent_fails_it_alone(end: bool) -> None:
    link = Link(handshake_complete=False)
    held, other = link.open(b"POST"), link.open()
    assert link.quic.sent[held] == b""  # it waits for the handshake (RFC 8470 §4)
    error = failure(link.say(held, link.head(held), end=end))
    assert isinstance(error, RemoteProtocolError)
    assert error.reach == "exchange"
    link.quic.handshake_complete = True
    assert link.hear(HandshakeCompleted()) == []
    assert link.quic.sent[held] == b""
    events = link.say(other, link.head(other), end=True)
    assert [type(event) for event in events] == [ResponseReceived, ResponseCompleted]


@pytest.mark.parametrize("code", [h3.H3_NO_ERROR, h3.H3_REQUEST_CANCELLED])
def test_a_request_that_is_refused_before_it_was_sent_is_not_sent(code: int) -> None:
    link = Link(greet=False)
    held = link.open(b"CONNECT", protocol=b"websocket", end=False)
    events = link.hear(StopSendingReceived(error_code=code, stream_id=held))
    assert isinstance(failure(events), ExchangeReset)
    assert link.say(CONTROL, b"\0" + h3.settings({h3.ENABLE_CONNECT_PROTOCOL: 1})) == []
    assert link.quic.sent[held] == b""


@pytest.mark.parametrize("code", [0, 0x21, 0x21 + 0x1F * 7, h3.H3_NO_ERROR])
def test_codes_that_nobody_knows_are_no_errors(code: int) -> None:
    """RFC 9114 §8; §8.1 has codes that are reserved to try this."""
    link = Link()
    exchange = link.open(b"POST", end=False)
    events = link.hear(StopSendingReceived(error_code=code, stream_id=exchange))
    assert events == [UploadRefused(exchange)]
    events = link.say(exchange, link.head(exchange, 413) + h3.frame(h3.DATA, b"too much"), end=True)
    assert [type(event) for event in events] == [ResponseReceived, BodyReceived, ResponseCompleted]


@pytest.mark.parametrize(("method", "status"), [(b"HEAD", 200), (b"GET", 204), (b"GET", 304)])
def test_content_where_there_can_be_none(method: bytes, status: int) -> None:
    """RFC 9110 §6.4.1."""
    link = Link()
    exchange = link.open(method)
    head = link.head(exchange, status, [(b"content-length", b"3")])
    events = link.say(exchange, head + h3.frame(h3.DATA, b"abc"), end=True)
    assert not [event for event in events if isinstance(event, (BodyReceived, ResponseCompleted))]
    assert isinstance(failure(events), RemoteProtocolError)
    other = link.open(method)
    events = link.say(other, link.head(other, status, [(b"content-length", b"3")]), end=True)
    assert [type(event) for event in events] == [ResponseReceived, ResponseCompleted]


@pytest.mark.parametrize("way", ["reset", "goaway"])
def test_what_was_answered_was_processed_whatever_is_said_later(way: str) -> None:
    link = Link()
    exchange, other = link.open(), link.open()
    link.say(exchange, link.head(exchange) + h3.frame(h3.DATA, b"abc"))
    if way == "reset":
        events = link.hear(StreamReset(error_code=h3.H3_REQUEST_REJECTED, stream_id=exchange))
        assert isinstance(failure(events), ExchangeReset)
        events = link.hear(StreamReset(error_code=h3.H3_REQUEST_REJECTED, stream_id=other))
        assert isinstance(failure(events), NotProcessed)
    else:
        events = link.say(CONTROL, h3.frame(h3.GOAWAY, varint.encode(0)))
        errors = [event.error for event in events if isinstance(event, ExchangeFailed)]
        assert [type(error) for error in errors] == [TransportError, NotProcessed]
        assert isinstance(events[0], PeerLeaving)


@pytest.mark.parametrize("content", [b"", b"x"])
@pytest.mark.parametrize("where", ["before", "after"])
def test_data_outside_of_a_body_breaks_the_connection(where: str, content: bytes) -> None:
    """RFC 9114 §4.1, also when there is nothing in it."""
    link = Link()
    exchange = link.open()
    start = b""
    if where == "after":
        trailers = h3.frame(h3.HEADERS, link._encoder.encode(exchange, [(b"checksum", b"1")])[1])
        start = link.head(exchange) + h3.frame(h3.DATA, b"") + trailers
    events = link.say(exchange, start + h3.frame(h3.DATA, content))
    assert isinstance(events[-1], ConnectionBroken)
    assert link.quic.did[-1] == ("close", h3.H3_FRAME_UNEXPECTED)
    assert not [event for event in events if isinstance(event, BodyReceived)]


@pytest.mark.parametrize("frame", [h3.frame(0x21, b""), h3.frame(0x21, b"?"), h3.frame(h3.DATA, b"")])
def test_frames_to_no_purpose_are_counted(frame: bytes) -> None:
    link = Link()
    exchange = link.open()
    link.say(exchange, link.head(exchange))
    assert link.say(exchange, frame * 10_000) == []
    assert len(link.say(exchange, h3.frame(h3.DATA, b"progress") + frame * 10_000)) == 1
    events = link.say(exchange, frame)
    assert isinstance(events[-1], ConnectionBroken)
    assert link.quic.did[-1] == ("close", h3.H3_EXCESSIVE_LOAD)


_STREAMS = st.sampled_from([0, 4, 8, 1, 3, 7, 11, 15])
_SECTIONS = st.sampled_from(
    [
        [(b":status", b"200")],
        [(b":status", b"200"), (b"content-length", b"3")],
        [(b":status", b"103")],
        [(b":status", b"425")],
        [(b"checksum", b"1")],
        [(b"Bad", b"1")],
        [],
    ]
).map(lambda fields: h3.frame(h3.HEADERS, Encoder().encode(0, fields)[1]))
_KINDS = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0xC, 0xD, 0x21, 0x40])
_PIECES = st.one_of(
    _SECTIONS,
    st.sampled_from([h3.frame(h3.DATA, b"abc"), b"\0" + h3.settings({h3.ENABLE_CONNECT_PROTOCOL: 1}), b"\2", b"\3"]),
    st.builds(h3.frame, _KINDS, st.binary(max_size=6)),
    st.binary(max_size=6),
)
_CODES = st.sampled_from([0, 0x21, 0x100, 0x10B, 0x10C])
_EVENTS = st.one_of(
    st.builds(StreamDataReceived, data=_PIECES, end_stream=st.booleans(), stream_id=_STREAMS),
    st.builds(StreamReset, error_code=_CODES, stream_id=_STREAMS),
    st.builds(StopSendingReceived, error_code=_CODES, stream_id=st.sampled_from([0, 2, 4, 6, 8])),
    st.builds(DatagramFrameReceived, data=st.binary(max_size=4)),
    st.just(HandshakeCompleted()),
)


@given(batches=st.lists(st.lists(_EVENTS, max_size=4), max_size=12), early=st.booleans())
@hypothesis.settings(max_examples=400)
def test_whatever_comes_raises_nothing_and_ends_every_exchange_once(
    batches: list[list[QuicEvent]], early: bool
) -> None:
    link = Link(greet=False, handshake_complete=not early)
    exchanges = [link.open(), link.open(b"POST"), link.open(b"CONNECT", protocol=b"websocket", end=False)]
    finals: list[int] = []
    ends: list[int] = []
    over: set[int] = set()  # both halves of these streams: QUIC tells nothing more of them
    for batch in batches:
        if any(isinstance(event, HandshakeCompleted) for event in batch):
            link.quic.handshake_complete = True
        told = []
        for each in batch:
            if getattr(each, "stream_id", None) in over:
                continue
            if isinstance(each, StreamReset) or (isinstance(each, StreamDataReceived) and each.end_stream):
                over.add(each.stream_id)
            told.append(each)
        for event in link.hear(*told):
            if isinstance(event, ResponseReceived):
                finals.append(event.exchange)
                assert event.exchange not in ends
            elif isinstance(event, BodyReceived):
                assert event.exchange in finals
                assert event.exchange not in ends
                link.client.consumed(event.exchange, event.credit)
            elif isinstance(event, ResponseCompleted):
                assert event.exchange not in ends
                ends.append(event.exchange)
            elif isinstance(event, ExchangeFailed):  # also of an upload, after the response
                ends.append(event.exchange)
    for event in link.client.receive_eof(None):
        assert isinstance(event, ExchangeFailed)
        ends.append(event.exchange)
    assert sorted(set(finals)) == sorted(finals)
    assert sorted(set(ends)) == exchanges


def test_data_in_tiny_frames_is_put_together() -> None:
    """A frame of one byte takes three on the wire, and an event for each would take a hundred in memory."""
    link = Link()
    exchange = link.open()
    frames = b"".join(h3.frame(h3.DATA, b"%03d" % number) + h3.frame(0x21, b"") for number in range(1000))
    events = link.say(exchange, link.head(exchange) + frames, end=True)
    bodies = [event for event in events if isinstance(event, BodyReceived)]
    assert b"".join(event.data for event in bodies) == b"".join(b"%03d" % number for number in range(1000))
    assert sum(event.credit for event in bodies) == 3000
    assert len(bodies) <= 4
    assert type(events[-1]) is ResponseCompleted


def test_small_frames_are_taken_apart_a_few_at_a_time() -> None:
    reader = h3.FrameReader(frozenset(), 100)
    assert reader.feed(b"\0\1x" * 10 + b"\0\5y", 4) == [(0, b"xxxx")]
    assert reader.rest == b"\0\1x" * 6 + b"\0\5y"
    assert reader.feed(reader.rest) == [(0, b"xxxxxxy")]
    assert reader.feed(b"yy", 4) == [(0, b"yy")]
    assert reader.rest == b""
    assert not reader.between_frames


def test_credit_that_the_peer_is_told_of_now_is_something_to_send() -> None:
    """Else a download whose reader is slow would stand still until something else is sent."""
    link = Link()
    stream, window = link.open(), link.quic.stream_window
    link.quic.tells = False
    link.say(stream, link.head(stream) + h3.frame(h3.DATA, bytes(window)))
    assert not link.client.consumed(stream, 1000)
    assert link.client.consumed(stream, window >> 2)  # the stream's
    assert not link.client.consumed(stream, 1000)
    link.quic.tells = True
    assert link.client.consumed(stream, 1000)  # the connection's
    assert link.client.consumed(stream, window)
    assert not link.client.consumed(stream, 1000)  # nothing is left to be read
