"""HTTP/1.1 responses have no name: what a server says without being asked must answer nobody's request.

The event loop is held until the bytes lie in the client's socket, so it cannot have noticed them by itself.
"""

from __future__ import annotations

import math
import select
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest

from allswell import ConnectionPool, ProxyHop
from allswell._connection import reader
from allswell._dial import kit
from allswell._filters.interface import ReceiveBuffer
from allswell._pool import replay
from tests.support.certificates import certificates
from tests.support.peer import PeerConnection, ScriptedPeer, scripted_peer
from tests.support.proxies import connect_proxy
from tests.support.scripts import Ending, answers, end, response, target

pytestmark = pytest.mark.anyio

FORGED = response(b"forged")
TIMED_OUT = response(b"", "Connection: close", status="408 Request Timeout")
WAYS = ["plain", "tls", "pipelined", "pipelined tls", "tunnel", "forwarded"]


def speaks_unasked(said: bytes) -> Any:
    """The first connection answers once, then says this when the test lets it. The others answer."""

    def script(connection: PeerConnection) -> None:
        if not connection.index:
            connection.send(response(target(connection.read_request())))
            connection.stall()
            connection.send(said)
        answers()(connection)

    return script


@contextmanager
def way(kind: str, script: Any) -> Iterator[tuple[ScriptedPeer, ConnectionPool, str, str]]:
    """A server, a pool, and two URLs. Those that are forwarded are of two origins."""
    settings: dict[str, Any] = {"pipelining": 4 if kind.startswith("pipelined") else 0}
    settings["ssl_context"] = certificates().client_context()
    with scripted_peer(script, tls="tls" in kind or kind == "tunnel") as peer:
        if kind == "tunnel":
            with scripted_peer(connect_proxy()) as proxy:
                hop = ProxyHop("http", proxy.host, proxy.port)
                yield peer, ConnectionPool(proxies=(hop,), **settings), peer.url, peer.url
        elif kind == "forwarded":
            hop = ProxyHop("http", peer.host, peer.port)
            yield peer, ConnectionPool(proxies=(hop,), **settings), "http://one.test", "http://two.test"
        else:
            yield peer, ConnectionPool(**settings), peer.url, peer.url


async def get(pool: ConnectionPool, url: str, **more: Any) -> bytes:
    return await (await pool.request("GET", url, **more)).read()


def hold_until_readable(sock: Any) -> None:
    """With the event loop held."""
    assert select.select([sock], [], [], 30)[0]


class _Narrow(ReceiveBuffer):
    """Takes no whole response at once."""

    def __init__(self) -> None:
        super().__init__()
        self.wire = self.wire[:32]


@pytest.fixture(params=[False, True], ids=["", "short turns"])
def turn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """However early a turn of reading ended: that the socket was empty may be old news."""
    if request.param:
        monkeypatch.setattr(kit, "ReceiveBuffer", _Narrow)
        monkeypatch.setattr(reader, "TURN", 0)


@pytest.mark.usefixtures("turn")
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("said", [FORGED, TIMED_OUT, b"\r\n"], ids=["200", "408", "blank line"])
@pytest.mark.parametrize("kind", WAYS)
async def test_what_nobody_asked_for_answers_nobody(kind: str, said: bytes, method: str) -> None:
    with way(kind, speaks_unasked(said)) as (peer, pool, one, two):
        async with pool:
            first = await pool.request("GET", f"{one}/1")
            sock = first.network_stream.get_extra_info("socket")
            peer.release()
            hold_until_readable(sock)
            second = await pool.request(method, f"{two}/2", content=b"x" if method == "POST" else None)
            assert (await second.read()).endswith(b"/2")
            assert second.status == 200
            assert second.attempts == []
        assert [len(connection.requests) for connection in peer.connections] == [1, 1]


async def test_what_lies_behind_an_answer_is_not_the_next_ones() -> None:
    """Pipelined: both have come before the second request goes out, and only one was asked for."""
    asked = threading.Event()

    def script(connection: PeerConnection) -> None:
        if not connection.index:
            connection.send(response(target(connection.read_request())))
            request = connection.read_request()
            asked.set()
            connection.stall()
            connection.send(response(target(request)) + FORGED)
        answers()(connection)

    with way("pipelined", script) as (peer, pool, url, _):
        got: list[bytes] = []

        async def fetch(path: str) -> None:
            got.append(await get(pool, url + path))

        async with pool:
            warm = await pool.request("GET", f"{url}/warm")
            sock = warm.network_stream.get_extra_info("socket")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(fetch, "/1")
                assert await anyio.to_thread.run_sync(asked.wait, 30)
                peer.release()
                hold_until_readable(sock)
                await fetch("/2")
        assert sorted(got) == [b"/1", b"/2"]
        assert [len(connection.requests) for connection in peer.connections] == [2, 1]


# A 408 that crosses with a request (RFC 9110 §15.5.9)


def gives_up_on_idle_ones(connection: PeerConnection) -> None:
    """What it says when its patience is over meets the second request of each connection."""
    answers(1, ending=Ending.NONE)(connection)
    if connection.read_request():  # of which it shall know nothing
        connection.send(TIMED_OUT)
        end(connection, Ending.POLITE)


async def pieces() -> AsyncIterator[bytes]:
    yield b"x"


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("content", [None, b"x"], ids=["GET", "POST"])
async def test_a_408_that_crossed_with_the_request(
    kind: str, content: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "_CROSSING", math.inf)  # on a busy machine
    with way(kind, gives_up_on_idle_ones) as (peer, pool, one, two):
        async with pool:
            await get(pool, f"{one}/1")
            second = await pool.request("GET" if content is None else "POST", f"{two}/2", content=content)
            assert (await second.read()).endswith(b"/2")
            assert [attempt.processed for attempt in second.attempts] == ["no"]
            assert "408" in second.attempts[0].why
        assert len(peer.connections) == 2


async def test_a_408_that_comes_late_is_the_answer_to_a_post(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has not crossed with it: the server may have worked on it until then."""
    monkeypatch.setattr(replay, "_CROSSING", 0.0)
    with scripted_peer(gives_up_on_idle_ones) as peer:
        async with ConnectionPool() as pool:
            await get(pool, f"{peer.url}/1")
            assert (await pool.request("POST", f"{peer.url}/2", content=b"x")).status == 408
        assert len(peer.connections) == 1


async def test_a_408_is_the_answer_where_the_body_cannot_start_anew() -> None:
    with scripted_peer(gives_up_on_idle_ones) as peer:
        async with ConnectionPool() as pool:
            await get(pool, f"{peer.url}/1")
            second = await pool.request("POST", f"{peer.url}/2", content=pieces())
            assert second.status == 408
        assert len(peer.connections) == 1


@pytest.mark.parametrize("reused", [False, True], ids=["first", "stays open"])
async def test_a_408_is_the_answer_to_what_has_arrived(reused: bool) -> None:
    """To the first request of a connection, and where the connection stays open."""
    said = response(b"", *(() if reused else ("Connection: close",)), status="408 Request Timeout")

    def script(connection: PeerConnection) -> None:
        if reused:
            connection.send(response(target(connection.read_request())))
        if connection.read_request():
            connection.send(said)

    with scripted_peer(script) as peer:
        async with ConnectionPool() as pool:
            if reused:
                await get(pool, f"{peer.url}/1")
            assert (await pool.request("GET", f"{peer.url}/2")).status == 408
        assert len(peer.connections) == 1
