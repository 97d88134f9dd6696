"""Timers of an event loop: what is due is called in the next turn, in order, and what is cancelled leaves nothing."""

from __future__ import annotations

import logging
from functools import partial
from time import monotonic

import anyio
import pytest

from allswell._clock import monotonic as clock
from allswell._tasks import Alarm, Limit, current_host

pytestmark = pytest.mark.anyio


def hold(seconds: float = 0.02) -> None:
    """Hold the event loop, as a program does that computes."""
    until = monotonic() + seconds
    while monotonic() < until:
        pass


async def turns_until(heard: list[str]) -> int:
    """How many turns of the event loop pass until something is heard, when each holds it for a while."""
    count = 0
    while not heard:
        hold()
        await anyio.lowlevel.checkpoint()
        count += 1
        assert count < 100
    return count


async def test_a_timer_rings_in_the_turn_after_its_time() -> None:
    """However long a turn takes: it waits for no more of them. (The first timer of a host may need one to begin.)"""
    host, heard = current_host(), list[str]()
    other = host.call_later(60, lambda: heard.append("other"))
    await anyio.sleep(0.01)
    host.call_later(0.01, lambda: heard.append("timer"))
    assert await turns_until(heard) <= 2
    assert heard == ["timer"]
    other.cancel()


async def test_an_alarm_that_is_brought_forward_rings_then() -> None:
    heard: list[str] = []
    alarm = Alarm(current_host(), lambda: heard.append("alarm"))
    alarm.set(clock() + 60)
    await anyio.sleep(0.01)
    alarm.set(clock())
    assert await turns_until(heard) <= 2


async def test_a_limit_that_rings_late_allows_as_much_again_once() -> None:
    """On a loop whose turns take longer than the limit: then it ends with the next turn."""
    host = current_host()
    other = host.call_later(60, lambda: None)
    at = clock() + 0.01
    turns: list[float] = []
    rung: list[float] = []
    with Limit(host, at, look=lambda: rung.append(clock())) as limit:
        while len(turns) < 1000:
            turns.append(clock())
            hold()
            await anyio.lowlevel.checkpoint()
    assert limit.passed
    [first] = rung
    assert len([each for each in turns if each > first + (first - at)]) <= 2
    other.cancel()


async def test_timers_ring_in_order_and_each_once() -> None:
    host, heard = current_host(), list[int]()
    timers = [host.call_later((20 - number) / 1000, partial(heard.append, number)) for number in range(20)]
    for each in timers[::2]:
        each.cancel()
        each.cancel()
    last = anyio.Event()
    host.call_later(0.05, last.set)
    with anyio.fail_after(60):
        await last.wait()
    assert heard == list(range(19, 0, -2))
    timers[1].cancel()


@pytest.mark.parametrize("anyio_backend", ["trio"])  # (asyncio itself does the same)
async def test_what_a_timer_raises_is_logged_and_the_others_ring(caplog: pytest.LogCaptureFixture) -> None:
    host, rung = current_host(), anyio.Event()

    def fail() -> None:
        raise LookupError("a bug")

    def set_another() -> None:
        host.call_later(0, rung.set)

    with caplog.at_level(logging.ERROR):
        host.call_later(0.001, fail)
        host.call_later(0.002, set_another)
        with anyio.fail_after(60):
            await rung.wait()
    assert "a bug" in caplog.text


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_timers_share_a_task_that_ends_with_them() -> None:
    host = current_host()
    before = len(anyio.get_running_tasks())
    timers = [host.call_later(60, lambda: None) for _ in range(1000)]
    await anyio.wait_all_tasks_blocked()
    assert len(anyio.get_running_tasks()) == before + 1
    for each in timers[:-1]:
        each.cancel()
    for _ in range(10_000):
        host.call_later(60, lambda: None).cancel()
    assert len(host._timers._heap) < 100  # type: ignore[attr-defined]  # of the host on trio: what is cancelled goes
    timers[-1].cancel()
    host.call_later(60, lambda: None).cancel()
    await anyio.wait_all_tasks_blocked()
    assert len(anyio.get_running_tasks()) == before
