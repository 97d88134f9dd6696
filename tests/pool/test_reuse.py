"""Reuse: a thousand requests need one connection, in every version; and behind HAProxy its origin sees the same."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import pytest

from allswell import ConnectionPool
from allswell._config import Timeouts
from allswell._connection import idle
from allswell._report import ConnectionEnd
from tests.servers.apache import apache
from tests.servers.haproxy import haproxy
from tests.servers.nginx import nginx
from tests.support.certificates import certificates
from tests.support.h2_script import Http2Server, h2_tls
from tests.support.peer import scripted_peer
from tests.support.quic_server import QuicServer, ServedConnection
from tests.support.scripts import answers

pytestmark = pytest.mark.anyio

REQUESTS = 1000
PATIENT = Timeouts()


async def thousand(pool: ConnectionPool, url: str, at_once: int) -> None:
    """As many requests, each answered with its own path."""
    numbers: Iterator[int] = iter(range(REQUESTS))

    async def work() -> None:
        for number in numbers:
            response = await pool.request("GET", f"{url}/r/{number}", timeouts=PATIENT)
            assert await response.read() == f"/r/{number}".encode()
            assert response.attempts == []

    async with anyio.create_task_group() as tasks:
        for _ in range(at_once):
            tasks.start_soon(work)


def echo(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
    connection.respond(stream, 200, fields[b":path"])


@pytest.mark.parametrize("at_once", [1, 50])
@pytest.mark.parametrize("version", ["h1", "h1 tls", "h1 pipelined", "h2", "h3"])
async def test_one_connection(version: str, at_once: int) -> None:
    ends: list[ConnectionEnd] = []
    # A request that waits takes the first connection that is free, which need not be the one that was made for it.
    enough = range(1, 1 + (at_once if version in ("h1", "h1 tls") else 1))
    pool = ConnectionPool(
        http3="only" if version == "h3" else False,
        pipelining=4 if version == "h1 pipelined" else 0,
        max_connections=1 if version == "h1 pipelined" else 100,
        keepalive_expiry=None,
        max_keepalive_connections=50,  # those that fifty workers need are kept, however slow the machine
        ssl_context=certificates().client_context(),
        on_connection_end=ends.append,
    )
    if version == "h3":
        with QuicServer({b"/r": echo}) as quic:
            async with pool:
                await thousand(pool, f"https://127.0.0.1:{quic.port}", at_once)
            assert len(quic.connections) in enough
    else:
        script = Http2Server() if version == "h2" else answers()
        tls = h2_tls() if version == "h2" else version == "h1 tls"
        with scripted_peer(script, tls=tls) as peer:
            async with pool:
                await thousand(pool, peer.url, at_once)
            assert len(peer.connections) in enough
    assert sum(end.exchanges for end in ends) == REQUESTS


@pytest.mark.server("haproxy")
@pytest.mark.parametrize(
    ("http2", "at_once", "at_most"), [(False, 1, 1), (True, 1, 1), (True, 50, 50)], ids=["h1", "h2", "h2 50 at once"]
)
async def test_haproxys_backend(http2: bool, at_once: int, at_most: int) -> None:
    """Counted at the origin, which speaks HTTP/1.1: one connection for each request that is under way at a time."""
    with scripted_peer(answers()) as origin, haproxy(origin.port) as server:
        before = len(origin.connections)
        ends: list[ConnectionEnd] = []
        async with ConnectionPool(
            http2=http2, ssl_context=certificates().client_context(), on_connection_end=ends.append
        ) as pool:
            await thousand(pool, server.url, at_once)
        assert len(origin.connections) - before <= at_most
        assert [end.exchanges for end in ends] == [REQUESTS]


@pytest.mark.server("nginx")
@pytest.mark.parametrize("takes", [1, 3, 10])
async def test_fifty_at_once_at_nginx_that_takes_few_requests_on_each_connection(takes: int) -> None:
    """Two connections show how few; then it is given no more than that (RFC 9113 §6.8)."""
    ends: list[ConnectionEnd] = []
    attempts: list[int] = []

    with nginx(requests_per_connection=takes) as server:
        async with ConnectionPool(
            http1=False, ssl_context=certificates().client_context(), on_connection_end=ends.append
        ) as pool:

            async def fetch() -> None:
                response = await pool.request("GET", f"{server.url}/", timeouts=PATIENT)
                assert response.status == 200
                attempts.append(len(response.attempts))

            for in_vain in (2 * 50, 0):
                attempts.clear()
                async with anyio.create_task_group() as tasks:
                    for _ in range(50):
                        tasks.start_soon(fetch)
                assert len(attempts) == 50
                assert sum(attempts) <= in_vain + 50 // takes  # (one more than it takes may be tried on each)
    assert len(ends) <= 2 * (50 // takes + 3)


@pytest.mark.parametrize("name", [pytest.param(each, marks=pytest.mark.server(each)) for each in ("nginx", "apache")])
async def test_servers_that_say_how_long_they_keep_an_idle_connection(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """We end it before they do: in life a second before, here three."""
    monkeypatch.setattr(idle, "_ON_THE_WAY", 3.0)
    ends: list[ConnectionEnd] = []
    with nginx(keepalive="6 6") if name == "nginx" else apache(keepalive="6") as server:
        url = f"http://127.0.0.1:{server.http_port}/"
        async with ConnectionPool(keepalive_expiry=60, on_connection_end=ends.append) as pool:
            for _ in range(2):
                asks = [(b"Connection", b"keep-alive")]  # without which Apache does not say
                assert (await pool.request("GET", url, headers=asks)).status == 200
            with anyio.fail_after(30):
                while not ends:  # noqa: ASYNC110  a plain callback tells
                    await anyio.sleep(0.01)
    assert [(end.reason, end.exchanges) for end in ends] == [("idle for 3 s, and the server keeps it for 6 s", 2)]
    assert ends[0].clean
