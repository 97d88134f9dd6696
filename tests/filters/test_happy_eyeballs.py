"""Happy Eyeballs: which address is tried when, who wins, what is said when none does."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import pytest

from allswell._dial.addresses import ATTEMPTS, connect_any
from allswell._dial.lookups import Address, resolve
from allswell._dial.sockets import connect_tcp, connect_unix
from allswell._errors import ConnectFailed
from tests.support.lag import LAG, PATIENCE, resolution_delay, stagger

pytestmark = pytest.mark.anyio

V6 = [f"2001:db8::{number}" for number in range(1, 4)]
V4 = [f"192.0.2.{number}" for number in range(1, 4)]


class World:
    """A resolver and a network of our own: what is found after how long, and who answers after how long."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lookups: dict[int, tuple[float, list[str]]] = {}
        self.hosts: dict[str, float | OSError] = {}
        self.tried: list[tuple[str, float]] = []
        self.discarded: list[str] = []
        self.began = 0.0
        monkeypatch.setattr(anyio, "getaddrinfo", self._getaddrinfo)

    async def _getaddrinfo(self, host: str, port: int, *, family: int, type: int) -> list[Any]:
        seconds, addresses = self.lookups.get(family, (0.0, []))
        await anyio.sleep(seconds)
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(family, type, 6, "", (address, port)) for address in addresses]

    async def _attempt(self, address: Address) -> str:
        host: str = address[1][0]
        self.tried.append((host, monotonic() - self.began))
        outcome = self.hosts.get(host, 10.0)
        if isinstance(outcome, OSError):
            raise outcome
        await anyio.sleep(outcome)
        return host

    async def connect(self) -> str:
        self.began = monotonic()
        return await connect_any("name.example", 443, self._attempt, self.discarded.append, ask=resolve)

    def order(self) -> list[str]:
        return [host for host, _ in self.tried]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """One for each test."""
    return World(monkeypatch)


REFUSED: OSError = ConnectionRefusedError(111, "Connection refused")


async def test_families_alternate(world: World) -> None:
    world.lookups = {socket.AF_INET6: (0, V6), socket.AF_INET: (0, V4)}
    world.hosts = dict.fromkeys(V6 + V4, REFUSED)
    world.hosts[V4[2]] = 0.0
    assert await world.connect() == V4[2]
    assert world.order() == [V6[0], V4[0], V6[1], V4[1], V6[2], V4[2]]


async def test_next_attempt_after_250_ms(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    stagger(monkeypatch)
    world.lookups = {socket.AF_INET6: (0, V6[:1]), socket.AF_INET: (0, V4[:1])}
    world.hosts = {V4[0]: 0.0}
    assert await world.connect() == V4[0]
    assert world.order() == [V6[0], V4[0]]
    assert world.tried[1][1] > 0.24


async def test_failure_starts_the_next_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    stagger(monkeypatch, 3 * LAG)
    world.lookups = {socket.AF_INET6: (0, V6[:1]), socket.AF_INET: (0, V4[:1])}
    world.hosts = {V6[0]: REFUSED, V4[0]: 0.0}
    assert await world.connect() == V4[0]
    assert world.tried[1][1] < LAG


async def test_a_late_answer_starts_no_attempt_early(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It only joins the line: the next attempt begins 250 ms after the last one, or when one has failed (§5)."""
    stagger(monkeypatch, 1.0)
    world.lookups = {socket.AF_INET6: (0, V6[:1]), socket.AF_INET: (0.1, V4[:1])}
    world.hosts = {V4[0]: 0.0}
    assert await world.connect() == V4[0]
    assert world.order() == [V6[0], V4[0]]
    assert world.tried[1][1] > 0.99


async def test_slow_aaaa_is_waited_for(world: World) -> None:
    world.lookups = {socket.AF_INET6: (0.02, V6[:1]), socket.AF_INET: (0, V4[:1])}
    world.hosts = {V6[0]: 0.0, V4[0]: 0.0}
    assert await world.connect() == V6[0]
    assert world.order() == [V6[0]]


async def test_slower_aaaa_is_not(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    resolution_delay(monkeypatch)
    world.lookups = {socket.AF_INET6: (PATIENCE, V6[:1]), socket.AF_INET: (0, V4[:1])}
    world.hosts = {V4[0]: 0.0}
    assert await world.connect() == V4[0]
    assert 0.04 < monotonic() - world.began < LAG


async def test_late_answer_is_tried_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    resolution_delay(monkeypatch)
    world.lookups = {socket.AF_INET6: (3.0, V6[:1]), socket.AF_INET: (0, V4[:1])}
    world.hosts = {V4[0]: REFUSED, V6[0]: 0.0}
    assert await world.connect() == V6[0]
    assert world.order() == [V4[0], V6[0]]


async def test_none_connects_tells_each_address(world: World) -> None:
    world.lookups = {socket.AF_INET6: (0, V6[:1]), socket.AF_INET: (0, V4[:1])}
    world.hosts = {V6[0]: OSError(101, "Network is unreachable"), V4[0]: REFUSED}
    with pytest.raises(ConnectFailed) as caught:
        await world.connect()
    assert str(caught.value) == (
        "cannot connect to name.example:443: 2001:db8::1: Network is unreachable; 192.0.2.1: Connection refused"
    )
    assert caught.value.phase == "tcp"


async def test_thousands_of_addresses_are_not_all_tried(world: World) -> None:
    """Sixteen of each family, however late one of them comes, and however often the resolver names an address."""
    v6 = [f"2001:db8::{number:x}" for number in range(4000)]
    v4 = [f"192.0.{number // 250}.{number % 250}" for number in range(4000)]
    world.lookups = {socket.AF_INET6: (0, v6[:1] * 20 + v6), socket.AF_INET: (2.0, v4)}
    world.hosts = dict.fromkeys(v6 + v4, REFUSED)
    with pytest.raises(ConnectFailed, match="its other addresses were not tried"):
        await world.connect()
    assert world.order() == v6[:ATTEMPTS] + v4[:ATTEMPTS]


async def test_both_families_have_their_share(world: World) -> None:
    v6 = [f"2001:db8::{number:x}" for number in range(4000)]
    world.lookups = {socket.AF_INET6: (0, v6), socket.AF_INET: (0, V4)}
    world.hosts = {**dict.fromkeys(v6 + V4, REFUSED), V4[2]: 0.0}
    assert await world.connect() == V4[2]
    assert len(world.tried) == 6


async def test_no_such_name(world: World) -> None:
    with pytest.raises(ConnectFailed, match=r"cannot resolve name\.example: Name or service not known") as caught:
        await world.connect()
    assert caught.value.phase == "dns"


@pytest.mark.parametrize("steps", range(0, 40, 3))
async def test_called_off_leaks_no_winner(world: World, steps: int) -> None:
    """Cancelled after so many rounds of the event loop: either it returned the connection, or it was discarded."""
    world.lookups = {socket.AF_INET6: (0, V6[:1]), socket.AF_INET: (0, V4[:1])}
    world.hosts = {V6[0]: 0.0, V4[0]: 0.0}
    made: list[str] = []
    connected: list[str] = []
    attempt = world._attempt

    async def counted(address: Address) -> str:
        host = await attempt(address)
        made.append(host)
        return host

    async def cancel(scope: anyio.CancelScope) -> None:
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        scope.cancel()

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            tasks.start_soon(cancel, scope)
            connected.append(await connect_any("name.example", 443, counted, world.discarded.append, ask=resolve))
    assert sorted(connected + world.discarded) == sorted(made)


async def test_literals_ask_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*args: Any, **settings: Any) -> Any:
        raise AssertionError("asked the resolver")

    monkeypatch.setattr(anyio, "getaddrinfo", never)
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = await connect_tcp("127.0.0.1", server.getsockname()[1], ask=resolve)
        with sock:
            assert sock.gettimeout() == 0
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


async def test_localhost_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = anyio.getaddrinfo

    async def counted(host: str, port: int, *, family: socket.AddressFamily, type: socket.SocketKind) -> Any:
        asked.append(family)
        return await real(host, port, family=family, type=type)

    monkeypatch.setattr(anyio, "getaddrinfo", counted)
    with socket.create_server(("127.0.0.1", 0)) as server:
        (await connect_tcp("localhost", server.getsockname()[1], ask=resolve)).close()
    assert asked == [socket.AF_UNSPEC]


async def test_local_address_and_options() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
        sock = await connect_tcp(
            "127.0.0.1", server.getsockname()[1], ask=resolve, local_address="127.0.0.2", options=options
        )
        with sock:
            assert sock.getsockname()[0] == "127.0.0.2"
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has it")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_local_address_leaves_the_choice_of_a_port_to_connect(host: str) -> None:
    """Otherwise no two connections from one address share a port, and there are 28,000."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server((host, 0), family=family) as server,
        await connect_tcp(host, server.getsockname()[1], ask=resolve, local_address=host) as sock,
    ):
        assert sock.getsockopt(socket.IPPROTO_IP, 24) == 1  # IP_BIND_ADDRESS_NO_PORT


async def test_zone_that_names_no_interface() -> None:
    with pytest.raises(ConnectFailed, match=r"^cannot resolve ::1%nope: ") as caught:
        await connect_tcp("::1%nope", 80, ask=resolve)
    assert caught.value.phase == "dns"


async def test_full_backlog_of_a_unix_socket(tmp_path: Path) -> None:
    """Linux then says EAGAIN: nothing has begun, and nothing tells when to try again."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(1)
        server.setblocking(False)
        made: list[socket.socket] = []

        async def connect() -> None:
            sock = await connect_unix(path)
            assert sock.getpeername() == path
            made.append(sock)

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(connect)
            while len(made) < 20:
                with suppress(BlockingIOError):
                    server.accept()[0].close()
                await anyio.sleep(0.001)
    for sock in made:
        sock.close()


async def test_full_backlog_and_no_time() -> None:
    """Who is called off leaves nothing behind. (An abstract name: nothing to delete.)"""
    with socket.socket(socket.AF_UNIX) as server:
        path = f"\0allswell-full-{os.getpid()}"  # all processes share the names
        server.bind(path)
        server.listen(0)
        with await connect_unix(path), anyio.move_on_after(0.05) as scope:
            await connect_unix(path)
        assert scope.cancelled_caught


async def test_unix_socket_that_is_not_there() -> None:
    with pytest.raises(ConnectFailed, match="Unix socket /nowhere/at/all: No such file"):
        await connect_unix("/nowhere/at/all")


# Hints (RFC 9460 §7.3)


async def hinted(world: World, *hints: str, local_address: str | None = None) -> str:
    world.began = monotonic()
    return await connect_any(
        "name.example",
        443,
        world._attempt,
        world.discarded.append,
        ask=resolve,
        hints=hints,
        local_address=local_address,
    )


async def test_hints_yield_to_the_resolver(world: World) -> None:
    world.lookups = {socket.AF_INET: (0.02, V4[:1])}
    world.hosts = {V4[0]: 0.0, V4[1]: 0.0}
    assert await hinted(world, V4[1], V6[1]) == V4[0]
    assert world.order() == [V4[0]]


async def test_hints_stand_in_for_a_slow_resolver(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    resolution_delay(monkeypatch)
    world.lookups = {socket.AF_INET6: (PATIENCE, V6[:1]), socket.AF_INET: (PATIENCE, V4[:1])}
    world.hosts = {V4[1]: 0.0, V6[1]: REFUSED}
    assert await hinted(world, V4[1], V6[1]) == V4[1]
    assert world.order() == [V6[1], V4[1]]
    assert 0.04 < world.tried[0][1] < LAG


async def test_hints_stand_in_where_the_name_has_no_address(world: World) -> None:
    world.hosts = {V4[1]: 0.0}
    assert await hinted(world, V4[1]) == V4[1]
    assert world.tried[0][1] < LAG


async def test_the_resolvers_word_replaces_hints_that_were_not_tried(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stagger(monkeypatch, 4.0)
    resolution_delay(monkeypatch)
    world.lookups = {socket.AF_INET6: (LAG, []), socket.AF_INET: (0.5, [V4[0], V4[2]])}
    world.hosts = {V4[2]: 0.0, V4[1]: 0.0}
    assert await hinted(world, V4[0], V4[1]) == V4[2]
    assert world.order() == [V4[0], V4[2]]  # the first was tried as a hint, and once is enough


async def test_hints_of_another_family_than_ours(world: World) -> None:
    world.hosts = {V4[1]: 0.0}
    assert await hinted(world, V6[1], V4[1], local_address="192.0.2.99") == V4[1]
    assert world.order() == [V4[1]]


async def test_hints_do_not_use_up_the_attempts_at_the_resolvers_addresses(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither share is unbounded: whoever gives the hints names as many as it likes."""
    resolution_delay(monkeypatch)
    hints = [f"192.0.3.{number}" for number in range(100)]
    found = [f"192.0.2.{number}" for number in range(100)]
    world.lookups = {socket.AF_INET6: (LAG, []), socket.AF_INET: (LAG, found)}
    world.hosts = dict.fromkeys(hints + found, REFUSED)
    with pytest.raises(ConnectFailed, match="its other addresses were not tried"):
        await hinted(world, *hints)
    assert world.order() == hints[:ATTEMPTS] + found[:ATTEMPTS]
