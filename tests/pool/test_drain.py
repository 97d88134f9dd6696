"""Draining: the connections of a pool are replaced, and nothing that is under way is cut."""

from __future__ import annotations

import json
import threading
from contextlib import ExitStack
from typing import Any

import anyio
import anyio.to_thread
import httpx2
import pytest

import allswell
from allswell import ConnectionPool, PoolClosed, ProxyHop, Timeouts
from allswell.testing import ConnectionClose, Fin, Origin, RequestExecuted, Response
from tests.support.certificates import certificates
from tests.support.h2_proxy import Http2Proxy
from tests.support.h2_script import Http2Server, h2_tls
from tests.support.holes import tcp_hole
from tests.support.lag import LAG
from tests.support.peer import PeerConnection, scripted_peer
from tests.support.scripts import answers
from tests.testing.clients import Gate

pytestmark = pytest.mark.anyio

VERSIONS = ["h1", "h2", "h3"]


def client_for(origin: Origin, version: str, **settings: Any) -> allswell.AsyncClient:
    http3: Any = "only" if version == "h3" else False
    return allswell.AsyncClient(verify=origin.client_context(), base_url=origin.url, http3=http3, **settings)


@pytest.mark.parametrize("version", VERSIONS)
async def test_idle_connections_are_replaced(version: Any) -> None:
    async with Origin(versions=[version]) as origin:
        async with client_for(origin, version) as client:
            await client.get("/before")
            report = await client.drain(3 * LAG)
            assert report.clean
            assert [end.reason for end in report.connections] == ["it was drained"]
            await origin.ended(timeout=30)
            origin.assert_ended_gracefully()
            assert (await client.get("/after")).text == "ok"
            assert client.pool is not None
            assert client.pool.state == "open"
        await origin.ended(2, timeout=30)
        origin.assert_ended_gracefully()
        assert [each.connection for each in origin.record.of(RequestExecuted)] == [1, 2]


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_is_under_way_goes_on(version: Any) -> None:
    """New requests have a new connection at once; the old one ends when its response has come."""
    gate = Gate()
    async with Origin({"/": Response(), "/slow": gate}, versions=[version]) as origin:
        async with client_for(origin, version) as client, anyio.create_task_group() as tasks:
            tasks.start_soon(client.get, "/slow")
            await origin.seen(RequestExecuted, timeout=30)
            assert (await client.drain(0.1)).connections == ()
            assert (await client.get("/")).status_code == 200
            assert [each.connection for each in origin.record.of(RequestExecuted)] == [1, 2]
            reports: list[allswell.CloseReport] = []

            async def drain() -> None:
                reports.append(await client.drain())
                tasks.cancel_scope.cancel()

            tasks.start_soon(drain)
            await origin.seen(Fin if version != "h3" else ConnectionClose, timeout=30)
            gate.open = True
            await anyio.sleep_forever()
        assert [end.exchanges for end in reports[0].connections] == [1, 1]
        assert reports[0].clean
        await origin.ended(2, timeout=30)
        origin.assert_ended_gracefully()
        origin.assert_no_reset()


async def test_requests_that_wait_are_served_by_new_connections() -> None:
    """With one connection at most: the place of the one that drains is another's."""
    gate = Gate()
    async with Origin({"/": Response(), "/slow": gate}, versions=["h1"]) as origin:
        limits = httpx2.Limits(max_connections=1)
        async with client_for(origin, "h1", limits=limits) as client, anyio.create_task_group() as tasks:
            tasks.start_soon(client.get, "/slow")
            await origin.seen(RequestExecuted, timeout=30)
            tasks.start_soon(client.get, "/")
            await anyio.wait_all_tasks_blocked()
            await client.drain(0)
            await origin.seen(RequestExecuted, 2, timeout=30)
            gate.open = True
        await origin.ended(2, timeout=30)
        origin.assert_ended_gracefully()


async def test_all_pools_of_a_client() -> None:
    async with Origin(versions=["h1"]) as first, Origin(versions=["h2"]) as second:
        mounts = {second.url: allswell.AsyncTransport(verify=second.client_context())}
        async with client_for(first, "h1", mounts=mounts) as client:
            await client.get("/")
            await client.get(second.url)
            assert len((await client.drain()).connections) == 2
            await first.ended(timeout=30)
            await second.ended(timeout=30)


async def test_closing_while_it_drains() -> None:
    """The close hurries what drains; both tell of it."""
    async with Origin({"/": Response(body=b"0123456789")}, versions=["h2"]) as origin:
        origin.stall()
        client = client_for(origin, "h2")
        async with client.stream("GET", "/") as response, anyio.create_task_group() as tasks:
            reports: list[allswell.CloseReport] = []

            async def drain() -> None:
                reports.append(await client.drain())

            tasks.start_soon(drain)
            await anyio.wait_all_tasks_blocked()
            report = await client.aclose(0.2)
            assert [end.cut for end in report.connections] == [1]
            assert response.status_code == 200
        assert [end.cut for end in reports[0].connections] == [1]
        await origin.ended(timeout=30)


async def test_a_pool_that_is_closed_or_was_never_used() -> None:
    async with ConnectionPool() as pool:
        assert (await pool.drain()).connections == ()
    with pytest.raises(PoolClosed):
        await pool.drain()
    client = allswell.AsyncClient()
    assert (await client.drain(0)).connections == ()
    await client.aclose()
    with pytest.raises(PoolClosed):
        await client.drain()


async def test_snapshot_as_json() -> None:
    async with Origin(versions=["h2"]) as origin, client_for(origin, "h2") as client:
        await client.get("/")
        assert client.pool is not None
        told = json.loads(json.dumps(client.pool.snapshot().as_dict()))
        assert told["state"] == "open"
        assert told["totals"] == {"connections": 1, "exchanges": 0, "dials": 0, "waiting": 0}
        [route] = told["routes"]
        assert route["route"] == origin.url
        assert route["connections"][0]["http_version"] == "HTTP/2"


@pytest.mark.parametrize("sooner", ["the first", "the second"])
async def test_two_at_once(sooner: str) -> None:
    """The end of one wait, by its time, is not the other's."""
    gate = Gate()
    async with Origin({"/slow": gate}, versions=["h2"]) as origin:
        async with client_for(origin, "h2") as client, anyio.create_task_group() as tasks:
            tasks.start_soon(client.get, "/slow")
            await origin.seen(RequestExecuted, timeout=30)
            reports: list[allswell.CloseReport] = []

            async def drain(timeout: float | None) -> None:
                report = await client.drain(timeout)
                if timeout is None:
                    reports.append(report)
                else:
                    assert report.connections == ()
                    gate.open = True

            timeouts = [0.1, None] if sooner == "the first" else [None, 0.1]
            for timeout in timeouts:
                tasks.start_soon(drain, timeout)
                await anyio.wait_all_tasks_blocked()
        assert [end.reason for end in reports[0].connections] == ["it was drained"]


@pytest.mark.parametrize("carried", [False, True])
async def test_what_is_being_made(carried: bool) -> None:
    """It serves the request that waits for it, and ends. Through a connection to a proxy, that ends behind it."""
    go_on, came = threading.Event(), threading.Event()

    def slow(connection: PeerConnection) -> None:
        came.set()
        go_on.wait(60)
        connection.handshake()
        answers()(connection)

    with ExitStack() as stack:
        origin = stack.enter_context(scripted_peer(slow, tls=True, handshake=False))
        proxies: tuple[ProxyHop, ...] = ()
        if carried:
            proxy = stack.enter_context(scripted_peer(Http2Proxy(), tls=h2_tls()))
            proxies = (ProxyHop("https", "localhost", proxy.port, ssl_context=certificates().client_context()),)
        trust = certificates().client_context()
        pool = ConnectionPool(ssl_context=trust, proxies=proxies, keepalive_expiry=None)
        async with pool, anyio.create_task_group() as tasks:
            tasks.start_soon(pool.request, "GET", origin.url)
            await anyio.to_thread.run_sync(came.wait, 60)
            reports: list[allswell.CloseReport] = []

            async def drain() -> None:
                reports.append(await pool.drain())

            tasks.start_soon(drain)
            await anyio.wait_all_tasks_blocked()
            assert not reports
            go_on.set()
        [report] = reports
        assert [(end.exchanges, end.reason) for end in report.connections] == [(1, "it was drained")] * (1 + carried)
        assert report.clean
        assert pool.snapshot().routes == ()
        await origin.ended()


async def test_new_requests_do_not_wait_for_what_is_being_made() -> None:
    go_on, came = threading.Event(), threading.Event()

    def slow_at_first(connection: PeerConnection) -> None:
        if connection.index == 0:
            came.set()
            go_on.wait(60)
        connection.handshake()
        Http2Server()(connection)

    with scripted_peer(slow_at_first, tls=h2_tls(), handshake=False) as origin:
        pool = ConnectionPool(ssl_context=certificates().client_context())
        async with pool, anyio.create_task_group() as tasks:
            tasks.start_soon(pool.request, "GET", origin.url)
            await anyio.to_thread.run_sync(came.wait, 60)
            assert (await pool.drain(0)).connections == ()
            await pool.request("GET", origin.url)
            go_on.set()
        assert len(origin.connections) == 2


async def test_a_dial_that_fails_while_it_is_drained() -> None:
    with tcp_hole() as port:
        async with ConnectionPool() as pool, anyio.create_task_group() as tasks:

            async def get() -> None:
                with pytest.raises(allswell.Timeout):
                    await pool.request("GET", f"http://127.0.0.1:{port}/", timeouts=Timeouts(connect=0.2))

            tasks.start_soon(get)
            await anyio.wait_all_tasks_blocked()
            assert (await pool.drain()).connections == ()
            assert pool.snapshot().dials == 0
