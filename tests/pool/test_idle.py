"""What counts as idle: nothing under way, whether or not a connection was used, has room, or hears from its peer."""

from __future__ import annotations

import time
from typing import Any

import anyio
import anyio.to_thread
import pytest

from allswell import ConnectionEnd, ConnectionPool
from allswell._config import Timeouts
from allswell._errors import Timeout
from tests.support.certificates import certificates
from tests.support.h2_script import MAX_CONCURRENT_STREAMS, Http2Server, Request, Talk
from tests.support.lag import LAG
from tests.support.leaks import no_leaked_sockets  # noqa: F401  a fixture
from tests.support.peer import PeerConnection, scripted_peer
from tests.support.scripts import answers

pytestmark = pytest.mark.anyio


async def until_ended(ends: list[ConnectionEnd], count: int = 1) -> None:
    with anyio.fail_after(30):
        while len(ends) < count:  # noqa: ASYNC110  a plain callback tells
            await anyio.sleep(0.01)


async def test_a_peer_that_answers_pings_keeps_no_connection_from_expiring() -> None:
    server, ends = Http2Server(), list[ConnectionEnd]()
    settings: dict[str, Any] = {"keepalive_expiry": 2.0, "ping_interval": 0.05, "on_connection_end": ends.append}
    with scripted_peer(server) as peer:
        async with ConnectionPool(http1=False, **settings) as pool:
            await pool.request("GET", peer.url)
            await until_ended(ends)
    assert ends[0].reason == "idle for 2 s"
    assert "PING" in server.talks[0].seen


async def test_a_connection_that_came_too_late_to_be_used_expires() -> None:
    """Its requester left during the handshake."""
    ends: list[ConnectionEnd] = []

    def late(connection: PeerConnection) -> None:
        connection.stall()
        connection.handshake()
        answers()(connection)

    with scripted_peer(late, tls=True, handshake=False) as peer:
        context = certificates().client_context()
        async with ConnectionPool(
            ssl_context=context, keepalive_expiry=0.1, on_connection_end=ends.append, http2=False
        ) as pool:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pool.request, "GET", peer.url)
                await anyio.to_thread.run_sync(peer.wait_accepted)
                tasks.cancel_scope.cancel()
            peer.release()
            await until_ended(ends)
            assert pool.snapshot().connections == 0
        await peer.ended()
    assert [(end.reason, end.exchanges) for end in ends] == [("idle for 0.1 s", 0)]


def shut(talk: Talk, request: Request) -> None:
    """Allow no more streams while one is open."""
    talk.settings(max_concurrent_streams=0)
    talk.answer(request)


async def get_shut(pool: ConnectionPool, url: str) -> None:
    await pool.request("GET", url)
    assert [each.capacity for route in pool.snapshot().routes for each in route.connections] == [0]


async def test_one_without_room_gives_its_place_to_another_origin() -> None:
    ends: list[ConnectionEnd] = []
    server = Http2Server(shut, settings={MAX_CONCURRENT_STREAMS: 1})
    with scripted_peer(server) as peer, scripted_peer(Http2Server()) as other:
        settings: dict[str, Any] = {"max_connections": 1, "keepalive_expiry": None, "on_connection_end": ends.append}
        async with ConnectionPool(http1=False, **settings) as pool:
            await get_shut(pool, peer.url)
            response = await pool.request("GET", other.url, timeouts=Timeouts(pool=LAG))
            assert response.status == 200
            await until_ended(ends)
    assert ends[0].reason == "another connection needed its place"


async def test_but_not_to_its_own_which_would_hear_the_same_again() -> None:
    server = Http2Server(shut, settings={MAX_CONCURRENT_STREAMS: 1})
    with scripted_peer(server) as peer:
        async with ConnectionPool(http1=False, max_connections=1, keepalive_expiry=None) as pool:
            await get_shut(pool, peer.url)
            with pytest.raises(Timeout, match="no room"):
                await pool.request("GET", peer.url, timeouts=Timeouts(pool=0.1))
            server.talk().settings(max_concurrent_streams=1)
            await pool.request("GET", peer.url)
    assert len(server.talks) == 1


async def test_one_without_room_expires() -> None:
    ends: list[ConnectionEnd] = []
    server = Http2Server(shut, settings={MAX_CONCURRENT_STREAMS: 1})
    with scripted_peer(server) as peer:
        async with ConnectionPool(http1=False, keepalive_expiry=3.0, on_connection_end=ends.append) as pool:
            await get_shut(pool, peer.url)
            await until_ended(ends)
    assert ends[0].reason == "idle for 3 s"


# Servers that say how long they keep an idle connection (HTTP/1.1: Keep-Alive: timeout=N)

both = pytest.mark.parametrize("pipelining", [0, 2])


@both
@pytest.mark.parametrize("field", ["timeout=1", "max=99, Timeout=1", 'timeout="1", max=5'])
async def test_it_ends_before_the_server_would_end_it(field: str, pipelining: int) -> None:
    ends: list[ConnectionEnd] = []
    settings: dict[str, Any] = {"keepalive_expiry": 60, "pipelining": pipelining, "on_connection_end": ends.append}
    with scripted_peer(answers(fields=(f"Keep-Alive: {field}",))) as peer:
        async with ConnectionPool(**settings) as pool:
            await pool.request("GET", peer.url)
            await until_ended(ends)
        await peer.ended()
        assert peer.connections[0].saw == ["FIN"]
    assert [end.reason for end in ends] == ["idle for 0.5 s, and the server keeps it for 1 s"]


@both
async def test_where_the_event_loop_was_held_it_is_not_used_after_its_time(pipelining: int) -> None:
    with scripted_peer(answers(fields=("Keep-Alive: timeout=1",))) as peer:
        async with ConnectionPool(pipelining=pipelining) as pool:
            await pool.request("GET", f"{peer.url}/1")
            time.sleep(0.6)  # noqa: ASYNC251  the program computes
            answer = await pool.request("POST", f"{peer.url}/2", content=b"x")
            assert answer.attempts == []
        assert [len(connection.requests) for connection in peer.connections] == [1, 1]


async def test_a_server_that_keeps_none_gets_one_request_each() -> None:
    async def fetch(number: int) -> None:
        assert await (await pool.request("GET", f"{peer.url}/{number}")).read() == b"/%d" % number

    with scripted_peer(answers(fields=("Keep-Alive: timeout=0",))) as peer:
        async with ConnectionPool(max_connections=1) as pool, anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(fetch, number)
        assert [len(connection.requests) for connection in peer.connections] == [1, 1, 1]


@pytest.mark.parametrize("field", ["timeout=60", "max=1", "timeout=x", "timeout", "timeout=-1", "soon"])
async def test_what_says_nothing_of_use_changes_nothing(field: str) -> None:
    ends: list[ConnectionEnd] = []
    with scripted_peer(answers(fields=(f"Keep-Alive: {field}",))) as peer:
        async with ConnectionPool(keepalive_expiry=3.0, on_connection_end=ends.append) as pool:
            for _ in range(3):
                await pool.request("GET", peer.url)
            await until_ended(ends)
        assert len(peer.connections) == 1
    assert [end.reason for end in ends] == ["idle for 3 s"]
