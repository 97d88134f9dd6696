"""PRIORITY_UPDATE (RFC 9218 §7), octet by octet: when it is said, when it is not, and what a server may not say."""

from __future__ import annotations

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame, SettingsFrame

from allswell._backends import http3_frames as h3
from allswell._backends.http1 import Http1
from allswell._backends.http2 import Http2
from allswell._backends.interface import ConnectionBroken
from allswell._quic import varint
from tests.backends import h2_peer, h3_peer
from tests.backends.h2_peer import OK, encode_frame, frames, get, goaway

NO_RFC7540_PRIORITIES = 9
OBEYS = SettingsFrame(0, settings={NO_RFC7540_PRIORITIES: 1})


def h2_link(settings: SettingsFrame = OBEYS) -> h2_peer.Link:
    """A client and a server that have shaken hands; the server has said these SETTINGS first."""
    link = h2_peer.Link(greet=False)
    link.to_server()
    link.server.data_to_send()
    assert link.frames(settings) is not None
    link.to_server()
    return link


def begun(link: h2_peer.Link) -> int:
    """An exchange whose response has begun."""
    exchange = link.request()
    link.frames(link.headers(exchange))
    link.client.take_output()
    return exchange


# HTTP/2


def test_h2_says_first_that_it_does_without_the_old_priorities() -> None:
    [first, *_] = frames(Http2(max_header_size=65536).take_output().removeprefix(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
    assert isinstance(first, SettingsFrame)
    assert first.settings[NO_RFC7540_PRIORITIES] == 1


def test_h2_update() -> None:
    link = h2_link()
    exchange = begun(link)
    link.client.reprioritize(exchange, b"u=1, i")
    assert link.client.take_output() == bytes.fromhex("00000a 10 00 00000000 00000001") + b"u=1, i"
    link.client.reprioritize(exchange, b"")
    assert link.client.take_output() == bytes.fromhex("000004 10 00 00000000 00000001")


def test_h2_update_before_the_servers_settings() -> None:
    link = h2_peer.Link(greet=False)
    exchange = link.client.open(get(), end=True)
    link.client.take_output()
    link.client.reprioritize(exchange, b"u=7")
    assert link.client.take_output() == bytes.fromhex("000007 10 00 00000000 00000001") + b"u=7"


@pytest.mark.parametrize("settings", [{}, {NO_RFC7540_PRIORITIES: 0}], ids=["no word", "no"])
def test_h2_no_update_where_the_server_does_not_obey_them(settings: dict[int, int]) -> None:
    link = h2_link(SettingsFrame(0, settings=settings))
    link.client.reprioritize(begun(link), b"u=1")
    assert link.client.take_output() == b""


def test_h2_no_update_for_what_is_over() -> None:
    link = h2_link()
    complete, cancelled, uploading = begun(link), begun(link), link.request(get(method=b"POST"), end=False)
    link.frames(h2_peer.data(complete, b"", "END_STREAM"), link.headers(uploading, OK, "END_STREAM"))
    link.client.cancel(cancelled)
    link.client.take_output()
    for exchange in (complete, cancelled, uploading, 99, 0):
        link.client.reprioritize(exchange, b"u=1")
    assert link.client.take_output() == b""


@pytest.mark.parametrize("whose", ["the server's", "ours"])
def test_h2_no_update_after_goaway(whose: str) -> None:
    link = h2_link()
    exchange = begun(link)
    if whose == "ours":
        link.client.goodbye()
    else:
        link.frames(goaway(exchange))
    link.client.take_output()
    link.client.reprioritize(exchange, b"u=1")
    assert link.client.take_output() == b""


def _broken_with(link: h2_peer.Link, code: ErrorCodes) -> bool:
    [frame] = [frame for frame in link.output_frames() if isinstance(frame, GoAwayFrame)]
    return frame.error_code == code


def test_h2_update_from_a_server_breaks_the_connection() -> None:
    link = h2_link()
    exchange = begun(link)
    events = link.deliver(encode_frame(0x10, 0, 0, exchange.to_bytes(4, "big") + b"u=1"))
    assert isinstance(events[-1], ConnectionBroken)
    assert _broken_with(link, ErrorCodes.PROTOCOL_ERROR)


@pytest.mark.parametrize(("first", "then"), [(2, None), (1, 0), (0, 1), (None, 1)])
def test_h2_a_setting_that_makes_no_sense_breaks_the_connection(first: int | None, then: int | None) -> None:
    link = h2_peer.Link(greet=False)
    link.to_server()
    events = link.frames(SettingsFrame(0, settings={} if first is None else {NO_RFC7540_PRIORITIES: first}))
    if then is not None:
        assert not any(isinstance(event, ConnectionBroken) for event in events)
        events = link.frames(SettingsFrame(0, settings={NO_RFC7540_PRIORITIES: then}))
    assert isinstance(events[-1], ConnectionBroken)
    assert _broken_with(link, ErrorCodes.PROTOCOL_ERROR)


def test_h2_the_setting_may_be_said_again() -> None:
    link = h2_link()
    assert link.frames(OBEYS) == []
    assert link.frames(SettingsFrame(0, settings={int(SettingCodes.ENABLE_CONNECT_PROTOCOL): 1})) == []
    exchange = begun(link)
    link.client.reprioritize(exchange, b"u=1")
    assert link.client.take_output()


def test_h2_is_given_no_value_that_no_frame_can_hold() -> None:
    client = Http2(max_header_size=65536)
    exchange = client.open(get(), end=True)
    client.take_output()
    client.reprioritize(exchange, b"x" * 16381)
    assert client.take_output() == b""


# HTTP/3


def test_h3_update() -> None:
    link = h3_peer.Link()
    link.open()
    exchange = link.open()
    link.say(exchange, link.head(exchange))
    before = link.quic.sent[2]
    link.client.reprioritize(exchange, b"u=1, i")
    assert link.quic.sent[2] == before + bytes.fromhex("800f0700 07 04") + b"u=1, i"


def test_h3_no_update_for_what_is_over() -> None:
    link = h3_peer.Link()
    complete, cancelled, uploading = link.open(), link.open(), link.open(b"POST", end=False)
    for exchange in (complete, uploading):
        link.say(exchange, link.head(exchange), end=True)
    link.client.cancel(cancelled)
    before = link.quic.sent[2]
    for exchange in (complete, cancelled, uploading, 400):
        link.client.reprioritize(exchange, b"u=1")
    assert link.quic.sent[2] == before


@pytest.mark.parametrize("whose", ["the server's", "ours"])
def test_h3_no_update_after_goaway(whose: str) -> None:
    link = h3_peer.Link()
    exchange = link.open()
    link.say(exchange, link.head(exchange))
    if whose == "ours":
        link.client.goodbye()
    else:
        link.say(h3_peer.CONTROL, h3.frame(h3.GOAWAY, varint.encode(4)))
    before = link.quic.sent[2]
    link.client.reprioritize(exchange, b"u=1")
    assert link.quic.sent[2] == before


@pytest.mark.parametrize("where", ["control stream", "request stream"])
@pytest.mark.parametrize("kind", [0xF0700, 0xF0701])
def test_h3_update_from_a_server_breaks_the_connection(where: str, kind: int) -> None:
    link = h3_peer.Link()
    exchange = link.open()
    events = link.say(
        h3_peer.CONTROL if where == "control stream" else exchange, h3.frame(kind, varint.encode(exchange) + b"u=1")
    )
    assert isinstance(events[-1], ConnectionBroken)
    assert ("close", h3.H3_FRAME_UNEXPECTED) in link.quic.did


# HTTP/1.1


def test_h1_says_nothing() -> None:
    client = Http1(max_header_size=65536)
    exchange = client.open(get(), end=True)
    client.take_output()
    client.reprioritize(exchange, b"u=1")
    assert client.take_output() == b""
