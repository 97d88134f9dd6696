"""QUIC against TCP, and addresses against each other: what a black hole costs, what is broken then, who ends."""

from __future__ import annotations

import socket
from time import monotonic, time
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from allswell import Alternative, AltSvcMemory, ConnectFailed, ConnectionEnd, ConnectionPool, Outcome
from allswell._config import Timeouts
from allswell._connection.connection import Connection
from allswell._dial import race
from allswell._dial.context import Context
from allswell._dial.dialer import _Attempts
from allswell._dial.discovery import Ways
from allswell._dial.origin_memory import BrokenMarks
from allswell._dial.quic import QuicBuilder
from allswell._dial.tcp import TcpBuilder
from allswell._request.route import Endpoint, Route
from tests.support.certificates import certificates
from tests.support.holes import UdpHole, tcp_hole
from tests.support.lag import LAG, stagger
from tests.support.leaks import sockets_closed
from tests.support.learnt import broken_ports
from tests.support.peer import scripted_peer
from tests.support.quic_server import QuicServer
from tests.support.scripts import answers
from tests.support.udp_relay import UdpRelay, Weather

pytestmark = pytest.mark.anyio

SOON = Timeouts(connect=30, read=30, write=30, pool=30, total=30)

#: Seconds between the first two attempts, in tests that count them.
STAGGER = 2.0


def one_stagger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for another stagger, once TCP is tried, waits for far longer than all else takes."""
    stagger(monkeypatch, STAGGER)
    build = TcpBuilder.build

    async def building(*args: Any) -> Any:
        monkeypatch.setattr(race, "CONNECTION_ATTEMPT_DELAY", 3 * LAG)
        return await build(*args)

    monkeypatch.setattr(TcpBuilder, "build", building)


def pool_for(origin: str, *alternatives: tuple[str, int], **settings: Any) -> ConnectionPool:
    """A pool that knows of these alternatives of the origin."""
    settings.setdefault("grace", 3 * LAG)
    store = AltSvcMemory()
    store.put(origin, [Alternative(host, port, time() + 60) for host, port in alternatives])
    return ConnectionPool(http3=True, alt_svc=store, ssl_context=certificates().client_context(), **settings)


def on_tcp() -> Any:
    return scripted_peer(answers(), tls=certificates().server_context())


@pytest.fixture
def both_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """name.example is ::1, and 127.0.0.1."""

    async def getaddrinfo(host: str, port: int, *, family: int, type: int) -> list[Any]:
        address = {socket.AF_INET6: ("::1", port, 0, 0), socket.AF_INET: ("127.0.0.1", port)}[
            socket.AddressFamily(family)
        ]
        return [(family, type, 6, "", address)]

    monkeypatch.setattr(anyio, "getaddrinfo", getaddrinfo)


async def request(pool: ConnectionPool, origin: str) -> tuple[bytes, float]:
    """Which version it was, and how long it took."""
    began = monotonic()
    response = await pool.request("GET", f"{origin}/hello", timeouts=SOON)
    assert response.status == 200
    return response.http_version, monotonic() - began


async def test_udp_that_is_dropped_costs_the_stagger(both_families: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many addresses and alternatives there are. What was tried in vain is broken; what had no time is not."""
    one_stagger(monkeypatch)
    with (
        UdpHole() as hole,
        UdpHole(hole.port, socket.AF_INET6),
        UdpHole() as other,
        on_tcp() as tcp,
        sockets_closed(),
    ):
        origin = f"https://name.example:{tcp.port}"
        async with pool_for(
            origin, ("name.example", hole.port), ("name.example", other.port), keepalive_expiry=0.01
        ) as pool:
            version, seconds = await request(pool, origin)
            assert version == b"HTTP/1.1"
            assert STAGGER - 0.01 < seconds < LAG
            assert broken_ports(pool) == [hole.port]


async def test_tcp_that_is_dropped_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """QUIC is so slow that TCP has its try: it is not waited for."""
    stagger(monkeypatch)
    with (
        sockets_closed(),
        QuicServer() as server,
        UdpRelay(server.port, up=Weather(delay=(0.16, 0.16)), down=Weather(delay=(0.16, 0.16))) as relay,
        tcp_hole() as hole,
    ):
        origin = f"https://127.0.0.1:{hole}"
        async with pool_for(origin, ("127.0.0.1", relay.port)) as pool:
            version, seconds = await request(pool, origin)
            assert version == b"HTTP/3"
            assert seconds > 0.6  # two round trips
            await pool.aclose(0.1)


async def test_quic_alternates_between_the_families(both_families: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """IPv6 first; IPv4 when that has had its time, and TCP (which is refused)."""
    one_stagger(monkeypatch)
    with QuicServer() as server, UdpHole(server.port, socket.AF_INET6), sockets_closed():
        origin = f"https://name.example:{server.port}"
        async with pool_for(origin, ("name.example", server.port)) as pool:
            version, seconds = await request(pool, origin)
            assert version == b"HTTP/3"
            assert STAGGER - 0.01 < seconds < LAG


@pytest.fixture
def stubborn(monkeypatch: pytest.MonkeyPatch) -> None:
    """QUIC comes first, and TCP is not called off: as if both had connected in the same turn of the event loop."""
    stagger(monkeypatch, 0.01)
    build_quic, build_tcp = QuicBuilder.build, TcpBuilder.build
    tcp_began, quic_made = anyio.Event(), anyio.Event()

    async def first(*args: Any) -> Any:
        made = await build_quic(*args)
        await tcp_began.wait()
        quic_made.set()
        return made

    async def shielded(*args: Any) -> Any:
        tcp_began.set()
        with anyio.CancelScope(shield=True):
            await quic_made.wait()
            return await build_tcp(*args)

    monkeypatch.setattr(QuicBuilder, "build", first)
    monkeypatch.setattr(TcpBuilder, "build", shielded)


@pytest.mark.parametrize("closing", [False, True])
async def test_who_comes_second_ends_in_the_pools_sight(stubborn: None, closing: bool) -> None:
    """Politely, told to the hook; and a pool that closes waits for it and reports it."""
    ends: list[ConnectionEnd] = []
    with (
        sockets_closed(),
        QuicServer() as server,
        on_tcp() as tcp,
    ):
        origin = f"https://127.0.0.1:{tcp.port}"
        async with pool_for(origin, ("127.0.0.1", server.port), on_connection_end=ends.append) as pool:
            version, _ = await request(pool, origin)
            if not closing:
                with anyio.fail_after(30):
                    while not ends:  # noqa: ASYNC110  it ends in the background
                        await anyio.sleep(0.01)
            report = await pool.aclose()
        assert version == b"HTTP/3"
        await tcp.ended()
        assert tcp.connections[0].saw == ["close_notify", "FIN"]
        [second] = [end for end in ends if end.http_version == "HTTP/1.1"]
        assert (second.reason, second.exchanges, second.route) == ("another connection was made sooner", 0, origin)
        assert second.clean
        assert [layer.outcome for layer in second.layers][1:] == [Outcome.CLEAN, Outcome.CLEAN]
        assert len(ends) == 2
        assert all(end in ends for end in report.connections)


class Builds:
    """A builder whose connections have no room yet; or that fails."""

    def __init__(self, error: ConnectFailed | None = None) -> None:
        self._error = error

    async def build(self, context: Context, to: Endpoint) -> Any:
        if self._error is not None:
            raise self._error
        return SimpleNamespace(backend=SimpleNamespace(capacity=lambda: 0))


@pytest.mark.parametrize("tcp_too", [True, False])
async def test_quic_without_room_fails_only_where_tcp_may_have_some(tcp_too: bool) -> None:
    """When TCP has failed and DNS then names a service over QUIC only, it is better than none."""
    here, marks = Endpoint("name.example", 443), BrokenMarks()
    discarded: list[str] = []
    context: Any = SimpleNamespace(
        route=Route("https", "name.example", 443),
        discard=lambda connection, why: discarded.append(why),
        second=lambda: context,
    )
    refused = ConnectFailed("TCP refused", phase="tcp")
    attempts = _Attempts(
        context, Builds(refused), lambda: Builds(), marks, lambda context, made: cast(Connection, made)
    )
    if tcp_too:
        with pytest.raises(
            ConnectFailed, match=r"TCP refused \(before that: .* has allowed no request over QUIC yet\)"
        ):
            await attempts.race(Ways([here], [here]))
        assert discarded == ["it has no room yet, and TCP may have room"]
    else:
        assert (await attempts.race(Ways([here], ()))).backend.capacity() == 0
        assert discarded == []
    assert marks.broken(here) is tcp_too
