"""Reuse: a thousand requests need one connection, in every version; and behind HAProxy its origin sees the same."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import pytest

from allswell import ConnectionPool
from allswell._config import Timeouts
from allswell._report import ConnectionEnd
from tests.servers.haproxy import haproxy
from tests.support.certificates import certificates
from tests.support.h2_script import Http2Server, h2_tls
from tests.support.peer import scripted_peer
from tests.support.quic_server import QuicServer, ServedConnection
from tests.support.scripts import answers

pytestmark = pytest.mark.anyio

REQUESTS = 1000
PATIENT = Timeouts(read=20, pool=20, total=30)


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
    at_most = at_once if version in ("h1", "h1 tls") else 1
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
            assert len(quic.connections) == at_most
    else:
        script = Http2Server() if version == "h2" else answers()
        tls = h2_tls() if version == "h2" else version == "h1 tls"
        with scripted_peer(script, tls=tls) as peer:
            async with pool:
                await thousand(pool, peer.url, at_once)
            assert len(peer.connections) == at_most
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
