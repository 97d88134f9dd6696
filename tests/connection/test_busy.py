"""A program that holds the event loop for longer than a timeout: what lies in the socket by then has come in time."""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from time import sleep
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from allswell import ConnectionPool, Timeout
from allswell._config import Timeouts
from allswell._request.response import Response
from tests.support.told import VERSIONS, Told, Version, told

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("version", VERSIONS)]

SHORT = 3.0
PATIENCE = 120.0


@pytest.fixture(params=["asyncio", "uvloop", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Each has its own order in which timers and sockets have their turn."""
    return ("asyncio", {"use_uvloop": True}) if request.param == "uvloop" else request.param


def hold(*meanwhile: Callable[[], None], seconds: float = 2 * SHORT) -> None:
    """Hold the event loop, as if computing, for longer than the timeout, with this happening meanwhile."""
    for each in meanwhile:
        each()
    sleep(seconds)


async def all_wait() -> None:
    """Let whoever runs come to where it waits."""
    for _ in range(10):
        await anyio.lowlevel.checkpoint()


async def connected(origin: Told, pool: ConnectionPool) -> None:
    """Have a connection, so that the next request is only about a response."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pool.request, "GET", origin.url)
        await anyio.to_thread.run_sync(origin.asked.acquire, True, PATIENCE)
        origin.head()
        origin.end()


@pytest.mark.parametrize("limits", [Timeouts(read=SHORT), Timeouts(read=None, total=SHORT)], ids=["read", "total"])
async def test_a_response_that_lies_in_the_socket(version: Version, limits: Timeouts) -> None:
    with told(version) as origin:
        async with origin.pool() as pool:
            await connected(origin, pool)
            async with anyio.create_task_group() as tasks:
                responses: list[Response] = []

                async def get() -> None:
                    responses.append(await pool.request("GET", origin.url, timeouts=limits))

                tasks.start_soon(get)
                await anyio.to_thread.run_sync(origin.asked.acquire, True, PATIENCE)
                await all_wait()
                hold(origin.head, lambda: origin.data(b"whole"), origin.end)
            assert await responses[0].read() == b"whole"


@asynccontextmanager
async def ticking(origin: Told, pool: ConnectionPool) -> AsyncIterator[list[bytes | str]]:
    """A response under way; the pieces of its body that its reader has had, and how it ended."""
    heard: list[bytes | str] = []
    limits = Timeouts(read=SHORT)

    async def read(response: Response) -> None:
        try:
            while piece := await response.receive():
                heard.append(piece)
            heard.append("end")
        except Timeout as error:
            heard.append(error.phase)

    await connected(origin, pool)
    async with anyio.create_task_group() as tasks:

        async def head() -> None:
            await anyio.to_thread.run_sync(origin.asked.acquire, True, PATIENCE)
            origin.head()

        tasks.start_soon(head)
        async with pool.stream("GET", origin.url, timeouts=limits) as response:
            tasks.start_soon(read, response)
            await all_wait()
            yield heard


async def until(heard: list[bytes | str], count: int) -> None:
    with anyio.fail_after(PATIENCE):
        while len(heard) < count:
            await anyio.lowlevel.checkpoint()


async def test_pieces_that_lie_in_the_socket(version: Version) -> None:
    with told(version) as origin:
        async with origin.pool() as pool, ticking(origin, pool) as heard:
            for number, piece in enumerate((b"a", b"b", b"c"), 1):
                hold(partial(origin.data, piece))
                await until(heard, number)
            hold()
            await until(heard, 4)
            assert heard == [b"a", b"b", b"c", "read"]  # and silence is still found out


async def test_a_reader_that_is_held_after_they_came(version: Version) -> None:
    """The piece was delivered in time; only its reader has had no turn."""
    with told(version) as origin:
        async with origin.pool() as pool, ticking(origin, pool) as heard:
            origin.data(b"tick")
            [connection] = pool._dispatcher.endings.connections  # type: ignore[union-attr]  # it has one
            connection.catch_up()
            assert heard == []
            hold()
            origin.end()
            await until(heard, 2)
            assert heard == [b"tick", "end"]


async def test_a_server_that_has_room_again(version: Version) -> None:
    """It took what it was sent while the program held the event loop, and there was nobody to send it more."""
    size = 4_000_000
    narrow = (socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
    with told(version, stalls=True) as origin:
        async with origin.pool(socket_options=[narrow]) as pool:
            async with anyio.create_task_group() as tasks:
                statuses: list[int] = []

                async def post() -> None:
                    limits = Timeouts(write=SHORT)
                    response = await pool.request("POST", origin.url, content=pieces(size), timeouts=limits)
                    statuses.append(response.status)

                tasks.start_soon(post)
                await anyio.to_thread.run_sync(origin.asked.acquire, True, PATIENCE)
                await stuck(pool)
                hold(origin.go_on.set)
                await anyio.to_thread.run_sync(origin.uploaded.acquire, True, PATIENCE)
                origin.head()
                origin.end()
            assert statuses == [200]


async def pieces(size: int) -> AsyncIterator[bytes]:
    for _ in range(0, size, 50_000):
        yield bytes(50_000)


async def stuck(pool: ConnectionPool) -> None:
    """Wait until an upload waits for room."""
    with anyio.fail_after(PATIENCE):
        while not any(
            exchange.upload is not None and exchange.upload.write_at < math.inf
            for connection in pool._dispatcher.endings.connections  # type: ignore[union-attr]  # it has one
            for exchange in connection._exchanges.values()
        ):
            await anyio.lowlevel.checkpoint()
