"""Lookups that are shared: how often the resolver is asked, who gets what it says, and that nothing is left."""

from __future__ import annotations

import socket
from typing import Any

import anyio
import pytest

from allswell._dial.lookups import Lookups
from allswell._tasks import current_host

pytestmark = pytest.mark.anyio

FOUND = [(socket.AF_INET, ("192.0.2.1", 443))]


class Resolver:
    """A resolver of our own, which answers when it is let, and the clock of what it has said.

    :ivar now: the time; it stands still unless a test says otherwise.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, int]] = []
        self.answers = anyio.Event()
        self.error: OSError | None = None
        self.called_off = 0
        self.now = 1000.0
        monkeypatch.setattr(anyio, "getaddrinfo", self._getaddrinfo)
        monkeypatch.setattr("allswell._dial.lookups.monotonic", lambda: self.now)

    async def _getaddrinfo(self, host: str, port: int, *, family: int, type: int) -> list[Any]:
        self.asked.append((host, family))
        try:
            await self.answers.wait()
        except BaseException:
            self.called_off += 1
            raise
        if self.error is not None:
            raise self.error
        return [(family, type, 6, "", ("192.0.2.1", port))]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    """One for each test."""
    return Resolver(monkeypatch)


async def ask_many(lookups: Lookups, times: int, resolver: Resolver) -> list[object]:
    """So many at once; what each of them got."""
    got: list[object] = []

    async def ask() -> None:
        try:
            got.append(await lookups.addresses("name.example", 443, socket.AF_INET))
        except OSError as error:
            got.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(times):
            tasks.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        resolver.answers.set()
    return got


async def test_a_hundred_ask_once(resolver: Resolver) -> None:
    lookups = Lookups(current_host())
    assert await ask_many(lookups, 100, resolver) == [FOUND] * 100
    assert resolver.asked == [("name.example", socket.AF_INET)]
    assert await lookups.addresses("name.example", 443, socket.AF_INET) == FOUND  # it serves for another second
    assert len(resolver.asked) == 1
    await lookups.addresses("name.example", 443, socket.AF_INET6)
    await lookups.addresses("other.example", 443, socket.AF_INET)
    assert len(resolver.asked) == 3


async def test_errors_are_for_who_waits_and_hardly_kept(resolver: Resolver) -> None:
    lookups = Lookups(current_host())
    resolver.error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    assert await ask_many(lookups, 5, resolver) == [resolver.error] * 5
    assert len(resolver.asked) == 1
    resolver.error = None
    with pytest.raises(socket.gaierror):
        await lookups.addresses("name.example", 443, socket.AF_INET)
    resolver.now += 0.11  # before the first retry of a dial
    assert await lookups.addresses("name.example", 443, socket.AF_INET) == FOUND


async def test_who_gives_up_takes_nothing_from_the_others(resolver: Resolver) -> None:
    lookups = Lookups(current_host())
    with anyio.move_on_after(0.01) as scope:
        await lookups.addresses("name.example", 443, socket.AF_INET)
    assert scope.cancelled_caught
    assert await ask_many(lookups, 2, resolver) == [FOUND] * 2
    assert (len(resolver.asked), resolver.called_off) == (1, 0)


async def test_a_network_that_changed_is_asked_again(resolver: Resolver) -> None:
    lookups = Lookups(current_host())
    await ask_many(lookups, 1, resolver)
    lookups.finds.forget()
    await ask_many(lookups, 1, resolver)
    assert len(resolver.asked) == 2


async def test_what_is_under_way_is_called_off_and_asked_anew(resolver: Resolver) -> None:
    """On another network another resolver may answer, sooner; but whoever needs addresses needs them still."""
    lookups = Lookups(current_host())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lookups.addresses, "name.example", 443, socket.AF_INET)
        await anyio.wait_all_tasks_blocked()
        lookups.finds.forget()
        await anyio.wait_all_tasks_blocked()
        assert (len(resolver.asked), resolver.called_off) == (2, 1)
        resolver.answers.set()


async def test_the_first_address_is_enough(resolver: Resolver) -> None:
    lookups = Lookups(current_host())
    resolver.answers.set()
    with anyio.fail_after(30):
        await lookups.any_address("name.example", 443, [socket.AF_INET6, socket.AF_INET])
        resolver.error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        await lookups.any_address("nobody.example", 443, [socket.AF_INET6, socket.AF_INET])
    assert [host for host, _ in resolver.asked] == ["name.example"] * 2 + ["nobody.example"] * 2


async def test_what_is_remembered_is_bounded(resolver: Resolver) -> None:
    resolver.answers.set()
    lookups = Lookups(current_host())
    for number in range(1000):
        await lookups.addresses(f"{number}.example", 443, socket.AF_INET)
    assert len(lookups.finds) == 256
