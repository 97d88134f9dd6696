"""Input is taken in portions, however small the pieces are that the peer has cut it into; cut so, it means the same."""

from __future__ import annotations

import pytest

from allswell._backends import http3_frames as h3
from allswell._backends.interface import (
    WORK,
    BodyReceived,
    ConnectionBroken,
    Event,
    InformationalReceived,
    ResponseCompleted,
)
from allswell._quic.interface import StreamDataReceived
from tests.backends import h3_peer
from tests.backends.h2_peer import Link, encode_frame

#: HTTP/2 frame types.
DATA, PRIORITY, SETTINGS, PING, WINDOW_UPDATE, ORIGIN = 0x0, 0x2, 0x4, 0x6, 0x8, 0xC


def h2(between: bytes, pieces: int = 5000) -> tuple[list[list[Event]], int]:
    """What each call brought, of so many pieces of body with this between them; and the response's last."""
    link = Link()
    number = link.request()
    link.server.send_headers(number, [(b":status", b"200")])
    link.to_client()
    wire = (encode_frame(DATA, 0, number, b"x") + between) * pieces + encode_frame(DATA, 1, number, b"")
    shared = bytearray(wire)
    portions = [link.client.receive(memoryview(shared))]
    shared[:] = bytes(len(shared))  # the reader's buffer is used again
    while link.client.unfinished:
        portions.append(link.client.go_on())
    return portions, number


@pytest.mark.parametrize(
    ("between", "frames"),
    [
        (b"", 1),
        (encode_frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1"), 2),
        (encode_frame(PING, 0, 0, b"12345678"), 2),
        (encode_frame(SETTINGS, 0, 0, b""), 2),
        (encode_frame(PRIORITY, 0, 1, b"\0\0\0\0\1"), 2),
        (encode_frame(ORIGIN, 0, 0, b"\0\x0bhttps://a.b" * 100), 2),
    ],
    ids=["nothing", "WINDOW_UPDATE", "PING", "SETTINGS", "PRIORITY", "ORIGIN"],
)
def test_h2(between: bytes, frames: int) -> None:
    portions, number = h2(between)
    bodies = [sum(len(each.data) for each in events if isinstance(each, BodyReceived)) for events in portions]
    assert sum(bodies) == 5000
    assert max(bodies) <= WORK // frames + 1
    assert portions[-1][-1] == ResponseCompleted(number, [])


def test_h2_a_large_frame_counts_for_many() -> None:
    portions, _ = h2(encode_frame(ORIGIN, 0, 0, b"\0\x0bhttps://a.b" * 1000), pieces=200)
    assert max(len(events) for events in portions) <= 2


def test_h2_frames_in_one_portion_of_data_are_one_piece() -> None:
    """A download of full frames is handed out as before: portions are for what costs time."""
    link = Link()
    number = link.request()
    link.server.send_headers(number, [(b":status", b"200")])
    link.to_client()
    [event] = link.client.receive(memoryview(encode_frame(DATA, 0, number, bytes(16384)) * 15))
    assert isinstance(event, BodyReceived)
    assert not link.client.unfinished


def first_portion(link: h3_peer.Link, stream: int, data: bytes) -> list[Event]:
    return list(link.client.receive([StreamDataReceived(data=data, end_stream=True, stream_id=stream)]))


@pytest.mark.parametrize("cancel", [False, True])
def test_h3(cancel: bool) -> None:
    """What is given up between two portions is credited as what comes later is."""
    link = h3_peer.Link()
    number, other = link.open(), link.open()
    before = link.quic.credited
    said = link.head(number, 103) * 1000 + link.head(number) + h3.frame(h3.DATA, b"x")
    portions = [first_portion(link, number, said)]
    assert link.client.unfinished
    if cancel:
        link.client.cancel(number)
    while link.client.unfinished:
        portions.append(link.client.go_on())
    assert max(map(len, portions)) <= WORK
    events = [event for events in portions for event in events]
    if not cancel:
        assert sum(isinstance(event, InformationalReceived) for event in events) == 1000
        assert events[-1] == ResponseCompleted(number, [])
    assert link.quic.credited - before == len(said) - (not cancel)  # (the x is still unread)
    events = link.say(other, link.head(other), end=True)
    assert events[-1] == ResponseCompleted(other, [])


def test_h3_an_error_ends_what_is_left() -> None:
    link = h3_peer.Link()
    number = link.open()
    events = first_portion(link, number, link.head(number, 103) * 200 + h3.frame(h3.DATA, b"x") * 2 + link.head(number))
    while link.client.unfinished:
        events += link.client.go_on()
    assert isinstance(events[-1], ConnectionBroken)
