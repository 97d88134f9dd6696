"""The halves of an exchange: where each may go, when both are over, and how much content was announced."""

from __future__ import annotations

import pytest

from allswell._halves import Halves, LengthError, Receive, ReceiveHalf, Send, SendHalf


def sending(state: Send) -> SendHalf:
    return SendHalf(state)


def receiving(state: Receive) -> ReceiveHalf:
    half = ReceiveHalf(b"GET")
    assert state is Receive.HEAD or half.move(state)
    return half


def test_what_is_over_stays_over() -> None:
    for state in (Receive.ENDED, Receive.FAILED):
        half = receiving(state)
        assert half.over
        assert not any(half.move(to) for to in Receive)
    half_sent = sending(Send.STOPPED)
    assert not any(half_sent.move(to) for to in Send)


def test_only_a_tunnel_begins_behind_a_request_that_has_ended() -> None:
    half = sending(Send.ENDED)
    assert not half.stop("peer")
    assert half.by is None
    assert half.move(Send.BODY)
    assert half.stop("peer")
    assert half.by == "peer"


@pytest.mark.parametrize("ours", Send)
@pytest.mark.parametrize("theirs", Receive)
def test_an_exchange_is_over_when_both_halves_are(ours: Send, theirs: Receive) -> None:
    both = Halves(sending(ours), receiving(theirs))
    assert both.over == (ours in (Send.ENDED, Send.STOPPED) and theirs in (Receive.ENDED, Receive.FAILED))


@pytest.mark.parametrize(("method", "status", "tunnel"), [(b"CONNECT", 200, True), (b"CONNECT", 407, False)])
def test_a_tunnel_was_one_still_when_it_has_ended(method: bytes, status: int, tunnel: bool) -> None:
    half = ReceiveHalf(method)
    half.begin(status, None)
    assert half.state is (Receive.TUNNEL if tunnel else Receive.BODY)
    half.end()
    assert (half.tunnel, half.over, half.answered) == (tunnel, True, True)


def test_content_is_as_long_as_announced() -> None:
    half = ReceiveHalf(b"GET")
    half.begin(200, 3)
    half.count(2)
    assert not half.whole
    with pytest.raises(LengthError):
        half.end()
    half.count(1)
    assert half.whole
    half.end()
    with pytest.raises(LengthError):
        half.count(1)
    ours = SendHalf(Send.BODY, 3)
    for size, end in ((4, False), (2, True)):
        with pytest.raises(LengthError):
            ours.count(size, end=end)
    ours.count(3, end=True)
