"""A program that holds the event loop for longer than a time limit of the pool's: that time counts once, not twice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import sleep
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from allswell import ConnectionPool
from allswell._config import Timeouts
from tests.support.peer import PeerConnection, scripted_peer
from tests.support.told import VERSIONS, Version, told

pytestmark = pytest.mark.anyio

SHORT = 3.0


@pytest.fixture(params=["asyncio", "uvloop", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return ("asyncio", {"use_uvloop": True}) if request.param == "uvloop" else request.param


def hold(*meanwhile: Callable[[], None]) -> None:
    """Hold the event loop, as if computing, for much longer than the limit, with this happening meanwhile."""
    for each in meanwhile:
        each()
    sleep(2 * SHORT)


async def all_wait() -> None:
    for _ in range(10):
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_handshake_under_way(version: Version) -> None:
    with told(version) as origin:
        async with origin.pool() as pool, anyio.create_task_group() as tasks:
            tasks.start_soon(partial(pool.request, "GET", origin.url, timeouts=Timeouts(connect=SHORT)))
            await all_wait()
            hold()
            assert await anyio.to_thread.run_sync(origin.asked.acquire, True, 30)
            origin.head()
            origin.end()


async def test_a_place_that_comes_free() -> None:
    with told("h1") as origin:
        async with origin.pool(max_connections=1) as pool, anyio.create_task_group() as tasks:
            tasks.start_soon(pool.request, "GET", origin.url)
            assert await anyio.to_thread.run_sync(origin.asked.acquire, True, 30)
            tasks.start_soon(partial(pool.request, "GET", origin.url, timeouts=Timeouts(pool=SHORT)))
            await all_wait()
            hold(origin.head, origin.end)
            assert await anyio.to_thread.run_sync(origin.asked.acquire, True, 30)
            origin.head()
            origin.end()


async def test_a_tunnel() -> None:
    """What lies in the socket of an upgraded connection is read, whatever the limit of this read was."""
    said: list[PeerConnection] = []

    def script(connection: PeerConnection) -> None:
        connection.read_head()
        said.append(connection)
        connection.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
        connection.read_until_end()

    with scripted_peer(script) as peer:
        async with ConnectionPool(grace=1) as pool:
            headers = [(b"Connection", b"upgrade"), (b"Upgrade", b"x")]
            async with pool.stream("GET", peer.url, headers=headers) as response:
                heard: list[bytes] = []

                async def read() -> None:
                    heard.append(await response.network_stream.read(10, timeout=SHORT))

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(read)
                    await all_wait()
                    hold(lambda: said[0].send(b"tick"))
                assert heard == [b"tick"]
                await response.network_stream.aclose()
