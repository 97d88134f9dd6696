"""Servers that allow no request yet, or never: the request waits where it is, and nobody dials again and again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import anyio
import pytest
from interop.ports import free_port

from allswell import AllswellError, ConnectionEnd, ConnectionPool, Timeout, Timeouts
from tests.support.certificates import certificates
from tests.support.h2_script import MAX_CONCURRENT_STREAMS, REFUSED_STREAM, Http2Server, Request, Talk, h2_tls
from tests.support.lag import room_is_awaited
from tests.support.peer import scripted_peer
from tests.support.quic_server import QuicServer, ServedConnection

pytestmark = pytest.mark.anyio

#: Fifty handshakes at once take a busy machine a while.
PATIENT = Timeouts(connect=60, read=60, write=60, pool=60, total=60)


class NoStreams(QuicServer):
    """Grants its clients no request streams.

    :param closes: it ends each connection as soon as the client has made it.
    """

    def __init__(self, *, closes: bool = False, port: int = 0) -> None:
        handler = {b"/r": lambda connection, stream, fields: connection.respond(stream, 200, fields[b":path"])}
        super().__init__(handler, port=port)
        self._closes = closes

    def _accept(self, header: Any, address: Any) -> ServedConnection | None:
        connection = super()._accept(header, address)
        if connection is not None:
            limit = connection.quic._local_max_streams_bidi
            limit.value = limit.sent = 0
        return connection

    def _on_control(self, connection: ServedConnection, data: bytes) -> None:
        super()._on_control(connection, data)
        if self._closes:  # the client has made its connection
            connection.quic.close(0x100)


def grant(count: int, connection: ServedConnection) -> None:
    connection.quic._local_max_streams_bidi.value = count


def pool_for(**settings: Any) -> ConnectionPool:
    return ConnectionPool(ssl_context=certificates().client_context(), **settings)


def url_of(server: QuicServer) -> str:
    return f"https://127.0.0.1:{server.port}/r/"


async def all_wait(pool: ConnectionPool, count: int) -> None:
    """Until so many wait for a connection that there is."""
    with anyio.fail_after(30):
        while True:
            routes = pool.snapshot().routes
            if routes and routes[0].waiting == count and routes[0].connections and not routes[0].dials:
                return
            await anyio.sleep(0.005)


@pytest.mark.parametrize("keepalive", [5.0, 0.1, 0.0])
async def test_http3_without_streams_ends_with_the_pool_timeout(keepalive: float) -> None:
    with NoStreams() as server:
        async with pool_for(http3="only", keepalive_expiry=keepalive) as pool:
            with pytest.raises(Timeout, match=r"the server has allowed no request .* within 0\.7 s") as caught:
                await pool.request("GET", f"{url_of(server)}1", timeouts=Timeouts(pool=0.7))
            assert caught.value.phase == "pool"
        assert len(server.connections) == 1


@pytest.mark.parametrize("at_once", [1, 20])
@pytest.mark.parametrize("keepalive", [5.0, 0.1, 0.0])
async def test_http3_with_streams_that_come_late(at_once: int, keepalive: float) -> None:
    got: list[bytes] = []
    with NoStreams() as server:
        async with pool_for(http3="only", keepalive_expiry=keepalive) as pool:

            async def fetch(number: int) -> None:
                got.append(await (await pool.request("POST", f"{url_of(server)}{number}", content=b"x")).read())

            async with anyio.create_task_group() as tasks:
                for number in range(at_once):
                    tasks.start_soon(fetch, number)
                await all_wait(pool, at_once)
                await anyio.sleep(0.4)  # longer than streams that were in use are waited for, and than it may be idle
                server.call(partial(grant, 100))
        assert len(server.connections) == 1
    assert sorted(got) == sorted(b"/r/%d" % number for number in range(at_once))


@pytest.mark.parametrize("at_once", [1, 20])
async def test_http3_connections_that_end_before_they_grant_anything_are_few(at_once: int) -> None:
    errors: list[AllswellError] = []
    forever = Timeouts(None, None, None, None)
    with NoStreams(closes=True) as server:
        async with pool_for(http3="only") as pool:

            async def fetch(number: int) -> None:
                with pytest.raises(AllswellError) as caught:
                    await pool.request("POST", f"{url_of(server)}{number}", content=b"x", timeouts=forever)
                errors.append(caught.value)

            with anyio.fail_after(60):
                async with anyio.create_task_group() as tasks:
                    for number in range(at_once):
                        tasks.start_soon(fetch, number)
        assert len(server.connections) <= 6
    assert len(errors) == at_once
    assert all("before it allowed a request" in str(error) for error in errors)


async def test_where_http3_has_no_room_tcp_may_have() -> None:
    """They race each other, and a connection without room has not won."""
    ends: list[ConnectionEnd] = []
    port = free_port()
    with NoStreams(port=port) as server, scripted_peer(Http2Server(), tls=h2_tls(), port=port) as peer:
        origin = peer.url
        async with pool_for(http3=True, http3_origins=frozenset({origin}), on_connection_end=ends.append) as pool:
            for _ in range(2):
                answer = await pool.request("GET", f"{origin}/1", timeouts=PATIENT)
                assert (answer.http_version, answer.attempts) == (b"HTTP/2", [])
        assert len(server.connections) == 1
        assert len(peer.connections) == 1
        assert len(server.all("close")) >= 1
    assert [end.reason for end in ends if end.http_version == "HTTP/3"] == ["it has no room yet, and TCP may have room"]


# HTTP/2: SETTINGS come behind the first requests


def refuses(allowed: set[Talk], talk: Talk, request: Request) -> None:
    """As servers do that allow no streams."""
    if talk in allowed:
        talk.answer(request)
    else:
        talk.rst(request.stream, REFUSED_STREAM)


async def test_http2_without_streams_ends_with_the_pool_timeout() -> None:
    server = Http2Server(partial(refuses, set()), settings={MAX_CONCURRENT_STREAMS: 0})
    with scripted_peer(server, tls=h2_tls()) as peer:
        async with pool_for() as pool:
            for _ in range(2):
                with pytest.raises(Timeout, match="the server has allowed no request") as caught:
                    await pool.request("GET", f"{peer.url}/1", timeouts=Timeouts(pool=0.4))
                assert caught.value.phase == "pool"
        assert len(peer.connections) == 1


@pytest.mark.parametrize("at_once", [1, 20])
async def test_http2_with_streams_that_come_late(at_once: int) -> None:
    got: list[bytes] = []
    allowed: set[Talk] = set()
    server = Http2Server(partial(refuses, allowed), settings={MAX_CONCURRENT_STREAMS: 0}, complete=True)
    with scripted_peer(server, tls=h2_tls()) as peer:
        async with pool_for() as pool:

            async def fetch(number: int) -> None:
                got.append(await (await pool.request("POST", f"{peer.url}/{number}", content=b"x")).read())

            async with anyio.create_task_group() as tasks:
                for number in range(at_once):
                    tasks.start_soon(fetch, number)
                await all_wait(pool, at_once)
                await anyio.sleep(0.4)
                allowed.add(server.talks[0])
                server.talks[0].settings(max_concurrent_streams=100)
        assert len(peer.connections) == 1
    assert sorted(got) == sorted(b"/%d" % number for number in range(at_once))


async def test_a_later_connection_of_theirs_is_not_sent_what_it_would_refuse() -> None:
    """That the server allowed none is remembered: its next connection's SETTINGS are awaited."""

    def first_refuses(talk: Talk, request: Request) -> None:
        refuses(set(server.talks[1:]), talk, request)

    server = Http2Server(first_refuses, settings=[{MAX_CONCURRENT_STREAMS: 0}, {}])
    with scripted_peer(server, tls=h2_tls()) as peer:
        async with pool_for() as pool:
            with pytest.raises(Timeout):
                await pool.request("GET", f"{peer.url}/1", timeouts=Timeouts(pool=0.1))
            server.talks[0].goaway(0)
            with anyio.fail_after(30):
                while "open" in [each.state for route in pool.snapshot().routes for each in route.connections]:  # noqa: ASYNC110
                    await anyio.sleep(0.005)
            answer = await pool.request("POST", f"{peer.url}/2", content=b"x")
            assert answer.attempts == []
            assert "HEADERS 1" not in server.talks[1].seen[: server.talks[1].seen.index("SETTINGS ACK")]
        assert len(peer.connections) == 2


async def test_a_limit_that_is_lowered_to_0_is_no_reason_for_a_dial_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """The room is waited for, then one connection is made for all that wait, because it will take as many as others."""
    room_is_awaited(monkeypatch)
    allowed: set[Talk] = set()

    def lowers(talk: Talk, request: Request) -> None:
        if talk is server.talks[0]:
            talk.settings(max_concurrent_streams=0)
            talk.answer(request)
        else:
            refuses(allowed, talk, request)

    server = Http2Server(lowers, settings=[{}, {MAX_CONCURRENT_STREAMS: 0}], complete=True)
    with scripted_peer(server, tls=h2_tls()) as peer:
        async with pool_for() as pool:
            await pool.request("GET", f"{peer.url}/first")
            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(partial(pool.request, "POST", f"{peer.url}/{number}", content=b"x"))
                with anyio.fail_after(30):
                    while len(server.talks) < 2:  # noqa: ASYNC110
                        await anyio.sleep(0.005)
                await all_wait(pool, 20)
                for talk in server.talks[1:]:
                    allowed.add(talk)
                    talk.settings(max_concurrent_streams=100)
        assert len(peer.connections) == 2
    assert sorted(server.served) == sorted(["/first", *map("/{}".format, range(20))])


# Servers that leave after so many requests, while many come at once


class Leaves:
    """Answers so many requests on each connection, says GOAWAY, and takes no others."""

    def __init__(self, takes: int) -> None:
        self._takes = takes
        self._taken: Counter[object] = Counter()
        self.answers = 0
        self.generous = False

    def http2(self, talk: Talk, request: Request) -> None:
        if self._take(talk):
            talk.answer(request)
        if self._taken[talk] == self._takes and not self.generous:
            talk.goaway(request.stream)

    def http3(self, connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        if self._take(connection):
            connection.respond(stream, 200, fields[b":path"])
        if self._taken[connection] == self._takes and not self.generous:
            connection.goaway(stream + 4)

    def _take(self, connection: object) -> bool:
        self._taken[connection] += 1
        return self.generous or self._taken[connection] <= self._takes


@contextmanager
def leaving(version: str, takes: int) -> Iterator[tuple[Leaves, Sequence[object], ConnectionPool, str]]:
    leaves = Leaves(takes)
    if version == "h3":
        with QuicServer({b"/r": leaves.http3}) as quic:
            yield leaves, quic.connections, pool_for(http3="only"), url_of(quic)
    else:
        with scripted_peer(Http2Server(leaves.http2), tls=h2_tls()) as peer:
            yield leaves, peer.connections, pool_for(), f"{peer.url}/r/"


@pytest.mark.parametrize("takes", [1, 3, 10])
@pytest.mark.parametrize("version", ["h2", "h3"])
async def test_fifty_at_once_take_a_few_rounds(version: str, takes: int) -> None:
    """Two connections show how many requests one takes; then as many are made as are needed, side by side."""
    attempts: list[int] = []
    with leaving(version, takes) as (_, connections, pool, url):

        async def fetch(number: int) -> None:
            answer = await pool.request("POST", f"{url}{number}", content=b"x", timeouts=PATIENT)
            assert await answer.read() == b"/r/%d" % number
            attempts.append(len(answer.attempts))

        async with pool:
            # Two connections get what one is thought to take; all others what these took. When all of that was answered
            # one more is tried, for the goodbye may be right behind the last answer, or not come at all.
            tries = 50 // takes + 1
            for in_vain in (2 * 50 + tries, tries):  # what was learnt is remembered
                attempts.clear()
                async with anyio.create_task_group() as tasks:
                    for number in range(50):
                        tasks.start_soon(fetch, number)
                assert len(attempts) == 50
                assert sum(attempts) <= in_vain
        assert len(connections) <= 2 * (50 // takes + 3)


@pytest.mark.parametrize("version", ["h2", "h3"])
async def test_a_server_that_takes_more_than_it_did_is_given_more(version: str) -> None:
    with leaving(version, 2) as (leaves, connections, pool, url):

        async def fetch(number: int) -> None:
            await pool.request("POST", f"{url}{number}", content=b"x", timeouts=PATIENT)

        async def burst() -> None:
            async with anyio.create_task_group() as tasks:
                for number in range(12):
                    tasks.start_soon(fetch, number)

        async with pool:
            await burst()
            leaves.generous = True
            for number in range(4):  # one more than it took shows it
                await fetch(number)
            before = len(connections)
            await burst()
        assert len(connections) <= before + 1


async def test_a_connection_that_somebody_waits_for_is_not_idle() -> None:
    """It was, as long as nobody wanted anything. Now another one is, and one too many if both were."""
    got: list[bytes] = []
    with NoStreams() as server, QuicServer() as other:
        async with pool_for(http3="only", max_keepalive_connections=1, keepalive_expiry=60) as pool:
            with pytest.raises(Timeout):
                await pool.request("GET", f"{url_of(server)}1", timeouts=Timeouts(pool=0.1))

            async def fetch() -> None:
                got.append(await (await pool.request("GET", f"{url_of(server)}2")).read())

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(fetch)
                await all_wait(pool, 1)
                await pool.request("GET", f"https://127.0.0.1:{other.port}/hello")
                await anyio.sleep(0.7)  # longer than one too many is kept
                server.call(partial(grant, 100))
        assert len(server.connections) == 1
    assert got == [b"/r/2"]
