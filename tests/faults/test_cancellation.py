"""Cancelled at every single checkpoint of request, body, upload and close, in every version: all stays consistent.

After each cancellation nothing is open or waiting in the pool; who shared the connection, and whoever comes next, is
answered with his own answer; the peer is left with no stream half open; and no task and no socket stays behind.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from allswell import AllswellError, ConnectionPool
from allswell._config import Timeouts
from tests.support.certificates import certificates
from tests.support.checkpoints import cancelled_at
from tests.support.h2_script import Http2Server, Request, Talk, h2_tls
from tests.support.lag import PATIENCE
from tests.support.peer import PeerConnection, ScriptedPeer, scripted_peer
from tests.support.quic_server import QuicServer, ServedConnection
from tests.support.scripts import response, target

pytestmark = pytest.mark.anyio

FILLING = b"0123456789" * 600
SOON = Timeouts(total=PATIENCE)
#: The path of what is answered by half.
STUCK = b"/r/stuck"


def right(path: str) -> bytes:
    return path.encode() + FILLING


# Servers: each answer comes in pieces, after a 103, so that there are many moments to be cancelled at.


def _h1(connection: PeerConnection) -> None:
    while request := connection.read_request():
        if target(request) == STUCK:
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nten bytes.")
            return  # and hear the client out
        answer = response(target(request) + FILLING)
        connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        for start, end in ((0, 30), (30, 3000), (3000, None)):
            connection.pause(0.003)
            connection.send(answer[start:end])


def _h2(talk: Talk, request: Request) -> None:
    if request.path == STUCK.decode():
        talk.answer(request, b"ten bytes.", end=False)
        return
    talk.read_body(request)
    talk.send(talk.headers(request.stream, [(":status", "103"), ("link", "</a>")]))
    talk.connection.pause(0.003)
    body = right(request.path)
    talk.answer(request, body[:3000], end=False)
    talk.connection.pause(0.003)
    talk.body(request, body[3000:])


def _h3(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
    if fields[b":path"] == STUCK:
        connection.head(stream, 200)
        return
    body = fields[b":path"] + FILLING
    connection.head(stream, 103, (b"link", b"</a>"))
    connection.flush()
    time.sleep(0.003)
    connection.head(stream, 200)
    connection.data(stream, body[:3000])
    connection.flush()
    time.sleep(0.003)
    connection.data(stream, body[3000:], end=True)


@dataclass
class Origin:
    """A server of one version, and pools for it."""

    version: str
    url: str
    server: ScriptedPeer | QuicServer
    h2: Http2Server | None = None

    def pool(self) -> ConnectionPool:
        return ConnectionPool(
            http3="only" if self.version == "h3" else False,
            pipelining=4 if self.version == "h1 pipelined" else 0,
            max_connections=2,
            ssl_context=certificates().client_context(),
        )

    async def quiet(self) -> None:
        """Wait until no stream is half open: each was answered to its end, or the client has reset it."""
        with anyio.fail_after(30):
            while self._open():  # noqa: ASYNC110  the peer's doing
                await anyio.sleep(0.001)

    def _open(self) -> list[int]:
        if isinstance(self.server, QuicServer):
            found: list[int] = self.server.call(lambda it: [number for number in it.quic._streams if not number & 3])
            return found
        if self.h2 is not None:
            requests = list(self.h2.requests)
            return [each.stream for each in requests if not each.ended and each.reset is None]
        return []


VERSIONS = ["h1", "h1 tls", "h1 pipelined", "h2", "h3"]


@pytest.fixture(params=VERSIONS)
def origin(request: pytest.FixtureRequest) -> Iterator[Origin]:
    version = request.param
    if version == "h3":
        with QuicServer({b"/r": _h3}) as quic:
            yield Origin(version, f"https://127.0.0.1:{quic.port}", quic)
    elif version == "h2":
        server = Http2Server(_h2)
        with scripted_peer(server, tls=h2_tls()) as peer:
            yield Origin(version, peer.url, peer, server)
    else:
        with scripted_peer(_h1, tls=version == "h1 tls") as peer:
            yield Origin(version, peer.url, peer)


async def get(pool: ConnectionPool, origin: Origin, name: str) -> None:
    answer = await pool.request("GET", f"{origin.url}/r/{name}", timeouts=SOON)
    assert await answer.read() == right(f"/r/{name}")


async def at_every_checkpoint(backend: str, once: Callable[[int, bool], Awaitable[bool]]) -> None:
    """Call it with the number of the checkpoint to be cancelled at, and how; it says whether it got so far.

    How often something waits depends on how its answer comes, so one that was over sooner is not yet the end.
    """
    for late in (False, True) if backend == "asyncio" else (False,):
        through = 0
        for number in itertools.count():
            reached = await once(number, late)
            through = 0 if reached else through + 1
            if through == 2:
                break
        assert number >= 2  # once at least


@contextmanager
def no_tasks_left() -> Iterator[Callable[[], Awaitable[None]]]:
    """Gives what waits until there are as many tasks as before."""
    before = len(anyio.get_running_tasks())

    async def check() -> None:
        with anyio.move_on_after(30):
            while len(anyio.get_running_tasks()) > before:  # noqa: ASYNC110  they end by themselves
                await anyio.sleep(0.001)
        assert len(anyio.get_running_tasks()) <= before, anyio.get_running_tasks()

    yield check


# What is cancelled


async def _body(pool: ConnectionPool, url: str) -> None:
    async with pool.stream("GET", url) as streamed:
        async for _ in streamed:
            pass


async def _unread(pool: ConnectionPool, url: str) -> None:
    async with pool.stream("GET", url):
        await anyio.lowlevel.checkpoint()


async def _pieces() -> AsyncIterator[bytes]:
    for _ in range(3):
        yield b"piece"
        await anyio.lowlevel.checkpoint()


async def _upload(pool: ConnectionPool, url: str) -> None:
    await pool.request("POST", url, content=_pieces())


OPERATIONS = pytest.mark.parametrize("operation", [_body, _unread, _upload], ids=lambda each: each.__name__.strip("_"))
Operation = Callable[[ConnectionPool, str], Coroutine[Any, Any, None]]


@OPERATIONS
async def test_at_every_checkpoint(origin: Origin, operation: Operation, anyio_backend_name: str) -> None:
    """With another request at its side, on the same connection where that carries several."""
    with no_tasks_left() as all_over:
        async with origin.pool() as pool:
            await get(pool, origin, "warm")

            async def once(number: int, late: bool) -> bool:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(get, pool, origin, f"beside{number}")
                    await anyio.lowlevel.checkpoint()
                    reached = await cancelled_at(number, operation(pool, f"{origin.url}/r/cancelled"), late=late)
                    taken = pool.snapshot()
                    assert taken.exchanges + taken.waiting <= 1, str(taken)  # the one at its side
                    await get(pool, origin, f"next{number}")
                await origin.quiet()
                return reached

            await at_every_checkpoint(anyio_backend_name, once)
        if origin.version in ("h2", "h3"):
            assert len(origin.server.connections) == 1  # only streams were reset
        assert pool.close_report is not None
        assert pool.close_report.clean, str(pool.close_report)
        await all_over()


@OPERATIONS
async def test_at_every_checkpoint_of_the_first_request(
    origin: Origin, operation: Operation, anyio_backend_name: str
) -> None:
    """While the connection is made, too: it is made to its end, and serves the next one."""

    async def once(number: int, late: bool) -> bool:
        async with origin.pool() as pool:
            reached = await cancelled_at(number, operation(pool, f"{origin.url}/r/cancelled"), late=late)
            taken = pool.snapshot()
            assert (taken.exchanges, taken.waiting) == (0, 0), str(taken)
            await get(pool, origin, "next")
            await origin.quiet()
        assert pool.close_report is not None
        assert pool.close_report.clean, f"at {number}: {pool.close_report}"
        return reached

    with no_tasks_left() as all_over:
        await at_every_checkpoint(anyio_backend_name, once)
        await all_over()


async def test_while_uploading(origin: Origin) -> None:
    """At each step of the caller's own iterator: before a piece, and after it was taken."""
    async with origin.pool() as pool:
        for step in range(6):
            with anyio.CancelScope() as scope:
                await pool.request("POST", f"{origin.url}/r/cancelled", content=_cancelling(scope, step))
            assert scope.cancelled_caught
            taken = pool.snapshot()
            assert (taken.exchanges, taken.waiting) == (0, 0), str(taken)
            await get(pool, origin, f"next{step}")
            await origin.quiet()
    if origin.version in ("h2", "h3"):
        assert len(origin.server.connections) == 1


async def _cancelling(scope: anyio.CancelScope, step: int) -> AsyncIterator[bytes]:
    for number in range(3):
        if step == 2 * number:
            scope.cancel()
        yield b"piece"
        if step == 2 * number + 1:
            scope.cancel()
        await anyio.lowlevel.checkpoint()


# The pool's end


async def test_close_at_every_checkpoint(origin: Origin, anyio_backend_name: str) -> None:
    """With an idle connection and one in mid-response: whatever is left is aborted, and the pool is closed."""

    async def close(pool: ConnectionPool) -> None:
        await pool.aclose(0.3)

    async def once(number: int, late: bool) -> bool:
        pool = origin.pool()
        async with pool.stream("GET", origin.url + STUCK.decode()) as stuck:
            assert stuck.status == 200
            await get(pool, origin, "warm")
            reached = await cancelled_at(number, close(pool), late=late)
            assert (pool.state, pool.snapshot().connections) == ("closed", 0)
            with pytest.raises(AllswellError):
                await stuck.read()
        report = pool.close_report
        assert report is not None
        assert not report.clean
        assert await pool.aclose() is report
        return reached

    with no_tasks_left() as all_over:
        await at_every_checkpoint(anyio_backend_name, once)
        await all_over()
    if isinstance(origin.server, ScriptedPeer):
        await origin.server.ended()
