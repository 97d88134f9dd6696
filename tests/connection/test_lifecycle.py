"""The table of a connection's states, and deadlines that are brought forward."""

from __future__ import annotations

import math
from time import monotonic

import anyio
import pytest

from allswell._connection.lifecycle import Lifecycle, State
from allswell._deadline import Deadline
from tests.support.lag import LAG


def test_straight_through() -> None:
    life = Lifecycle()
    assert life.state is State.OPEN
    assert life.move(State.DRAINING, "the pool closes")
    assert life.move(State.CLOSING, "a later reason")
    assert life.move(State.CLOSED)
    assert life.reason == "the pool closes"


@pytest.mark.parametrize(
    ("steps", "to"),
    [
        ([], State.OPEN),
        ([], State.CLOSING),
        ([State.DRAINING], State.OPEN),
        ([State.DRAINING], State.DRAINING),
        ([State.DRAINING, State.CLOSING], State.DRAINING),
        ([State.CLOSED], State.OPEN),
        ([State.CLOSED], State.DRAINING),
        ([State.CLOSED], State.CLOSING),
        ([State.CLOSED], State.CLOSED),
    ],
)
def test_no_such_move(steps: list[State], to: State) -> None:
    life = Lifecycle()
    for step in steps:
        assert life.move(step, "first")
    before = life.state
    assert not life.move(to, "second")
    assert life.state is before
    assert "second" not in life.reason


@pytest.mark.parametrize("steps", [[], [State.DRAINING], [State.DRAINING, State.CLOSING]])
def test_lost_from_anywhere(steps: list[State]) -> None:
    life = Lifecycle()
    for step in steps:
        life.move(step)
    assert life.move(State.CLOSED, "reset")


def test_deadline_made_from_another_follows_it() -> None:
    first = Deadline.after(100)
    second, before, after = first.sooner(50), first.shifted(-10), first.shifted(1)
    third = before.sooner(80)
    assert second.left() == pytest.approx(50, abs=1)
    assert third.left() == pytest.approx(80, abs=1)
    at = monotonic() + 20
    first.tighten(at)
    assert (first.at, second.at, before.at, after.at, third.at) == (at, at, at - 10, at + 1, at - 10)
    first.tighten(at + 1000)
    assert first.at == at
    second.tighten(at - 5)
    assert (first.at, second.at) == (at, at - 5)
    assert Deadline().left() == math.inf
    assert Deadline.after(0).passed()


@pytest.mark.anyio
async def test_open_scopes_are_brought_forward() -> None:
    first = Deadline.after(100)
    deadline = first.sooner(50).shifted(-1)
    began = monotonic()
    async with anyio.create_task_group() as tasks:

        async def wait() -> None:
            with deadline.scope() as scope:
                await anyio.sleep_forever()
            assert scope.cancelled_caught

        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        first.tighten(monotonic() + 1.1)
    assert 0.05 < monotonic() - began < LAG
