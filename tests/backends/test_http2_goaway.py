"""A peer that leaves: GOAWAY in all its shapes (RFC 9113 §6.8)."""

from __future__ import annotations

import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import GoAwayFrame

from allswell._backends.interface import (
    BodyReceived,
    ConnectionBroken,
    Event,
    ExchangeFailed,
    PeerLeaving,
    ResponseCompleted,
    ResponseReceived,
)
from allswell._errors import NotProcessed, RemoteProtocolError
from allswell._messages import ResponseHead
from tests.backends.h2_peer import OK, Link, data, encode_frame, get, goaway, rst

HEAD = ResponseHead(200, [(b"server", b"pretend")], b"HTTP/2")
NEVER = 2**31 - 1


@pytest.fixture(params=[None, 1, 5], ids=["at once", "byte by byte", "in fives"])
def link(request: pytest.FixtureRequest) -> Link:
    link = Link(step=request.param)
    for _ in range(3):
        link.request()
    return link


def not_processed(events: list[Event]) -> list[int]:
    """The exchanges that are free to be replayed; all other failures fail the test."""
    failed = [event for event in events if isinstance(event, ExchangeFailed)]
    for event in failed:
        assert isinstance(event.error, NotProcessed)
        assert event.error.proven
        assert isinstance(event.error.cause, RemoteProtocolError)
    return [event.exchange for event in failed]


def answer(link: Link, exchange: int) -> list[Event]:
    return link.frames(link.headers(exchange), data(exchange, b"fine", "END_STREAM"))


def answered(exchange: int) -> list[Event]:
    return [
        ResponseReceived(exchange, HEAD),
        BodyReceived(exchange, b"fine", 4),
        ResponseCompleted(exchange, []),
    ]


@pytest.mark.parametrize(
    ("last", "replayed"), [(0, [1, 3, 5]), (1, [3, 5]), (2, [3, 5]), (3, [5]), (5, []), (7, []), (NEVER, [])]
)
def test_what_is_above_the_last_id_is_replayed_and_the_rest_finishes(
    link: Link, last: int, replayed: list[int]
) -> None:
    events = link.frames(goaway(last))
    assert events[0] == PeerLeaving(None)
    assert not_processed(events[1:]) == replayed
    assert link.client.capacity() == 0
    with pytest.raises(NotProcessed) as caught:
        link.client.open(get(), end=True)
    assert caught.value.proven
    for exchange in (1, 3, 5):
        if exchange not in replayed:
            assert answer(link, exchange) == answered(exchange)
    assert link.client.receive_eof(None) == []


def test_the_warning_first_and_the_real_one_later(link: Link) -> None:
    assert link.frames(goaway(NEVER)) == [PeerLeaving(None)]
    assert answer(link, 1) == answered(1)
    assert not_processed(link.frames(goaway(3))) == [5]
    assert answer(link, 3) == answered(3)


def test_a_raised_last_id_changes_nothing(link: Link) -> None:
    assert not_processed(link.frames(goaway(3))[1:]) == [5]
    assert link.frames(goaway(NEVER)) == []
    assert answer(link, 3) == answered(3)
    assert link.client.capacity() == 0


def test_between_the_frames_of_a_response(link: Link) -> None:
    events = link.frames(link.headers(1), data(1, b"fi"), goaway(1), data(1, b"ne", "END_STREAM"))
    assert not_processed(events) == [3, 5]
    bodies = [event.data for event in events if isinstance(event, BodyReceived)]
    assert b"".join(bodies) == b"fine"
    assert events[-1] == ResponseCompleted(1, [])


def test_an_upload_within_the_last_id_goes_on(link: Link) -> None:
    upload = link.request(get(method=b"POST"), end=False)
    link.frames(goaway(upload))
    link.client.send_body(upload, b"x" * 1000, end=True)
    assert len(link.client.take_output()) == 1009


def test_settings_ping_and_windows_still_work_while_the_peer_leaves(link: Link) -> None:
    link.frames(goaway(5))
    link.server.ping(b"01234567")
    link.to_client()
    (frame,) = link.output_frames()
    assert "ACK" in frame.flags
    assert link.client.ping()


def test_with_an_error_code(link: Link) -> None:
    events = link.frames(goaway(1, ErrorCodes.INTERNAL_ERROR, b"out of luck"))
    leaving = events[0]
    assert isinstance(leaving, PeerLeaving)
    assert isinstance(leaving.error, RemoteProtocolError)
    assert "INTERNAL_ERROR" in str(leaving.error)
    assert "out of luck" in str(leaving.error)
    assert not_processed(events[1:]) == [3, 5]


@pytest.mark.parametrize(
    "code", [ErrorCodes.ENHANCE_YOUR_CALM, ErrorCodes.INADEQUATE_SECURITY, ErrorCodes.HTTP_1_1_REQUIRED]
)
def test_a_reason_that_is_about_us_permits_no_replay(link: Link, code: ErrorCodes) -> None:
    events = link.frames(goaway(1, code, b"too_many_pings"))
    assert isinstance(events[0], PeerLeaving)
    failed = events[1:]
    assert [event.exchange for event in failed if isinstance(event, ExchangeFailed)] == [3, 5]
    for event in failed:
        assert isinstance(event, ExchangeFailed)
        assert type(event.error) is RemoteProtocolError
        assert code.name in str(event.error)
    assert answer(link, 1) == answered(1)


def test_an_error_after_the_polite_one_is_reported(link: Link) -> None:
    link.frames(goaway(NEVER))
    events = link.frames(goaway(5, ErrorCodes.PROTOCOL_ERROR))
    assert len(events) == 1
    assert isinstance(events[0], PeerLeaving)
    assert isinstance(events[0].error, RemoteProtocolError)


def test_eof_at_once(link: Link) -> None:
    assert not_processed(link.frames(goaway(3))[1:]) == [5]
    failed = link.client.receive_eof(None)
    assert [event.exchange for event in failed if isinstance(event, ExchangeFailed)] == [1, 3]
    for event in failed:
        assert isinstance(event, ExchangeFailed)
        assert isinstance(event.error, NotProcessed)
        assert not event.error.proven  # it may have been: only what is idempotent goes again
        assert "GOAWAY, NO_ERROR" in str(event.error)


def test_late_frames_of_what_it_disowned_are_swallowed(link: Link) -> None:
    link.frames(goaway(3))
    assert link.frames(link.headers(5), data(5, b"after all"), rst(5, 0)) == []
    assert answer(link, 3) == answered(3)


def test_before_the_peers_settings_it_is_heard_too() -> None:
    link = Link(greet=False)
    exchange = link.client.open(get(), end=True)
    events = link.frames(goaway(0))
    assert events[0] == PeerLeaving(None)
    assert not_processed(events[1:]) == [exchange]


def test_h2_never_hears_of_it(link: Link) -> None:
    link.frames(goaway(5), goaway(5), goaway(5))
    assert link.client._h2.state_machine.state.name == "CLIENT_OPEN"


def test_ours_crosses_theirs(link: Link) -> None:
    for exchange in (1, 3, 5):
        answer(link, exchange)
    link.frames(goaway(5))
    link.client.goodbye()
    (frame,) = link.output_frames()
    assert isinstance(frame, GoAwayFrame)
    assert link.frames(goaway(5)) == []
    assert link.client.receive_eof(None) == []


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (encode_frame(7, 0, 1, b"\0" * 8), ErrorCodes.PROTOCOL_ERROR),
        (encode_frame(7, 0, 0, b"\0" * 7), ErrorCodes.FRAME_SIZE_ERROR),
        (encode_frame(1, 0, 1, b"\x88") + encode_frame(7, 0, 0, b"\0" * 8), ErrorCodes.PROTOCOL_ERROR),
    ],
    ids=["on a stream", "too short", "within a header section"],
)
def test_illegal_ones(link: Link, frame: bytes, code: ErrorCodes) -> None:
    events = link.deliver(frame)
    assert isinstance(events[-1], ConnectionBroken)
    assert [event.exchange for event in events if isinstance(event, ExchangeFailed)] == [1, 3, 5]
    (said,) = link.output_frames()
    assert isinstance(said, GoAwayFrame)
    assert said.error_code == code


def test_a_flood_of_them_is_an_attack(link: Link) -> None:
    link.step = None
    events = link.deliver(goaway(5).serialize() * 10_001)
    assert events[0] == PeerLeaving(None)
    assert isinstance(events[-1], ConnectionBroken)
    assert len(events) == 5


def test_trailing_frames_after_a_broken_connection_are_ignored(link: Link) -> None:
    link.deliver(encode_frame(7, 0, 1, b"\0" * 8))
    assert link.frames(link.headers(1, OK, "END_STREAM")) == []
    assert link.client.receive_eof(None) == []
