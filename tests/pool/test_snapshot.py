"""The pool's state as data, at every moment of its life, and as a table."""

from __future__ import annotations

import anyio
import pytest

from allswell import AsyncClient, ConnectionPool, ConnectionSnapshot, PoolSnapshot, RouteSnapshot
from allswell.testing import Origin
from tests.support.leaks import no_leaked_sockets  # noqa: F401  a fixture
from tests.support.peer import PeerConnection, scripted_peer
from tests.support.scripts import half_response, response

pytestmark = pytest.mark.anyio


async def test_of_a_pool_in_its_life() -> None:
    pool = ConnectionPool()
    assert pool.snapshot() == PoolSnapshot("open", 0, ())
    with scripted_peer(half_response) as second:
        async with Origin(tls=False) as first, pool, AsyncClient(pool=pool):
            await pool.request("GET", first.url)
            async with pool.stream("GET", second.url):
                taken = pool.snapshot()
                assert (taken.state, taken.users) == ("open", 2)
                assert [each.route for each in taken.routes] == [first.url, second.url]
                [idle], [busy] = (each.connections for each in taken.routes)
                assert (idle.http_version, idle.state, idle.reason) == ("HTTP/1.1", "open", "")
                assert (idle.exchanges, idle.capacity, idle.opened) == (0, 1, 1)
                assert idle.idle is not None
                assert 0 <= idle.idle <= idle.age < 60
                assert (busy.exchanges, busy.capacity, busy.opened, busy.idle) == (1, 0, 1, None)
                assert (taken.connections, taken.exchanges, taken.dials, taken.waiting) == (2, 1, 0, 0)
            assert pool.snapshot().exchanges == 0
        assert pool.snapshot() == PoolSnapshot("closed", 0, ())


async def test_who_waits_and_what_is_dialled() -> None:
    def silent(connection: PeerConnection) -> None:
        connection.read_until_end()

    with scripted_peer(silent, handshake=False) as peer:
        url = f"https://127.0.0.1:{peer.port}"
        async with ConnectionPool(max_connections=1, http1=True, http2=False) as pool:
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(pool.request, "GET", url)
                await anyio.to_thread.run_sync(peer.wait_accepted)
                taken = pool.snapshot()
                assert taken.routes == (RouteSnapshot(url, (), 1, 3),)
                assert (taken.connections, taken.dials, taken.waiting) == (0, 1, 3)
                tasks.cancel_scope.cancel()
            assert pool.snapshot().waiting == 0


async def test_a_connection_in_its_goodbyes_is_still_there() -> None:
    def rude(connection: PeerConnection) -> None:
        connection.read_request()
        connection.send(response(b"ok", "Connection: close"))
        connection.stall()

    with scripted_peer(rude) as peer:
        async with ConnectionPool(grace=0.2) as pool:
            await pool.request("GET", peer.url)
            [route] = pool.snapshot().routes
            [leaving] = route.connections
            assert leaving.state in ("draining", "closing")
            assert leaving.reason
            assert leaving.capacity == 0


def test_table() -> None:
    connections = (
        ConnectionSnapshot("HTTP/2", "open", "", 3, 97, 50, 12.34, None),
        ConnectionSnapshot("HTTP/1.1", "closing", "idle for 5 s", 0, 0, 7, 20.0, 5.01),
    )
    taken = PoolSnapshot("open", 1, (RouteSnapshot("https://example.org", connections, 1, 2),))
    assert str(taken).splitlines() == [
        "pool open, 1 user: 2 connections, 3 exchanges, 1 dial, 2 waiting",
        "https://example.org: 2 connections, 1 dial, 2 waiting",
        "  HTTP/2    open      3 under way, room for 97, 50 in all, 12.3 s old",
        "  HTTP/1.1  closing   0 under way, room for 0, 7 in all, 20.0 s old, idle for 5.0 s (idle for 5 s)",
    ]
