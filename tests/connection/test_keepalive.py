"""When a silent peer is asked for a sign of life, and when it counts as gone. Instants are in seconds."""

from __future__ import annotations

import math

from allswell._connection.keepalive import Keepalive


class Asked:
    """How often it was asked."""

    def __init__(self, *, can: bool = True) -> None:
        self.count = 0
        self._can = can

    def __call__(self) -> bool:
        self.count += 1
        return self._can


def test_asked_after_each_silence_of_one_interval() -> None:
    keepalive, ask = Keepalive(5.0, 20.0, 100.0), Asked()
    assert keepalive.look(100.0, ask) == 105.0
    keepalive.heard_at = 103.0
    assert keepalive.look(105.0, ask) == 108.0  # counted from when it was heard, not from when that was noticed
    assert ask.count == 0
    assert keepalive.look(108.0, ask) == 113.0
    assert ask.count == 1
    keepalive.heard_at = 108.1
    assert keepalive.look(113.0, ask) == 113.1  # and not when the first answer's time would have been up
    keepalive.look(113.1, ask)
    assert ask.count == 2


def test_gone_when_the_answer_took_too_long() -> None:
    for interval, timeout in ((5.0, 20.0), (20.0, 5.0)):
        keepalive, ask = Keepalive(interval, timeout, 0.0), Asked()
        assert keepalive.look(interval, ask) == interval + 5.0
        assert keepalive.look(interval + timeout - 0.1, ask) == interval + timeout
        assert keepalive.look(interval + timeout, ask) == -math.inf
        assert ask.count == 1


def test_who_cannot_be_asked_is_not_gone() -> None:
    keepalive, ask = Keepalive(5.0, 1.0, 0.0), Asked(can=False)
    assert keepalive.look(5.0, ask) == 10.0
    assert keepalive.look(10.0, ask) == 15.0
    assert ask.count == 2


def test_never_asked_without_an_interval() -> None:
    assert Keepalive(None, 1.0, 0.0).look(1e9, Asked()) == math.inf
