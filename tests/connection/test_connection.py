"""What a connection decides, in every version, however small the pieces are that arrive. No event loop, no socket."""

from __future__ import annotations

import math
import tracemalloc
from sys import getsizeof
from time import monotonic

import pytest

from allswell import PoolClosed, RemoteProtocolError, Timeout, TransportError
from allswell._config import Timeouts
from allswell._connection.connection import Connection
from allswell._connection.exchange import Exchange
from allswell._connection.lifecycle import State
from allswell._halves import Receive, Send
from tests.connection.by_hand import VERSIONS, ByHand, goes_on

WHOLE = 1 << 20

versions = pytest.mark.parametrize("version", VERSIONS)
pytestmark = [versions, pytest.mark.parametrize("size", [1, WHOLE], ids=["bytes", "whole"])]


def body_of(exchange: Exchange[Connection]) -> bytes:
    """What has come of it."""
    pieces = []
    while piece := exchange.receive_nowait():
        pieces.append(piece)
    return b"".join(pieces)


def test_a_whole_exchange(version: str, size: int) -> None:
    hand = ByHand(version, size)
    connection, server = hand.connection, hand.server
    for number in range(3):
        exchange = hand.open()
        assert connection.idle_since == math.inf
        assert connection.open_exchanges == 1
        assert bool(connection.capacity()) == connection.multiplexes
        hand.say(server.head(200, 5), server.body(b"he", end=False), server.body(b"llo", end=True))
        assert exchange.over
        assert not connection.holds(exchange)
        assert body_of(exchange) == b"hello"
        assert exchange.receive_nowait() == b""
        assert connection.capacity() > 0
        assert connection.idle_since < math.inf
        assert hand.told[-1] == "available"
        assert connection.history.answered == number + 1
    assert hand.state() is State.OPEN


def test_a_response_that_was_read_leaves_without_a_word(version: str, size: int) -> None:
    hand = ByHand(version, size)
    exchange = hand.open()
    hand.say(hand.server.head(200, 3), hand.server.body(b"abc", end=True))
    assert body_of(exchange) == b"abc"
    before = hand.driver.sent, list(hand.driver.told), list(hand.told)
    exchange.abandon()
    assert (hand.driver.sent, hand.driver.told, hand.told) == before
    assert exchange.receive_nowait() == b""


def test_one_that_is_abandoned_costs_its_connection_only_where_nothing_else_tells_them_apart(
    version: str, size: int
) -> None:
    hand = ByHand(version, size)
    exchange = hand.open()
    hand.say(hand.server.head(200, 10), hand.server.body(b"abc", end=False))
    exchange.abandon()
    with pytest.raises(TransportError, match="closed before its body was read"):
        exchange.receive_nowait()
    assert not hand.connection.open_exchanges
    if version == "h1":
        assert hand.state() is State.CLOSED
        assert "abort" in hand.driver.told
    else:
        assert hand.state() is State.OPEN
        following = hand.open()
        hand.say(hand.server.head(200, 2), hand.server.body(b"ok", end=True))
        assert body_of(following) == b"ok"


def test_closing_waits_for_what_is_open(version: str, size: int) -> None:
    hand = ByHand(version, size)
    exchange = hand.open()
    hand.connection.close("the test wants it")
    assert hand.told.count("leaving") == 1
    assert hand.state() is State.DRAINING
    assert hand.connection.capacity() == 0
    assert "leave" not in hand.driver.told
    hand.say(hand.server.head(200, 3), hand.server.body(b"abc", end=True))
    assert hand.state() is State.CLOSING
    assert hand.driver.told.count("leave") == 1
    assert body_of(exchange) == b"abc"
    assert hand.connection.ended()
    assert not hand.connection.ended()
    assert hand.connection.reason == "the test wants it"


def test_a_server_that_leaves_finishes_what_it_began(version: str, size: int) -> None:
    hand = ByHand(version, size)
    exchange = hand.open()
    hand.say(hand.server.leaving(), hand.server.head(200, 3), hand.server.body(b"abc", end=True))
    assert body_of(exchange) == b"abc"
    assert hand.state() is State.CLOSING
    assert hand.told.count("leaving") == 1
    assert hand.connection.parting.words == ("" if version == "h1" else "sent GOAWAY")


def test_the_end_in_the_middle_of_a_response(version: str, size: int) -> None:
    hand = ByHand(version, size)
    exchange = hand.open()
    hand.say(hand.server.head(200, 10), hand.server.body(b"abc", end=False))
    hand.connection.end_of_stream(truncated=True)
    assert exchange.receive_nowait() == b"abc"  # what came before is read first
    with pytest.raises(RemoteProtocolError, match="truncated"):
        exchange.receive_nowait()
    assert exchange.receiving.state is Receive.FAILED
    assert hand.state() is State.CLOSED
    assert hand.connection.history.cut_short == 1
    assert "abort" in hand.driver.told


def test_a_loss_is_told_once(version: str, size: int) -> None:
    hand = ByHand(version, size)
    exchange = hand.open()
    hand.say(hand.server.head(200, 10))
    for _ in range(2):
        hand.connection.lost(TransportError("the cable was cut", operation="read"))
    with pytest.raises(TransportError, match="the cable was cut"):
        exchange.receive_nowait()
    assert hand.connection.history.cut_short == 1
    assert hand.driver.told.count("abort") == 1
    assert hand.told.count("leaving") == 1


def test_what_is_cut_is_counted_once(version: str, size: int) -> None:
    hand = ByHand(version, size)
    exchanges = [hand.open()]
    if hand.connection.multiplexes:
        exchanges.append(hand.open())
    hand.connection.cut(PoolClosed("the test is over"))
    assert hand.connection.history.cut_short == len(exchanges)
    for exchange in exchanges:
        with pytest.raises(PoolClosed, match="the test is over"):
            exchange.receive_nowait()


def test_an_early_refusal_stops_the_upload_and_is_read(version: str, size: int) -> None:
    hand = ByHand(version, size)
    exchange = hand.open(b"POST", upload=1000)
    exchange.send_body(b"x" * 10)
    hand.say(hand.server.head(413, 3))
    assert exchange.sending.state is Send.STOPPED
    hand.say(hand.server.body(b"no.", end=True))
    assert body_of(exchange) == b"no."
    assert exchange.over
    assert hand.state() is (State.CLOSED if version == "h1" else State.OPEN)
    if version == "h3":
        assert hand.server.quic.did == [("reset", exchange.number, 0x100)]  # type: ignore[attr-defined]  # HTTP/3's


def test_an_early_answer_lets_the_upload_go_on(version: str, size: int) -> None:
    hand = ByHand(version, size)
    exchange = hand.open(b"POST", upload=20)
    exchange.send_body(b"x" * 10)
    hand.say(hand.server.head(200, 3), hand.server.body(b"yes", end=True))
    assert body_of(exchange) == b"yes"
    assert hand.connection.holds(exchange)
    hand.connection.close("the test wants it")
    assert hand.state() is State.DRAINING
    exchange.send_body(b"x" * 10, end=True)
    assert not hand.connection.holds(exchange)
    assert hand.state() is State.CLOSING


def test_back_pressure(version: str, size: int) -> None:
    hand = ByHand(version, WHOLE)
    exchange = hand.open()
    hand.say(hand.server.head(200, 400_000), hand.server.body(bytes(300_000), end=False))
    assert exchange.body.buffered == 300_000
    assert hand.connection.unread_much() == (version == "h1")
    hand.driver.told.clear()
    assert len(body_of(exchange)) == 300_000
    assert not hand.connection.unread_much()
    assert ("resume" in hand.driver.told) == (version == "h1")


def test_a_whole_body_is_put_together_as_it_comes(version: str, size: int) -> None:
    """Nothing waits to be read, the peer has its credit, and the requester is woken at the end only."""
    hand = ByHand(version, size)
    exchange = hand.open()
    hand.say(hand.server.head(200, 6), hand.server.body(b"ab", end=False))
    reading = exchange.receive_whole()
    assert goes_on(reading) is None
    woken = exchange._ready.sets  # type: ignore[attr-defined]  # the test's own
    hand.say(hand.server.body(b"cd", end=False))
    assert exchange.body.buffered == 0
    assert exchange.body.come == 4
    assert exchange._ready.sets == woken  # type: ignore[attr-defined]
    hand.say(hand.server.body(b"ef", end=True))
    assert exchange._ready.sets > woken  # type: ignore[attr-defined]
    assert goes_on(reading) == b"abcdef"
    assert goes_on(exchange.receive_whole()) == b""


def test_a_body_that_is_cut_while_it_is_put_together(version: str, size: int) -> None:
    hand = ByHand(version, size)
    exchange = hand.open()
    hand.say(hand.server.head(200, 6), hand.server.body(b"ab", end=False))
    reading = exchange.receive_whole()
    assert goes_on(reading) is None
    hand.say(hand.server.body(b"cd", end=False))
    hand.connection.end_of_stream(truncated=True)
    with pytest.raises(RemoteProtocolError, match="truncated"):
        goes_on(reading)
    assert exchange.body.come == 4


def test_each_piece_of_it_moves_the_read_timeout(version: str, size: int) -> None:
    hand = ByHand(version, size)
    exchange = hand.open(timeouts=Timeouts(read=5))
    hand.say(hand.server.head(200, 6))
    reading = exchange.receive_whole()
    goes_on(reading)
    exchange._read_at -= 4
    hand.say(hand.server.body(b"ab", end=False))
    until = hand.connection.expire(monotonic(), seen_all=True)
    assert until > monotonic() + 2
    hand.connection.expire(until, seen_all=True)
    with pytest.raises(Timeout, match="sent nothing within 5 s"):
        goes_on(reading)


def test_a_whole_body_is_held_once(version: str, size: int) -> None:
    hand, piece = ByHand(version, max(size, 4096)), bytes(1 << 16)
    exchange = hand.open()
    reading = exchange.receive_whole()
    hand.say(hand.server.head(200, 160 * len(piece)))
    goes_on(reading)
    tracemalloc.start(1)
    try:
        for number in range(160):
            hand.say(hand.server.body(piece, end=number == 159))
        body = goes_on(reading)
        assert body is not None
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(body) == 160 * len(piece)
    assert most < 1.2 * len(body)


def test_there_is_room_for_what_is_announced(version: str, size: int) -> None:
    """It need not move while it grows. It need not come, either."""
    hand = ByHand(version, size)
    exchange = hand.open()
    hand.say(hand.server.head(200, 1 << 60), hand.server.body(b"ab", end=False))
    reading = exchange.receive_whole()
    goes_on(reading)
    assert getsizeof(exchange.body.whole) > 10_000_000
    hand.connection.end_of_stream(truncated=True)
    with pytest.raises(RemoteProtocolError, match="truncated"):
        goes_on(reading)
    assert exchange.body.come == 2


def test_idle_for_too_long(version: str, size: int) -> None:
    hand = ByHand(version, size, keepalive_expiry=10)
    connection = hand.connection
    hand.open()
    hand.say(hand.server.head(200, 0, end=True))
    until = connection.idle_since + 10
    assert hand.driver.alarm.at == until
    assert connection.expire(until - 1, seen_all=True) == until
    assert hand.state() is State.OPEN
    connection.expire(until, seen_all=True)
    assert hand.state() is State.CLOSING
    assert connection.reason == "idle for 10 s"


def test_a_total_timeout_passes(version: str, size: int) -> None:
    hand = ByHand(version, size)
    exchange = hand.open(timeouts=Timeouts(total=5))
    exchange._total_at = 1000.0
    assert hand.connection.expire(999.0, seen_all=True) == 1000.0
    hand.connection.expire(1000.0, seen_all=True)
    with pytest.raises(Timeout, match="did not finish within 5 s"):
        exchange.receive_nowait()
    assert not hand.connection.open_exchanges


@pytest.mark.parametrize("together", [1, 3, 20])
def test_requests_that_follow_responses_that_came_together_leave_together(
    version: str, size: int, together: int
) -> None:
    hand = ByHand(version, size)
    if not hand.connection.multiplexes:
        together = 1
    exchanges = [hand.open() for _ in range(together)]
    said = []
    for exchange in exchanges:
        hand.server.number = exchange.number
        said += hand.server.head(200, 0, end=True)
    hand.say(said)
    assert all(exchange.all_read for exchange in exchanges)
    before = hand.driver.writes
    followers = [hand.open() for _ in range(together)]
    waits = version == "h2" and size == WHOLE and together > 1
    assert hand.driver.writes - before == (together // 16 if waits else together)  # (a server has enough to begin with)
    assert len(hand.driver.soon) == waits
    for call in hand.driver.soon:
        call()
    assert hand.driver.writes - before == (together // 16 + 1 if waits else together)
    assert hand.connection.open_exchanges == len(followers)
    if hand.connection.multiplexes:
        hand.open()
        assert hand.driver.writes - before == (together // 16 + 2 if waits else together + 1)
