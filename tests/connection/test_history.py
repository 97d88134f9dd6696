"""How many requests a connection is given, where its server is known to leave after so many."""

from __future__ import annotations

import math

import pytest

from allswell._connection.history import History
from allswell._connection.service import Service


def _takes(number: int) -> Service:
    service = Service()
    for made_at in (1.0, 2.0):
        service.leaves(made_at, number)
    assert service.takes == number
    return service


@pytest.mark.parametrize(
    ("opened", "room", "busy", "given"),
    [
        (0, 100, False, 3),
        (0, 2, False, 2),
        (2, 100, True, 1),
        (3, 100, True, 0),
        (3, 100, False, 1),  # one more shows whether the number still holds
        (4, 100, True, 0),
        (4, 100, False, 1),
        (4, 0, False, 0),  # the protocol has none
    ],
)
def test_no_more_than_such_connections_took(opened: int, room: int, busy: bool, given: int) -> None:
    history = History(_takes(3))
    for _ in range(opened):
        history.on_opened()
    assert history.room(room, busy=busy) == given


def test_a_refused_request_leaves_its_room() -> None:
    history = History(_takes(3))
    for _ in range(3):
        history.on_opened()
    history.on_refused(leaving=False)
    assert history.room(100, busy=True) == 1
    assert history.opened == 3


def test_what_a_connection_took_before_it_left_is_noted_with_the_last_word() -> None:
    service = Service()
    for took in (5, 5):
        history = History(service)
        for _ in range(7):
            history.on_opened()
        for _ in range(7 - took):
            history.on_refused(leaving=True)
    assert service.takes == 5


def test_a_connection_that_takes_more_lifts_the_limit() -> None:
    service = _takes(1)
    history = History(service)
    for _ in range(2):
        history.on_opened()
        history.on_answered()
    assert service.takes == math.inf
    assert (history.answered, service.answered) == (2, 2)
